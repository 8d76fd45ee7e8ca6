"""Bytes and seconds in the chunk memory's books."""

import pytest
import torch

from worldkv.durations import DurationBook
from worldkv.memory.books import Books
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.stats import SECONDS_BOUNDS, Durations


class Ticking:
    """A clock that goes on by a fixed time whenever it is read."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (10.0, 12), (10.1, 13)])
def test_a_duration_falls_into_the_bucket_that_ends_at_or_above_it(seconds, bucket):
    book = DurationBook()
    book.add(seconds)
    counted = book.frozen()
    assert [place for place, n in enumerate(counted.counts) if n] == [bucket]
    assert (counted.count, counted.seconds) == (1, seconds)


def test_durations_of_one_kind_can_be_added():
    one, two = DurationBook(), DurationBook()
    one.add(0.5)
    two.add(0.5)
    two.add(20.0)
    both = one.frozen() + two.frozen()
    assert (both.count, both.seconds) == (3, 21.0)
    assert both.counts[SECONDS_BOUNDS.index(0.5)] == 2
    assert both + Durations() == both


def test_moves_are_counted_in_chunks_and_bytes(new_chunk, make_memory):
    a, b, c = (new_chunk(i) for i in range(3))
    memory = make_memory(a.nbytes, a.nbytes)
    for chunk in (a, b, c):
        memory.admit(chunk)
    memory.fetch([b.id])
    stats = memory.stats()
    assert (stats.demoted, stats.demoted_bytes) == (3, 3 * a.nbytes)
    assert (stats.promoted, stats.promoted_bytes) == (1, a.nbytes)
    assert (stats.dropped, stats.dropped_bytes) == (1, a.nbytes)


def test_every_hit_is_timed_in_its_tier_and_every_write_where_it_ended(new_chunk, make_memory):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(a.nbytes, 2 * a.nbytes)
    memory.admit(a)
    memory.admit(b)
    memory.fetch([b.id, a.id, "no such chunk"])
    near, far = memory.stats().tiers
    assert (near.fetches.count, far.fetches.count) == (near.hits, far.hits) == (1, 1)
    # a and b came in, and a was not promoted, as b was held by the same fetch.
    assert (near.writes.count, far.writes.count) == (2, 1)
    assert (near.written_bytes, far.written_bytes) == (2 * a.nbytes, a.nbytes)
    assert near.fetches.seconds >= 0.0


def test_the_books_take_their_seconds_from_the_clock_they_were_given(new_chunk):
    heard = []
    books, chunk = Books(Ticking(0.25), heard.append), new_chunk(0)
    books.fetched(0, "host", chunk, books.clock())
    (span,) = heard
    assert (span.started, span.ended, span.track, span.name) == (0.25, 0.5, "tier host", "fetch")
    assert (span.about["chunk"], span.about["tenant"], span.about["bytes"]) == (chunk.id, chunk.tenant, chunk.nbytes)


def test_a_listener_hears_of_every_chunk_that_is_written_or_fetched(new_chunk):
    heard = []
    chunk = new_chunk(0)
    memory = ChunkMemory([ResidentTier("host", torch.device("cpu"), chunk.nbytes)], "weights-a", listener=heard.append)
    memory.admit(chunk)
    memory.fetch([chunk.id, "no such chunk"])
    assert [(span.name, span.about["chunk"]) for span in heard] == [("write", chunk.id), ("fetch", chunk.id)]
