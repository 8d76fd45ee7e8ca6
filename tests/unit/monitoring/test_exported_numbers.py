"""What is exported adds up, whoever is restarted, and says no more to a tenant than is the tenant's."""

from dataclasses import replace

import pytest
from simulated_cluster import HEALTHY, Trouble, snapshot

from monitoring.exporter import Access, Exporter, Viewer
from monitoring.snapshot import JobSnapshot, Snapshot
from monitoring.totals import Totals
from worldkv.errors import ConfigError
from worldkv.stats import MISS_REASONS

LOSSY = Trouble(hit_ratio=0.8, quota_ratio=0.2, miss_reason="late")


def total(samples, name: str, **where: str) -> float:
    return sum(v for (n, labels), v in samples.items() if n == name and set(where.items()) <= labels)


def test_lookups_are_hits_and_misses_in_the_exported_text(exported):
    shown = exported(snapshot(17.3, LOSSY))
    assert total(shown, "worldkv_lookups_total") > 0
    assert total(shown, "worldkv_misses_total") > 0
    assert total(shown, "worldkv_lookups_total") == total(shown, "worldkv_hits_total") + total(
        shown, "worldkv_misses_total"
    )
    for tier in ("device", "host", "disk", "durable"):
        for tenant in ("lab", "studio"):
            where = {"tier": tier, "tenant": tenant}
            asked = total(shown, "worldkv_tier_lookups_total", **where)
            assert asked == total(shown, "worldkv_tier_hits_total", **where) + total(
                shown, "worldkv_tier_misses_total", **where
            )
            assert asked > 0
    # Whatever no tier gave was asked of the last one.
    assert total(shown, "worldkv_misses_total", reason="late") == total(
        shown, "worldkv_tier_misses_total", tier="durable", reason="late"
    )


def test_every_reason_has_a_line_before_it_happens(exported):
    shown = exported(snapshot(1))
    assert {dict(labels)["reason"] for name, labels in shown if name == "worldkv_misses_total"} == set(MISS_REASONS)


def test_buckets_are_cumulated_and_end_with_the_count(exported, labelled):
    shown = exported(snapshot(10))
    rows = [
        value
        for (name, labels), value in shown.items()
        if name == "worldkv_chunk_fetch_seconds_bucket" and ("tier", "disk") in labels
    ]
    assert rows == sorted(rows)
    disk = labelled(tier="disk")
    assert (
        rows[-1]
        == shown["worldkv_chunk_fetch_seconds_count", disk]
        == total(shown, "worldkv_tier_hits_total", tier="disk")
    )
    assert shown["worldkv_chunk_fetch_seconds_sum", disk] == pytest.approx(0.05 * rows[-1])


def test_a_sum_over_workers_stays_when_one_is_restarted(exported):
    before, after = snapshot(10), snapshot(11)
    fresh = replace(after.workers[0], restarts=1, work=snapshot(0).workers[0].work)
    again = replace(after, workers=(fresh, *after.workers[1:]))
    shown = exported(before, again)
    counted = sum(worker.work.memory.lookups for worker in (before.workers[0], *after.workers[1:]))
    assert total(shown, "worldkv_lookups_total") == counted
    # The worker's own line begins again, as Prometheus expects of a counter.
    assert total(shown, "worldkv_chunks_generated_total", worker="worker-0") == 0


def test_a_restart_that_nobody_told_of_is_seen_in_the_counters(exported):
    before, after = snapshot(10), snapshot(11)
    fresh = replace(after.workers[0], work=snapshot(3).workers[0].work)
    shown = exported(before, replace(after, workers=(fresh, *after.workers[1:])))
    counted = sum(w.work.memory.lookups for w in (before.workers[0], fresh, *after.workers[1:]))
    assert total(shown, "worldkv_lookups_total") == counted


def test_a_sum_over_workers_stays_while_one_is_not_told_of_and_counts_it_once(exported):
    whole = snapshot(10)
    part = replace(whole, workers=whole.workers[1:])
    lookups = total(exported(whole), "worldkv_lookups_total")
    assert total(exported(whole, part), "worldkv_lookups_total") == lookups
    assert total(exported(whole, part, whole), "worldkv_lookups_total") == lookups
    # What is no counter tells of those that are there.
    assert total(exported(whole, part), "worldkv_workers", state="ready") == 3


def test_episodes_of_a_job_that_was_forgotten_stay(exported):
    jobs = (JobSnapshot("1", "lab", "done", 5, committed=5), JobSnapshot("2", "lab", "running", 9, committed=2))
    shown = exported(Snapshot(0.0, jobs=jobs), Snapshot(1.0, jobs=jobs[1:]))
    assert total(shown, "worldkv_episodes_total", outcome="committed") == 7
    assert total(shown, "worldkv_episodes_wanted", tenant="lab") == 9
    assert total(shown, "worldkv_jobs", state="done") == 0


def test_of_several_jobs_the_one_that_is_idle_for_longest_counts(exported):
    jobs = [JobSnapshot(str(i), "lab", "running", 1, idle_seconds=idle) for i, idle in enumerate((3.0, 40.0, 5.0))]
    done = JobSnapshot("old", "lab", "done", 1, idle_seconds=9e9)
    shown = exported(Snapshot(0.0, jobs=(*jobs, done)))
    assert total(shown, "worldkv_job_idle_seconds", tenant="lab") == 40.0


def test_bytes_of_a_tier_that_workers_share_are_there_once_per_node(exported):
    whole = snapshot(10, workers=16)
    shared = replace(whole, workers=tuple(replace(worker, shared_tiers=("host",)) for worker in whole.workers))
    apart, together = exported(whole), exported(shared)
    for name in (
        "worldkv_tier_used_bytes",
        "worldkv_tier_capacity_bytes",
        "worldkv_tier_chunks",
        "worldkv_tenant_used_bytes",
    ):
        assert total(together, name, tier="host") == total(apart, name, tier="host") / 8
        assert total(together, name, tier="disk") == total(apart, name, tier="disk")
    # Lookups are each worker's own.
    assert together["worldkv_lookups_total", frozenset()] == apart["worldkv_lookups_total", frozenset()]


def test_a_tenants_token_shows_that_tenants_lines_and_nothing_of_others(exported):
    shown = exported(snapshot(10), tenant="lab")
    assert shown
    assert all(("tenant", "lab") in labels for _, labels in shown)
    names = {name for name, _ in shown}
    assert {"worldkv_tier_hits_total", "worldkv_sessions", "worldkv_episodes_total"} <= names
    assert not {"worldkv_lookups_total", "worldkv_tier_used_bytes", "worldkv_worker_info"} & names
    assert "studio" not in str(shown)


def test_who_may_see_what():
    access = Access("operator-token", {"lab": "lab-token", "studio": "studio-token"})
    assert access.may("Bearer operator-token") == Viewer(None)
    assert access.may("Bearer lab-token") == Viewer("lab")
    for header in (None, "", "Bearer ", "lab-tokenx", "Bearer operator-token2", "Basic lab-token"):
        assert access.may(header) is None
    assert Access().may(None) == Viewer(None)
    assert "token" not in repr(access).replace("tenant_tokens", "").replace("operator_token", "")


@pytest.mark.parametrize(
    ("operator", "tenants", "message"),
    [
        (None, {"lab": "a"}, "none for the operator"),
        ("a", {"lab": "a"}, "each must be its own"),
        ("a", {"lab": "b", "studio": "b"}, "each must be its own"),
        ("", {}, "each must be its own"),
    ],
)
def test_tokens_that_do_not_tell_people_apart_are_refused(operator, tenants, message):
    with pytest.raises(ConfigError, match=message):
        Access(operator, tenants)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "gpu-node"])
def test_without_a_token_others_cannot_reach_it(host):
    with pytest.raises(ConfigError, match="give a token"):
        Exporter().start(host)


def test_before_the_first_snapshot_there_is_nothing_to_see(exported):
    assert Exporter().metrics(Viewer(None)).body == b"# EOF\n"
    assert Exporter().targets() == b"[]"


def test_what_is_published_replaces_what_was(exported):
    shown = exported(snapshot(1), snapshot(2))
    assert shown == exported(snapshot(2))


def test_totals_do_not_depend_on_how_often_one_looks():
    often, seldom = Totals(), Totals()
    flapping = replace(HEALTHY, restarts=0.25)
    for minute in range(0, 30, 2):
        often.take(snapshot(minute, HEALTHY))
    # Whatever happens between two looks, a sum never goes down.
    assert often.take(snapshot(30)) == seldom.take(snapshot(30))
    flaps = Totals()
    seen = [flaps.take(snapshot(minute, flapping))["worldkv_lookups_total", ()] for minute in range(30)]
    assert seen == sorted(seen)
