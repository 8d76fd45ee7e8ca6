from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.placement import PlacementSettings, plan_placement
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

ROOM = Resources(1, 100, 100)


def workers(nodes=4, each=4, room=ROOM, **changes):
    return tuple(WorkerView(f"n{n}w{w}", f"n{n}", room, **changes) for n in range(nodes) for w in range(each))


def view(pending=(), running=(), tenants=None, now=0.0, floor=None):
    floor = workers() if floor is None else floor
    return ClusterView(now, floor, running_table(running), pending_table(pending), tenants or {})


def waiting(session, tenant="t", needs=Resources(1, 10, 10), **changes):  # noqa: B008  # frozen
    return PendingView(session, tenant, needs, **changes)


def placed(plan):
    return dict(plan.placed)


def node(worker):
    return worker.partition("w")[0]


def test_an_empty_cluster_gives_an_empty_plan():
    plan = plan_placement(view(floor=()))
    assert (plan.placed, plan.suspended, dict(plan.waiting)) == ((), (), {})
    assert plan_placement(view([waiting("a")], floor=())).waiting == {"room": 1}


def test_a_contradiction_is_refused():
    with pytest.raises(SnapshotError, match="waits twice"):
        plan_placement(view([waiting("a"), waiting("a")]))


def test_sessions_are_spread_over_failure_domains():
    plan = plan_placement(view([waiting(f"s{n}") for n in range(6)]))
    per_node = Counter(node(where[0]) for where in placed(plan).values())
    assert len(placed(plan)) == 6
    assert max(per_node.values()) - min(per_node.values()) <= 1
    racks = tuple(
        WorkerView(f"n{n}w{w}", f"n{n}", ROOM, domain="even" if n % 2 else "odd") for n in range(4) for w in range(4)
    )
    two = placed(plan_placement(view([waiting("a"), waiting("b")], floor=racks)))
    assert {int(node(where[0])[1:]) % 2 for where in two.values()} == {0, 1}


def test_dead_and_draining_workers_take_nobody():
    floor = (*workers(1, 2, alive=False), *(WorkerView("d", "d", ROOM, draining=True),), WorkerView("ok", "ok", ROOM))
    plan = plan_placement(view([waiting("a"), waiting("b")], floor=floor))
    assert placed(plan) == {"a": ("ok",)}
    assert plan.waiting == {"room": 1}


def test_a_session_goes_where_its_chunks_lie():
    plan = plan_placement(view([waiting("a", near={"n2w3": 10**10}), waiting("b", near={"n3": 10**10, "gone": 1})]))
    assert placed(plan)["a"] == ("n2w3",)
    assert node(placed(plan)["b"][0]) == "n3"


def test_load_outweighs_nearness_where_that_is_slower():
    floor = workers(2, 1, Resources(4, 100, 100))
    busy = [RunningView(f"r{n}", "t", ("n0w0",), Resources(1, 10, 10)) for n in range(2)]
    near = waiting("a", near={"n0w0": 10 * 10**9})  # 10 s of copying against 60 s of crowding
    assert placed(plan_placement(view([near], busy, floor=floor)))["a"] == ("n1w0",)
    nearer = waiting("a", near={"n0w0": 100 * 10**9})
    assert placed(plan_placement(view([nearer], busy, floor=floor)))["a"] == ("n0w0",)


def test_near_but_full_is_no_place():
    full = [RunningView("r", "t", ("n0w0",), ROOM)]
    plan = plan_placement(view([waiting("a", near={"n0w0": 10**12})], full))
    assert placed(plan)["a"] != ("n0w0",)


def test_a_gang_gets_distinct_workers_of_one_node():
    plan = plan_placement(view([waiting("g", gang=4), waiting("h", gang=2), waiting("s")]))
    where = placed(plan)
    assert len(set(where["g"])) == 4
    assert len({node(worker) for worker in where["g"]}) == 1
    assert len({node(worker) for worker in where["h"]}) == 1
    assert len({worker for group in where.values() for worker in group}) == 7


def test_single_sessions_leave_whole_nodes_to_gangs_that_wait():
    pending = [*(waiting(f"s{n}") for n in range(4)), *(waiting(f"g{n}", "u", gang=4) for n in range(3))]
    plan = plan_placement(view(pending))
    assert len(placed(plan)) == 7


def test_a_gang_too_large_waits_and_says_so():
    plan = plan_placement(view([waiting("g", gang=5)]))
    assert plan.waiting == {"gang": 1}


def test_a_starving_gang_has_a_node_kept_free_until_it_fits():
    busy = [RunningView(f"r{n}", "u", (f"n{n}w0",), Resources(1, 10, 10)) for n in range(4)]
    gang = waiting("g", gang=4, waits_since_seconds=0.0)
    singles = [waiting(f"s{n}", "u", waits_since_seconds=190.0) for n in range(20)]
    patient = plan_placement(view([gang, *singles], busy, now=60.0))
    assert patient.kept_free == {}
    assert len(placed(patient)) == 12
    starving = plan_placement(view([gang, *singles], busy, now=200.0))
    assert starving.kept_free == {"n0": "g"}
    assert len(placed(starving)) == 9
    assert "n0" not in {node(where[0]) for where in placed(starving).values()}
    freed = plan_placement(view([gang, *singles], busy[1:], now=200.0))
    assert {node(worker) for worker in placed(freed)["g"]} == {"n0"}
    # A node without enough workers is of no use to it.
    lone = plan_placement(view([gang], floor=workers(2, 1), now=200.0))
    assert lone.kept_free == {}


def test_what_is_kept_free_is_given_to_whom_it_is_kept_for():
    busy = [RunningView(f"r{n}", "u", (f"n{n}w0",), Resources(1, 10, 10)) for n in range(4)]
    one, two = waiting("g", gang=4), waiting("h", gang=3, waits_since_seconds=1.0)
    plan = plan_placement(view([one, two], busy, now=200.0))
    assert plan.kept_free == {"n0": "g"}
    assert node(placed(plan)["h"][0]) != "n0"
    near = waiting("near", near={"n0": 10**12}, waits_since_seconds=190.0)
    assert node(placed(plan_placement(view([one, near], busy, now=200.0)))["near"][0]) != "n0"


def test_memory_that_does_not_fit_passes_a_worker_over():
    floor = (WorkerView("small", "a", Resources(4, 10, 100)), WorkerView("large", "b", Resources(4, 100, 100)))
    pending = [waiting(f"s{n}", needs=Resources(1, 40, 10)) for n in range(4)]
    plan = plan_placement(view(pending, floor=floor))
    assert set(placed(plan).values()) == {("large",)}
    assert len(placed(plan)) == 2
    assert plan.waiting == {"room": 2}


def test_what_finds_no_room_leaves_it_to_those_behind():
    large = [waiting(f"l{n}", "a", needs=Resources(1, 101, 10)) for n in range(16)]
    small = [waiting(f"s{n}", "b") for n in range(16)]
    assert len(placed(plan_placement(view([*large, *small])))) >= 14


def held_by(tenant, names, **changes):
    return [
        RunningView(f"{tenant}-{name}", tenant, (name,), Resources(1, 10, 10), started_seconds=float(place), **changes)
        for place, name in enumerate(names)
    ]


ALL = [worker.worker for worker in workers()]


def test_who_is_below_its_share_has_others_give_way_once_it_waited():
    running = held_by("flood", ALL)
    pending = [waiting(f"q{n}", "quiet", waits_since_seconds=0.0) for n in range(20)]
    patient = PlacementSettings(patience_seconds=5.0)
    assert plan_placement(view(pending, running, now=4.0), patient).suspended == ()
    assert plan_placement(view(pending, running, now=0.0)).suspended == (), "who came this round may find room yet"
    plan = plan_placement(view(pending, running, now=6.0), patient)
    # Half of 16, the latest started first: what ran for longest is nearest to its end.
    assert plan.suspended == tuple(f"flood-{name}" for name in ALL[:7:-1])


def test_whose_next_chunk_is_done_first_gives_way_first():
    running = [replace(one, boundary_seconds=9.0 - place % 4) for place, one in enumerate(held_by("flood", ALL))]
    pending = [waiting(f"q{n}", "quiet") for n in range(4)]
    plan = plan_placement(view(pending, running, now=6.0))
    assert plan.suspended == tuple(f"flood-{ALL[place]}" for place in (15, 11, 7, 3))


def test_who_could_not_go_on_elsewhere_does_not_give_way():
    running = [*held_by("flood", ALL[:14]), *held_by("bound", ALL[14:], may_leave=False)]
    running = [replace(one, tenant="flood") for one in running]
    plan = plan_placement(view([waiting(f"q{n}", "quiet") for n in range(20)], running, now=6.0))
    assert len(plan.suspended) == 8
    assert not [name for name in plan.suspended if name.startswith("bound")]


def test_who_gives_way_already_is_counted():
    running = [*held_by("flood", ALL[:10]), *held_by("gone", ALL[10:], leaving=True)]
    pending = [waiting(f"q{n}", "quiet") for n in range(20)]
    # Eight are owed; six are on their way.
    assert len(plan_placement(view(pending, running, now=6.0)).suspended) == 2


def test_nobody_gives_way_to_its_own_tenant_or_within_its_share():
    running = held_by("t", ALL)
    assert plan_placement(view([waiting("more", "t")], running, now=60.0)).suspended == ()
    both = [*held_by("a", ALL[:8]), *held_by("b", ALL[8:])]
    assert plan_placement(view([waiting("more", "a")], both, now=60.0)).suspended == ()


def test_a_reservation_is_given_back_to_its_owner():
    running = held_by("flood", ALL)
    pending = [waiting(f"q{n}", "quiet") for n in range(20)]
    tenants = {"flood": TenantView(15.0), "quiet": TenantView(1.0, reserved_slots=6)}
    assert len(plan_placement(view(pending, running, tenants, now=6.0)).suspended) == 6


def test_a_reservation_is_kept_free_while_it_is_not_wanted():
    flood = [waiting(f"f{n}", "flood") for n in range(20)]
    tenants = {"quiet": TenantView(1.0, reserved_slots=6)}
    plan = plan_placement(view(flood, tenants=tenants))
    assert len(placed(plan)) == 10
    arrived = [waiting(f"q{n}", "quiet") for n in range(4)]
    both = placed(plan_placement(view([*flood, *arrived], tenants=tenants)))
    assert {one.session for one in arrived} <= set(both)
    assert len(both) == 14
    # A sharded session does not fit beside the reservation, those behind it do.
    gang = waiting("gang", "first", gang=4)
    held = held_by("flood", ALL[:7])
    rest = placed(plan_placement(view([gang, *flood[:2]], held, tenants)))
    assert set(rest) == {"f0", "f1"}


def test_limits_are_told_apart_from_lack_of_room():
    pending = [waiting(f"a{n}", "a") for n in range(5)]
    plan = plan_placement(view(pending, tenants={"a": TenantView(limit_slots=2)}))
    assert plan.waiting == {"limit": 3}


@settings(max_examples=120)
@given(seed=st.integers(0, 10**6))
def test_no_worker_is_ever_given_more_than_it_has(seed):
    rng = np.random.default_rng(seed)
    floor = tuple(
        WorkerView(
            f"n{n}w{w}",
            f"n{n}",
            Resources(int(rng.integers(1, 4)), int(rng.integers(0, 100)), int(rng.integers(0, 100))),
            alive=bool(rng.random() < 0.9),
            draining=bool(rng.random() < 0.1),
        )
        for n in range(int(rng.integers(1, 5)))
        for w in range(int(rng.integers(1, 5)))
    )
    usable = [worker for worker in floor if worker.alive]
    running = []
    for number in range(int(rng.integers(0, 6)) if usable else 0):
        home = usable[int(rng.integers(len(usable)))]
        if not any(one.workers == (home.worker,) for one in running):
            started = float(rng.integers(100))
            running.append(RunningView(f"r{number}", f"t{number % 2}", (home.worker,), Resources(1), started))
    pending = [
        PendingView(
            f"p{number}",
            f"t{rng.integers(3)}",
            Resources(1, int(rng.integers(0, 60)), int(rng.integers(0, 60))),
            int(rng.choice([1, 1, 1, 2, 3])),
            int(rng.integers(2)),
            float(rng.integers(-200, 0)),
            {f"n{rng.integers(5)}": (10**10), f"n{rng.integers(5)}w0": (10**10)} if rng.random() < 0.5 else {},
        )
        for number in range(int(rng.integers(0, 25)))
    ]
    cluster = view(pending, running, floor=floor)
    plan = plan_placement(cluster, PlacementSettings(starving_seconds=150.0))
    by_name = {worker.worker: worker for worker in floor}
    sessions = {one.session: one for one in pending}
    free = {w.worker: [w.total.slots, w.total.device_bytes, w.total.host_bytes] for w in floor}
    for one in running:
        free[one.workers[0]][0] -= 1
    for name, where in plan.placed:
        one = sessions[name]
        assert len(set(where)) == one.gang
        assert len({by_name[worker].node for worker in where}) == 1
        for worker in where:
            assert by_name[worker].alive
            assert not by_name[worker].draining
            for place, value in enumerate((one.needs.slots, one.needs.device_bytes, one.needs.host_bytes)):
                free[worker][place] -= value
    assert all(min(left) >= 0 for left in free.values())
    assert len({name for name, _ in plan.placed}) == len(plan.placed)
    assert len(plan.placed) + sum(plan.waiting.values()) == len(pending)
    assert set(plan.suspended) <= {one.session for one in running}
    assert plan_placement(cluster, PlacementSettings(starving_seconds=150.0)) == plan
