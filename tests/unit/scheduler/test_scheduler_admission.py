"""Who may start where only numbers count: reservations, shares, limits; who is first is not passed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.admission import plan_admission
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
from worldkv.errors import SnapshotError


def waiting(session, tenant="t", slots=1, **changes):
    return PendingView(session, tenant, Resources(slots), **changes)


def running(session, tenant="t", slots=1, **changes):
    return RunningView(session, tenant, ("all",), Resources(slots), **changes)


def view(pending=(), held=(), tenants=None, slots=8, now=0.0):
    floor = (WorkerView("all", "all", Resources(slots)),)
    return ClusterView(now, floor, running_table(held), pending_table(pending), tenants or {})


def test_nobody_waits_and_nobody_starts():
    plan = plan_admission(view())
    assert (plan.started, plan.suspended, plan.order) == ((), (), ())


def test_as_many_of_the_first_start_as_there_is_room_for():
    plan = plan_admission(view([waiting("a", slots=4), waiting("b", "u", 3), waiting("c", "v", 2)]))
    assert plan.started == ("a", "b")
    assert plan.order == ("a", "b", "c")


def test_who_is_first_is_not_passed():
    plan = plan_admission(view([waiting("large", "u", 5), waiting("small")], [running("r", slots=4)]))
    assert plan.order == ("large", "small")
    assert plan.started == ()


def test_a_reservation_stays_free_for_its_owner_and_is_served_first():
    tenants = {"kept": TenantView(reserved_slots=3)}
    flood = [waiting(f"f{n}", "flood") for n in range(9)]
    assert len(plan_admission(view(flood, tenants=tenants)).started) == 5
    held = [running(f"r{n}", "flood") for n in range(5)]
    plan = plan_admission(view([*flood, waiting("k", "kept", 2)], held, tenants))
    assert plan.started == ("k",)


def test_who_is_below_its_share_has_others_give_way():
    held = [running(f"r{n}", "flood", slots=2, started_seconds=float(n)) for n in range(4)]
    plan = plan_admission(view([waiting("q", "quiet", 2)], held, now=1.0))
    assert (plan.started, plan.suspended) == ((), ("r3",))
    leaving = [*held[:3], running("r3", "flood", slots=2, leaving=True)]
    assert plan_admission(view([waiting("q", "quiet", 2)], leaving, now=2.0)).suspended == ()


def test_limits_are_kept():
    plan = plan_admission(view([waiting("a", slots=3), waiting("b")], tenants={"t": TenantView(limit_slots=2)}))
    assert (plan.started, plan.order) == ((), ())


def test_a_contradiction_is_refused():
    with pytest.raises(SnapshotError, match="its sessions take 9 slots, it has 8"):
        plan_admission(view(held=[running("r", slots=9)]))


BATCHES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 300)), max_size=12)


@given(pending=BATCHES, held=BATCHES, reserved=st.integers(0, 5), limit=st.integers(0, 9))
def test_no_more_is_started_than_there_is_and_everyone_once(pending, held, reserved, limit):
    tenants = {"a": TenantView(2.0, reserved), "b": TenantView(limit_slots=limit)}
    wait = [waiting(f"p{n}", who, slots, waits_since_seconds=float(at)) for n, (who, slots, at) in enumerate(pending)]
    there = [running(f"r{n}", who, slots, started_seconds=float(at)) for n, (who, slots, at) in enumerate(held)]
    taken = sum(one.needs.slots for one in there)
    cluster = view(wait, there, tenants, max(16, taken), 300.0)
    plan = plan_admission(cluster)
    needs = {one.session: one for one in wait}
    started = [needs[name] for name in plan.started]
    assert taken + sum(one.needs.slots for one in started) <= max(16, taken)
    assert len(set(plan.started)) == len(plan.started)
    assert plan.started == plan.order[: len(plan.started)]
    b_holds = sum(one.needs.slots for one in there if one.tenant == "b")
    b_gets = sum(one.needs.slots for one in started if one.tenant == "b")
    assert not b_gets or b_holds + b_gets <= limit
    if any(one.tenant != "a" for one in started):
        a_holds = sum(one.needs.slots for one in [*there, *started] if one.tenant == "a")
        assert max(16, taken) - taken - sum(one.needs.slots for one in started) >= reserved - a_holds
    assert plan_admission(cluster) == plan
