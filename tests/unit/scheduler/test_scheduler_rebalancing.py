import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.rebalancing import plan_moves
from scheduler.snapshot import ClusterView, Resources, RunningView, WorkerView, running_table
from worldkv.errors import SnapshotError

ROOM = Resources(8, 100, 100)


def worker(name, **changes):
    return WorkerView(name, f"node-{name}", changes.pop("total", ROOM), **changes)


def running(session, where, remaining=1000.0, nbytes=0, needs=Resources(1, 10, 10), **changes):  # noqa: B008  # frozen
    workers = where if isinstance(where, tuple) else (where,)
    return RunningView(session, "t", workers, needs, 0.0, remaining, nbytes, **changes)


def moves(workers, sessions, **options):
    return plan_moves(ClusterView(0.0, tuple(workers), running_table(sessions)), **options)


def test_a_balanced_cluster_moves_nobody():
    assert moves([worker("a"), worker("b")], [running("x", "a"), running("y", "b")]) == ()
    assert moves([worker("a"), worker("b")], [running("x", "a")]) == ()
    assert moves([], []) == ()


def test_a_crowded_worker_is_relieved_towards_the_emptiest():
    found = moves([worker("a"), worker("b"), worker("c")], [running(f"x{n}", "a") for n in range(3)])
    assert [(one.from_worker, one.to_worker) for one in found] == [("a", "b"), ("a", "c")]
    assert all(one.gains_seconds > 0 for one in found)


def test_a_move_that_costs_more_than_it_gains_is_not_made():
    heavy = [running(f"x{n}", "a", remaining=10.0, nbytes=10**12) for n in range(3)]
    assert moves([worker("a"), worker("b")], heavy) == ()
    assert moves([worker("a"), worker("b")], [running(f"x{n}", "a") for n in range(3)], bytes_per_second=0.0) == ()


def test_the_session_that_is_carried_most_easily_goes():
    sessions = [running("heavy", "a", nbytes=10**11), running("light", "a", nbytes=10**9)]
    (move,) = moves([worker("a"), worker("b")], sessions)
    assert move.session == "light"


def test_a_draining_worker_gives_its_sessions_away_whatever_it_costs():
    sessions = [running("x", "a", remaining=1.0, nbytes=10**12), running("y", "a", leaving=True), running("z", "b")]
    (move,) = moves([worker("a", draining=True), worker("b")], sessions)
    assert (move.session, move.to_worker, move.gains_seconds) == ("x", "b", float("inf"))


def test_sharded_sessions_and_those_that_leave_stay():
    twins = (WorkerView("a", "n", ROOM), WorkerView("b", "n", ROOM), WorkerView("c", "n", ROOM))
    sharded = [running(f"x{n}", ("a", "b")) for n in range(3)]
    assert moves(twins, sharded) == ()
    assert moves(twins, [running(f"x{n}", "a", leaving=True) for n in range(3)]) == ()


def test_who_could_not_go_on_elsewhere_stays():
    assert moves([worker("a"), worker("b")], [running(f"x{n}", "a", may_leave=False) for n in range(3)]) == ()


def test_a_slow_worker_gives_its_session_to_a_fast_one_that_has_nothing_to_do():
    slow = worker("a", speed=0.25)
    (move,) = moves([slow, worker("b")], [running("x", "a", remaining=40.0)])
    assert (move.session, move.to_worker) == ("x", "b")
    assert move.gains_seconds == 40.0 * (1 - 0.25) - 1.0
    assert moves([slow, worker("b")], [running("x", "a", remaining=2.0)]) == (), "hardly anything is left to gain"
    assert moves([slow, worker("b")], [running("x", "b")]) == ()
    assert moves([slow, worker("b", speed=0.2)], [running("x", "a")]) == ()


def test_where_there_is_no_room_nobody_goes():
    full = worker("b", total=Resources(8, 5, 100))
    assert moves([worker("a"), full], [running(f"x{n}", "a") for n in range(3)]) == ()
    assert moves([worker("a", draining=True), full], [running("x", "a")]) == ()


def test_the_emptiest_that_has_room_may_be_too_crowded_to_help():
    full = worker("b", total=Resources(8, 5, 100))
    sessions = [*(running(f"x{n}", "a") for n in range(3)), *(running(f"y{n}", "c") for n in range(2))]
    assert moves([worker("a"), full, worker("c")], sessions) == ()


def test_a_round_makes_no_more_moves_than_it_may():
    sessions = [running(f"x{n}", "a") for n in range(8)]
    assert len(moves([worker("a"), worker("b"), worker("c")], sessions, most=2)) == 2


def test_a_contradiction_is_refused():
    with pytest.raises(SnapshotError):
        moves([worker("a")], [running("x", "nowhere")])
    with pytest.raises(SnapshotError, match=r"worker a: speed=0.0: must be above 0"):
        moves([worker("a", speed=0.0)], [])


@given(seed=st.integers(0, 10**6))
def test_no_worker_is_given_more_than_it_has_and_none_ends_more_crowded_than_the_fullest_was(seed):
    rng = np.random.default_rng(seed)
    workers = [worker(f"w{n}", draining=bool(rng.random() < 0.2)) for n in range(int(rng.integers(1, 6)))]
    sessions = []
    load = {one.worker: 0 for one in workers}
    for number in range(int(rng.integers(0, 20))):
        name = workers[int(rng.integers(len(workers)))].worker
        if load[name] < 8:
            load[name] += 1
            remaining, nbytes = float(rng.uniform(0, 500)), int(rng.integers(0, 10**10))
            sessions.append(running(f"s{number}", name, remaining, nbytes))
    found = moves(workers, sessions)
    fullest = max(load.values(), default=0)
    assert len({one.session for one in found}) == len(found)
    for one in found:
        load[one.from_worker] -= 1
        load[one.to_worker] += 1
    open_to = [one.worker for one in workers if not one.draining]
    assert all(load[name] <= 8 for name in load)
    assert all(one.to_worker in open_to for one in found)
    assert all(one.to_worker != one.from_worker for one in found)
    assert not found or max(load[name] for name in open_to) <= max(fullest, 8)
    assert moves(workers, sessions) == found
