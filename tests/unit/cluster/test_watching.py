"""How a job's workers look to monitoring."""

from dataclasses import replace

import pytest

from cluster.chunks.connect import Overview
from cluster.ledger import JobState, new_play_record
from cluster.watching import Watcher, exported, snapshot_of
from monitoring.snapshot import GpuStats
from worldkv.config import load, load_as
from worldkv.errors import ConfigError, TransferError
from worldkv.runs.play_config import PlayConfig
from worldkv.stats import Durations, MemoryStats, WorkerStats, WorkStats

STATE = JobState("running", told=5.0, driver="here:1", episodes=3, wanted=8)


@pytest.fixture
def record(tmp_path):
    from cluster.ledger import new_record
    from worldkv.config import RunConfig

    return new_record(RunConfig(), base=tmp_path, command="worldkv rollout", priority=0)


def worker(slot: str, **given) -> WorkerStats:
    work = WorkStats(MemoryStats(lookups=2, hits=2), chunks_generated=7)
    return WorkerStats(slot, "node-a", "lab", model="rooms", **{"work": work, **given})


def test_a_worker_is_told_with_its_figures_and_sessions(record):
    snapshot = snapshot_of(record, [worker("0", batch=4, sessions=2, restarts=1), worker("1")], STATE)
    first, second = snapshot.workers
    assert (first.worker, first.node, first.restarts, first.work.chunks_generated) == ("0", "node-a", 1, 7)
    assert [(s.tenant, s.state, s.sessions) for s in first.sessions] == [("lab", "running", 2)]
    assert [s.state for s in second.sessions] == ["idle"]
    assert snapshot.taken_at == 5.0


def test_a_published_models_world_is_told_with_its_tenants_quotas(tmp_path):
    config = load_as(
        PlayConfig,
        None,
        [
            "model={name: lingbot-world-fast, random_weights: 1, size: tiny}",
            "inputs={image: first.png, prompt: a room, trajectory: R_L20_24}",
            "video=made.mp4",
            "memory={tenant: lab, tiers: [{name: device, capacity_mib: 64}]}",
            "memory.shares=[{tier: device, tenant: lab, limit_mib: 8}]",
        ],
    )
    told = []
    watcher = Watcher(
        new_play_record(config, base=tmp_path, command="worldkv rollout", priority=0), told.append, lambda _: ()
    )
    watcher([worker("0", sessions=1)], STATE)
    assert (told[0].jobs[0].state, told[0].tenants[0].limit_bytes) == ("running", {"device": 8 << 20})


def test_a_worker_without_a_model_has_no_figures_yet(record):
    assert snapshot_of(record, [worker("0", work=None)], STATE).workers == ()


@pytest.mark.parametrize(
    ("standing", "state"), [("running", "running"), ("finished", "done"), ("stopped", "failed"), ("failed", "failed")]
)
def test_the_job_is_told_in_the_words_of_monitoring(record, standing, state):
    job = JobState(standing, told=5.0, driver="here:1", episodes=3, wanted=8)
    (told,) = snapshot_of(record, [worker("0", restarts=2)], job).jobs
    assert (told.state, told.committed, told.episodes_wanted, told.retried) == (state, 3, 8, 2)


def test_the_queue_and_the_quotas_of_the_tenant_are_told(record):
    config = (
        "memory.tiers=[{name: device, capacity_mib: 64}]",
        "memory.shares=[{tier: device, tenant: lab, limit_mib: 8}]",
    )
    record = replace(record, tenant="lab", config=load(None, [*config, "memory.tenant=lab"]).to_yaml())
    counts = (0, 2, *Durations().counts[2:])
    state = replace(STATE, queued=6, oldest_wait_seconds=2.5, wait_counts=counts, wait_seconds=0.004, aside=1)
    snapshot = snapshot_of(record, [], replace(state, idle_seconds=7.0))
    (tenant,) = snapshot.tenants
    assert (tenant.tenant, tenant.queued, tenant.oldest_wait_seconds) == ("lab", 6, 2.5)
    assert (tenant.waits.count, tenant.waits.seconds) == (2, 0.004)
    assert tenant.limit_bytes == {"device": 8 * 2**20}
    assert (snapshot.jobs[0].failed, snapshot.jobs[0].idle_seconds) == (1, 7.0)


@pytest.fixture
def shared(record):
    """A job whose memory has a tier that all nodes share."""
    return replace(record, config=load(None, ["memory.tiers=[{name: node, capacity_mib: 64}]"]).to_yaml())


def test_the_copies_of_a_shared_tier_are_asked_for_now_and_then(shared):
    told, asked, now = [], [], iter([0.0, 3.0, 10.0, 20.0])

    def ask(settings):
        asked.append(settings)
        if len(asked) == 3:
            raise TransferError("no directory of chunks answers")
        return Overview({}, pending_bytes=100 * len(asked), lag_seconds=1.5)

    watcher = Watcher(shared, told.append, lambda indices: (), ask, clock=lambda: next(now))
    for _ in range(4):
        watcher([], STATE)
    assert [one.replication_pending_bytes for one in told] == [100, 100, 200, None]
    assert [one.replication_lag_seconds for one in told] == [1.5, 1.5, 1.5, None]


def test_the_gpus_of_workers_on_this_machine_are_read_and_no_others(record):
    told = []
    watcher = Watcher(record, told.append, lambda indices: tuple(GpuStats(i, "gpu") for i in indices), here="node-a")
    elsewhere = replace(worker("2", gpus=(0,)), node="node-b")
    watcher([worker("0", gpus=(3,)), worker("1"), elsewhere], STATE)
    assert [[gpu.index for gpu in one.gpus] for one in told[0].workers] == [[3], [], []]
    assert told[0].replication_lag_seconds is None


def test_nothing_is_served_unless_somebody_asks(record):
    with exported(None, record, warn=pytest.fail) as publish:
        publish([worker("0")], STATE)


@pytest.mark.parametrize("listen", ["9000", "host:", ":9000", "host:http"])
def test_an_address_that_is_none_is_named(record, listen):
    with pytest.raises(ConfigError, match=r"--exporter .*HOST:PORT"), exported(listen, record, warn=print):
        pass
