"""Chunks brought near before they are asked for, and what became of that."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from worldkv.memory.mover import VerifyingMover
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.stats import PrefetchStats


def three_chunks(new_chunk, make_memory):
    """A memory with two chunks near and one further off."""
    chunks = [new_chunk(i) for i in range(3)]
    memory = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    assert memory.lying() == [[chunks[1].id, chunks[2].id], [chunks[0].id]]
    return memory, *chunks


class Held(DiskTier):
    """A disk whose reads begin when the test says so."""

    def get(self, chunk_id):
        assert self.open_gate.wait(5)
        return super().get(chunk_id)


@pytest.fixture
def disk_spans():
    """What the memory of `slow` told its listener."""
    return []


@pytest.fixture
def slow(new_chunk, tmp_path: Path, disk_spans):
    """(memory, chunks): two near, one on a disk that waits for `memory.tiers[1].open_gate`."""
    chunks = [new_chunk(i, tokens=600) for i in range(3)]
    near = ResidentTier("device", torch.device("cpu"), 2 * chunks[0].nbytes)
    disk = Held.open("disk", tmp_path / "chunks", 8 * chunks[0].nbytes)
    disk.open_gate = threading.Event()
    memory = ChunkMemory(
        [near, disk], "weights-a", mover=VerifyingMover(readers=ThreadPoolExecutor(1)), listener=disk_spans.append
    )
    for chunk in chunks:
        memory.admit(chunk)
    yield memory, chunks
    disk.open_gate.set()
    memory.close()


def test_a_prefetched_chunk_is_near_when_it_is_asked_for_and_that_was_useful_once(new_chunk, make_memory):
    memory, a, b, c = three_chunks(new_chunk, make_memory)
    expected = memory.prefetch([a.id])
    assert memory.lying() == [[c.id, a.id], [b.id]]
    assert memory.stats().lookups == 0
    memory.fetch([a.id, a.id])
    expected.let_go()
    assert memory.stats().prefetch == PrefetchStats(issued=1, issued_bytes=a.nbytes, useful=1)
    assert [tier.hits for tier in memory.stats().tiers] == [2, 0]


def test_what_lies_near_already_or_nowhere_is_not_moved(new_chunk, make_memory):
    memory, _, b, _ = three_chunks(new_chunk, make_memory)
    memory.prefetch([b.id, "no such chunk"])
    assert memory.stats().prefetch == PrefetchStats()


def test_another_tenants_chunk_is_not_prefetched(new_chunk, make_memory):
    memory, a, *_ = three_chunks(new_chunk, make_memory)
    memory.prefetch([a.id], tenant="somebody else")
    assert memory.stats().prefetch.issued == 0


def test_what_is_expected_stays_until_it_is_let_go(new_chunk, make_memory):
    memory, a, b, c = three_chunks(new_chunk, make_memory)
    expected = memory.prefetch([a.id, b.id])
    memory.fetch([c.id])
    memory.admit(new_chunk(3))
    assert set(memory.lying()[0]) == {a.id, b.id}
    expected.let_go()
    expected.let_go()
    memory.fetch([c.id])
    assert c.id in memory.lying()[0]


def test_an_expected_chunk_that_leaves_before_anyone_asks_was_wasted(new_chunk, make_memory):
    memory, a, b, _ = three_chunks(new_chunk, make_memory)
    memory.prefetch([a.id]).let_go()
    memory.demote([a.id])
    memory.fetch([a.id, b.id])
    assert memory.stats().prefetch == PrefetchStats(issued=1, issued_bytes=a.nbytes, wasted=1)


def test_a_damaged_chunk_cannot_be_prefetched(new_chunk, make_memory, damage):
    memory, a, *_ = three_chunks(new_chunk, make_memory)
    damage(memory.tiers[1], a.id)
    memory.prefetch([a.id])
    assert memory.fetch([a.id]) == [None]
    assert (memory.stats().prefetch.late, memory.stats().quarantined) == (1, 1)


def test_no_prefetch_takes_the_place_of_a_chunk_that_is_held(new_chunk, make_memory):
    memory, a, b, c = three_chunks(new_chunk, make_memory)
    with memory.pin([b.id, c.id]):
        memory.prefetch([a.id])
        assert memory.lying() == [[b.id, c.id], [a.id]]
    assert memory.stats().prefetch == PrefetchStats()


@pytest.mark.parametrize("asked", [True, False])
def test_a_time_line_shows_what_was_on_its_way_and_what_came_of_it(slow, disk_spans, asked):
    memory, (a, *_) = slow
    expected = memory.prefetch([a.id])
    assert not [span for span in disk_spans if span.track.startswith("prefetch")]
    memory.tiers[1].open_gate.set()
    if asked:
        memory.fetch([a.id])
    expected.let_go()
    (span,) = [span for span in disk_spans if span.track.startswith("prefetch")]
    assert (span.track, span.name, span.about["tier"], span.about["chunk"]) == ("prefetch 1", "prefetch", "disk", a.id)
    assert span.about["outcome"] in (("in time", "late") if asked else ("given up",))
    assert span.started < span.ended


def test_chunks_on_their_way_together_are_shown_side_by_side(slow, disk_spans):
    memory, (a, b, c) = slow
    memory.demote([b.id, c.id])
    expected = memory.prefetch([a.id, b.id])
    memory.tiers[1].open_gate.set()
    memory.fetch([a.id, b.id])
    expected.let_go()
    assert [span.track for span in disk_spans if span.name == "prefetch"] == ["prefetch 1", "prefetch 2"]


def test_others_read_a_disk_while_its_owner_goes_on(slow):
    memory, (a, b, c) = slow
    expected = memory.prefetch([a.id])
    assert memory.lying() == [[b.id, c.id], [a.id]], "nothing has moved yet"
    memory.fetch([b.id])
    memory.tiers[1].open_gate.set()
    memory._ahead._coming[memory._catalogue.find("default", a.id)][1].reading.result(5)
    found = memory.fetch([a.id])
    expected.let_go()
    assert [chunk.id for chunk in found] == [a.id]
    assert memory.stats().prefetch == PrefetchStats(issued=1, issued_bytes=memory.tiers[1].cost_bytes(a), useful=1)
    assert [tier.hits for tier in memory.stats().tiers] == [2, 0]


def test_who_asks_too_early_waits_and_that_is_late(slow):
    memory, (a, *_) = slow
    expected = memory.prefetch([a.id])
    threading.Timer(0, memory.tiers[1].open_gate.set).start()
    assert memory.fetch([a.id])[0].id == a.id
    expected.let_go()
    stats = memory.stats().prefetch
    assert stats.issued == stats.late + stats.useful == 1


def test_who_has_a_deadline_does_not_wait(slow):
    memory, (a, *_) = slow
    memory.prefetch([a.id])
    assert memory.fetch([a.id], deadline=0.0) == [None]
    assert memory.stats().misses["late"] == 1
    memory.tiers[1].open_gate.set()
    assert memory.fetch([a.id])[0].id == a.id


def test_what_is_still_on_its_way_when_nobody_expects_it_any_more_was_wasted(slow):
    memory, (a, b, c) = slow
    first, second = memory.prefetch([a.id]), memory.prefetch([a.id])
    first.let_go()
    assert memory.stats().prefetch.wasted == 0
    second.let_go()
    assert memory.stats().prefetch == PrefetchStats(issued=1, issued_bytes=memory.tiers[1].cost_bytes(a), wasted=1)
    memory.tiers[1].open_gate.set()
    assert memory.lying() == [[b.id, c.id], [a.id]]
    assert memory.check_integrity() == []


def test_what_somebody_else_holds_where_it_lies_is_not_moved_under_them(slow):
    memory, (a, *_) = slow
    memory.prefetch([a.id])
    with memory.pin([a.id]):
        memory.tiers[1].open_gate.set()
        assert memory.fetch([a.id])[0].id == a.id
        assert a.id in memory.lying()[1]
