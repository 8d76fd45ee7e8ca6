import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.fairness import fair_slots, service_order
from scheduler.snapshot import (
    ClusterView,
    PendingView,
    Resources,
    RunningView,
    TenantView,
    WorkerView,
    pending_table,
    running_table,
)

TOTAL = Resources(100, 1000, 1000)


def waiting(session, tenant, *, since=0.0, **changes):
    return PendingView(
        session, tenant, changes.pop("needs", Resources(1, 10, 10)), waits_since_seconds=since, **changes
    )


def view(pending, running=(), tenants=None, now=10.0):
    workers = tuple(WorkerView(f"w{n}", "n", Resources(1, 10, 10)) for n in range(100))
    return ClusterView(now, workers, running_table(running), pending_table(pending), tenants or {})


def order(pending, running=(), tenants=None, now=10.0):
    return [pending[row].session for row in service_order(view(pending, running, tenants, now), TOTAL).order_P.tolist()]


def test_nobody_waits_nobody_is_served():
    order_P, reserved = service_order(view([]), TOTAL)
    assert (order_P.tolist(), reserved) == ([], 0)


def test_equal_tenants_are_served_in_turn_however_long_their_queues():
    flood = [waiting(f"f{n}", "flood") for n in range(50)]
    few = [waiting(f"q{n}", "quiet") for n in range(3)]
    first = order([*flood, *few])[:6]
    assert Counter(name[0] for name in first) == {"f": 3, "q": 3}


def test_of_equal_shares_who_waits_for_longest_is_served_first():
    assert order([waiting("a0", "a", since=2.0), waiting("b0", "b", since=1.0)]) == ["b0", "a0"]


def test_weights_divide_what_is_served():
    one, two = ([waiting(f"{name}{n}", name) for n in range(40)] for name in "ab")
    served = Counter(name[0] for name in order([*one, *two], tenants={"a": TenantView(3.0)})[:40])
    assert served == {"a": 30, "b": 10}


def test_what_a_tenant_holds_counts_unless_it_is_leaving():
    pending = [waiting("a0", "a"), waiting("b0", "b")]
    held = [RunningView("a-old", "a", ("w0",), Resources(1, 10, 10))]
    assert order(pending, held) == ["b0", "a0"]
    leaving = [RunningView("a-old", "a", ("w0",), Resources(1, 10, 10), leaving=True)]
    assert order(pending, leaving) == ["a0", "b0"]


def test_the_dominant_resource_counts_not_slots_alone():
    greedy = [waiting(f"g{n}", "greedy", needs=Resources(1, 100, 0)) for n in range(4)]
    modest = [waiting(f"m{n}", "modest", needs=Resources(1, 10, 0)) for n in range(11)]
    assert order([*greedy, *modest])[:12].count("g0") == 1
    assert Counter(name[0] for name in order([*greedy, *modest])[:11]) == {"g": 1, "m": 10}


def test_reservations_are_served_before_shares():
    pending = [*(waiting(f"a{n}", "a") for n in range(5)), *(waiting(f"r{n}", "reserved") for n in range(5))]
    served = order(pending, tenants={"a": TenantView(100.0), "reserved": TenantView(1.0, reserved_slots=3)})
    assert served[:3] == ["r0", "r1", "r2"]
    assert served[3] == "a0"


def test_beyond_its_limit_a_tenant_is_not_served():
    pending = [waiting(f"a{n}", "a") for n in range(5)]
    assert order(pending, tenants={"a": TenantView(limit_slots=2)}) == ["a0", "a1"]


def test_within_a_tenant_priority_then_age_decide_until_one_starves():
    pending = [
        waiting("old", "a", since=5.0),
        waiting("urgent", "a", since=9.0, priority=1),
        waiting("older", "a", since=1.0),
    ]
    assert order(pending) == ["urgent", "older", "old"]
    assert order(pending, now=1.0 + 121.0) == ["older", "urgent", "old"]


def naive(pending, tenants):
    """Progressive filling by the book: again and again the tenant with the smallest share, its queue's next."""
    queues = {
        t: sorted((one for one in pending if one.tenant == t), key=lambda one: (-one.priority, one.session))
        for t in "abc"
    }
    used = {t: [0, 0, 0] for t in "abc"}

    def share(t):
        parts = (used[t][0] / TOTAL.slots, used[t][1] / TOTAL.device_bytes, used[t][2] / TOTAL.host_bytes)
        return max(parts) / tenants[t].weight

    served = []
    while any(queues.values()):
        t = min((t for t in "abc" if queues[t]), key=lambda t: (share(t), t))
        one = queues[t].pop(0)
        for place, value in enumerate((one.needs.slots, one.needs.device_bytes, one.needs.host_bytes)):
            used[t][place] += value * one.gang
        served.append(one.session)
    return served


@settings(max_examples=60)
@given(data=st.data())
def test_the_order_is_that_of_progressive_filling(data):
    tenants = {t: TenantView(data.draw(st.sampled_from([1.0, 2.0, 0.5]))) for t in "abc"}
    count = data.draw(st.integers(1, 25))
    pending = [
        waiting(
            f"s{number:02d}",
            data.draw(st.sampled_from("abc")),
            priority=data.draw(st.integers(0, 1)),
            gang=data.draw(st.sampled_from([1, 1, 2])),
            needs=Resources(1, data.draw(st.sampled_from([0, 16, 64])), 16),
        )
        for number in range(count)
    ]
    assert order(pending, tenants=tenants) == naive(pending, tenants)


@settings(max_examples=200)
@given(data=st.data())
def test_fair_slots_are_all_given_and_nobody_can_be_given_more_without_hurting_who_has_less(data):
    names = "abcd"[: data.draw(st.integers(1, 4))]
    demand = {name: data.draw(st.integers(0, 50)) for name in names}
    tenants = {
        name: TenantView(
            data.draw(st.sampled_from([0.5, 1.0, 3.0])),
            data.draw(st.sampled_from([0, 0, 7])),
            data.draw(st.sampled_from([None, None, 12])),
        )
        for name in names
    }
    slots = data.draw(st.integers(0, 60))
    fair = fair_slots(demand, tenants, slots)
    most = {
        name: min(demand[name], 10**9 if tenants[name].limit_slots is None else tenants[name].limit_slots)
        for name in names
    }
    assert sum(fair.values()) == pytest.approx(min(slots, sum(most.values())))
    assert all(-1e-9 <= fair[name] <= most[name] + 1e-9 for name in names)
    reserved = {name: min(most[name], tenants[name].reserved_slots) for name in names}
    if sum(reserved.values()) <= slots:
        assert all(fair[name] >= reserved[name] - 1e-9 for name in names)
        for one, two in itertools.permutations(names, 2):
            unmet, could_give = fair[one] < most[one] - 1e-6, fair[two] > reserved[two] + 1e-6
            if unmet and could_give:
                assert fair[one] / tenants[one].weight >= fair[two] / tenants[two].weight - 1e-6


def test_more_reserved_than_there_is_shrinks_for_all_alike():
    tenants = {"a": TenantView(1.0, 30), "b": TenantView(1.0, 10)}
    assert fair_slots({"a": 50, "b": 50}, tenants, 20) == {"a": 15.0, "b": 5.0}
