"""Where batches are: each is settled once, in order, whatever happens on the way."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.book import Book
from worldkv.config import load
from worldkv.runs.batch import Batch, batches

ALL = [Batch(number, (number // 2,), ("sliding", "worldkv")[number % 2]) for number in range(6)]


def book(committed: tuple[str, ...] = (), finished: tuple[int, ...] = (), aside: tuple[int, ...] = ()) -> Book:
    return Book(ALL, committed=committed, finished=finished, aside=aside)


def test_the_batches_of_a_run_are_groups_of_worlds_under_each_policy_in_order():
    config = load(None, ["worlds.count=3", "worlds.first_seed=5", "batch_sessions=2", "policies=[full, worldkv]"])
    found = [(batch.number, batch.seeds, batch.policy) for batch in batches(config)]
    assert found == [(0, (5, 6), "full"), (1, (5, 6), "worldkv"), (2, (7,), "full"), (3, (7,), "worldkv")]
    assert batches(config)[1].keys == ("rooms-5/worldkv", "rooms-6/worldkv")


def take(book: Book, ahead: int = 9) -> Batch | None:
    """The first that is pending."""
    near = book.near(ahead)
    if not near:
        return None
    book.take(near[0])
    return near[0]


def test_only_the_first_that_is_not_settled_has_its_turn():
    found = book()
    first, second = take(found), take(found)
    assert (first, second) == (ALL[0], ALL[1])
    assert found.pending == [2, 3, 4, 5]
    found.finish(second)
    assert found.turn() is None
    found.finish(first)
    assert found.turn() == ALL[0]
    found.settle(first)
    assert found.turn() == ALL[1]


def test_what_earlier_drivers_left_is_not_made_again():
    found = book(committed=("rooms-0/sliding",), finished=(1, 2), aside=(3,))
    assert found.turn() == ALL[1]
    assert [take(found) for _ in range(3)] == [ALL[4], ALL[5], None]
    assert found.over == 4


def test_workers_do_not_run_further_ahead_than_they_may():
    found = book()
    assert [take(found, 2) for _ in range(3)] == [ALL[0], ALL[1], None]
    found.finish(ALL[0])
    found.settle(ALL[0])
    assert found.near(2) == [ALL[2]]


@given(st.data())
def test_every_batch_is_settled_once_and_in_order_whatever_fails(data):
    found, under_way, settled = book(), [], []
    for _ in range(400):
        if found.complete:
            break
        if data.draw(st.booleans()) and (batch := take(found, 4)) is not None:
            assert batch not in under_way
            under_way.append(batch)
        elif under_way:
            batch = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            fails = len(settled) < 3 and data.draw(st.booleans())
            found.give_back(batch) if fails else found.finish(batch)
        while (batch := found.turn()) is not None:
            if data.draw(st.booleans()) and len(settled) < 3:
                found.give_back(batch)
                break
            found.settle(batch)
            settled.append(batch.number)
    assert settled == sorted(set(settled))
    assert not found.complete or settled == list(range(len(ALL)))
