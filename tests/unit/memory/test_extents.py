"""The books of a slab, against a picture of it that marks every grain."""

from hypothesis import given
from hypothesis import strategies as st

from worldkv.memory.tiers.extents import Extent, Extents

GRAIN = 4
CAPACITY = 24 * GRAIN

# Take so many bytes; or give back, or hold in place, the n-th of what is taken.
operations = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, CAPACITY)),
        st.tuples(st.just("give"), st.integers(0, 30)),
        st.tuples(st.just("hold"), st.integers(0, 30)),
    ),
    max_size=40,
)


def longest_between_held(taken: list[Extent], held: set[Extent]) -> int:
    """Free bytes of the stretch between two held extents that has most of them."""
    stretches, at = [0], 0
    picture = [1] * CAPACITY
    for extent in taken:
        picture[extent.start : extent.stop] = [2 if extent in held else 0] * extent.nbytes
    while at < CAPACITY:
        if picture[at] == 2:
            stretches.append(0)
        stretches[-1] += picture[at] == 1
        at += 1
    return max(stretches)


@given(operations)
def test_taken_extents_never_overlap_and_the_books_add_up(steps):
    books, taken = Extents(CAPACITY + 3, GRAIN), []
    for what, n in steps:
        if what == "take":
            free_before, largest = books.free_bytes, books.largest_free_bytes
            extent = books.take(n)
            assert (extent is not None) == (books.rounded(n) <= largest)
            if extent is not None:
                assert not any(extent.overlaps(other) for other in taken)
                assert books.free_bytes == free_before - extent.nbytes
                taken.append(extent)
        elif what == "give" and taken:
            books.give_back(taken.pop(n % len(taken)))
        assert books.check() == []
        assert books.free_bytes + sum(extent.nbytes for extent in taken) == books.capacity_bytes == CAPACITY


@given(operations, st.integers(1, CAPACITY))
def test_room_is_gathered_whenever_enough_is_free_between_what_must_stay(steps, wanted):
    books, taken, held = Extents(CAPACITY, GRAIN), [], set()
    content = [None] * CAPACITY
    for what, n in steps:
        if what == "take" and (extent := books.take(n)):
            taken.append(extent)
            content[extent.start : extent.stop] = [(extent, i) for i in range(extent.nbytes)]
        elif what == "give" and taken:
            gone = taken.pop(n % len(taken))
            held.discard(gone)
            books.give_back(gone)
        elif what == "hold" and taken:
            held.add(taken[n % len(taken)])

    moves = books.plan_moves(wanted, lambda extent: extent not in held)
    assert (moves is not None) == (books.rounded(wanted) <= longest_between_held(taken, held))
    lies = {extent: extent for extent in taken}
    for move in moves or []:
        assert move.old not in held
        assert move.new.start < move.old.start
        content[move.new.start : move.new.stop] = content[move.old.start : move.old.stop]
        books.apply(move)
        lies[move.old] = move.new
        assert books.check() == []
    if moves is not None:
        assert books.take(wanted) is not None
    for extent, now in lies.items():
        assert content[now.start : now.stop] == [(extent, i) for i in range(extent.nbytes)]


def test_the_cheapest_slide_is_chosen():
    books = Extents(10 * GRAIN, GRAIN)
    a, big, b, small, c, _end = [books.take(n * GRAIN) for n in (1, 4, 1, 1, 1, 2)]
    for gap in (a, b, c):
        books.give_back(gap)
    moves = books.plan_moves(2 * GRAIN, lambda _: True)
    assert [move.old for move in moves] == [small]
    assert books.plan_moves(2 * GRAIN, lambda extent: extent != small)[0].old == big


def test_the_lowest_place_is_taken_first_for_it_is_pinned_first():
    books = Extents(8 * GRAIN, GRAIN)
    first, _second = books.take(GRAIN), books.take(GRAIN)
    books.give_back(first)
    assert books.take(1) == Extent(0, GRAIN)
