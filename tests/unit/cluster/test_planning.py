"""Which worker gets which batch, and who goes on elsewhere: the scheduler's plans on a job."""

import pytest

from cluster.planning import Facts, Paces, Planner, Seat
from worldkv.runs.batch import Batch
from worldkv.stats import MemoryStats, TierStats, WorkerStats, WorkStats

MIB = 2**20
ALL = [Batch(number, (number // 2,), ("sliding", "worldkv")[number % 2]) for number in range(6)]


def memory(used: int = 0, device: int = 64 * MIB) -> WorkStats:
    tiers = (TierStats("device", 1, used, device, 0), TierStats("node", 1, 9 * MIB, 2**30, 0))
    return WorkStats(MemoryStats(lookups=0, hits=0, tiers=tiers))


def seat(slot: int, batch: Batch | None = None, *, chunk: int = 0, seconds: float = 0.0, **changes: object) -> Seat:
    number = None if batch is None else batch.number
    told = WorkerStats(
        str(slot), "host", "t", batch=number, chunk=chunk, chunks=100, chunk_seconds=seconds, work=memory(MIB)
    )
    return Seat(slot, f"n{slot}", **{"batch": batch, "stats": told} | changes)


@pytest.fixture
def planner() -> Planner:
    return Planner(Facts("t", {"sliding": 0, "worldkv": MIB}, ("sliding", "worldkv"), world_bytes=MIB))


def told(planner: Planner, *seats: Seat) -> None:
    for one in seats:
        planner.paces.note(one)


def test_a_worker_gets_worlds_that_it_has_drawn_then_worlds_that_nobody_has(planner):
    planner.drawn = {0: (1,)}
    assert planner.assign([seat(0)], ALL) == [(0, ALL[2])]
    planner.drawn = {}
    assert planner.assign([seat(0), seat(1, ALL[0])], ALL[1:]) == [(0, ALL[2])]
    busy = [seat(1, ALL[0]), seat(2, ALL[2]), seat(3, ALL[4])]
    assert planner.assign([seat(0), *busy], [ALL[1], ALL[3]]) == [(0, ALL[1])]


def test_worlds_that_are_drawn_come_first_however_many_batches_wait(planner):
    many = [Batch(number, (number // 2,), "sliding") for number in range(400)]
    planner.drawn = {0: (199,)}
    assert planner.assign([seat(0)], many) == [(0, many[398])]


def test_two_workers_do_not_draw_the_same_worlds(planner):
    assert {batch.seeds for _, batch in planner.assign([seat(0), seat(1)], ALL)} == {(0,), (1,)}
    planner.drawn = {0: (2,), 1: (1,)}
    assert sorted(planner.assign([seat(0), seat(1)], ALL), key=lambda one: one[0]) == [(0, ALL[4]), (1, ALL[2])]


def test_workers_that_leave_or_are_at_work_get_nothing(planner):
    assert planner.assign([seat(0, leaving=True), seat(1, ALL[0])], ALL[1:]) == []


def test_a_batch_goes_back_to_the_node_that_wrote_it_down(planner):
    planner.left_at[3] = ("n1", MIB)
    assert planner.assign([seat(0), seat(1), seat(2)], [ALL[3]]) == [(1, ALL[3])]
    assert planner.assign([seat(0), seat(1, ALL[0])], [ALL[3]]) == [(0, ALL[3])], "not where there is no room"


def test_batches_are_spread_over_failure_domains(planner):
    seats = [seat(0, domain="a"), seat(1, domain="a"), seat(2, domain="b")]
    assert {slot for slot, _ in planner.assign(seats, [ALL[0], ALL[2]])} == {0, 2}


def test_windows_that_are_larger_than_a_tier_make_do(planner):
    small = seat(0, stats=WorkerStats("0", "host", "t", work=memory(0, device=10)))
    assert planner.assign([small], [ALL[1]]) == [(0, ALL[1])]
    assert planner.assign([seat(0, stats=None)], [ALL[1]]) == [(0, ALL[1])]


def test_a_slow_worker_is_relieved_by_a_fast_one_that_has_nothing_to_do(planner):
    fast, slow = seat(1, ALL[1], chunk=60, seconds=0.1), seat(0, ALL[3], chunk=20, seconds=1.0)
    told(planner, fast, slow)
    assert planner.moves([slow, seat(1)]) == [(ALL[3], 1)]
    assert planner.moves([seat(0, ALL[3], chunk=98, seconds=1.0), seat(1)]) == [], "it is nearly done"
    assert planner.moves([slow, fast]) == [], "the other is at work too"


def test_nobody_goes_elsewhere_on_a_guess(planner):
    slow = seat(0, ALL[3], chunk=20, seconds=1.0)
    told(planner, slow)
    assert planner.moves([slow, seat(1)]) == [], "the other has made no chunk yet"
    told(planner, seat(1, ALL[0], chunk=9, seconds=0.01))
    assert planner.moves([slow, seat(1)]) == [], "of another policy nothing follows"


def test_what_cannot_go_on_from_a_chunk_stays(planner):
    bound = Planner(Facts("t", planner.facts.window_bytes, ("sliding",), MIB))
    fast, slow = seat(1, ALL[1], chunk=60, seconds=0.1), seat(0, ALL[3], chunk=20, seconds=1.0)
    told(bound, fast, slow)
    assert bound.moves([slow, seat(1)]) == []


def test_a_pace_follows_the_newest_chunks_each_counted_once():
    paces = Paces()
    for seconds, chunk in ((1.0, 1), (1.0, 1), (2.0, 2), (9.0, 2)):
        paces.note(seat(0, ALL[0], chunk=chunk, seconds=seconds))
    paces.note(seat(0, ALL[0], chunk=0, seconds=50.0))
    paces.note(seat(0, None, chunk=3, seconds=50.0))
    assert paces.seconds(0, "sliding") == pytest.approx(1.2)
    assert paces.speeds() == {}
    paces.note(seat(1, ALL[2], chunk=1, seconds=0.6))
    assert paces.speeds() == pytest.approx({0: 0.75, 1: 1.5})
    paces.forget(0)
    assert (paces.seconds(0, "sliding"), paces.speeds()) == (None, {})


def test_a_batch_takes_along_what_is_not_shared(planner):
    assert planner.stored_bytes(seat(0, ALL[0], chunk=1)) == MIB
    assert planner.stored_bytes(seat(0, ALL[0], stats=None)) == 0
