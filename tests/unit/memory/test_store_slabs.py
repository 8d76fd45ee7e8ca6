"""The store over slabs, whose bytes are free only once nobody reads them, and over tiers that verify nothing."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worldkv.errors import CapacityError
from worldkv.memory.crossing import Crossing
from worldkv.memory.detail import Detail, Ladder
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.memory.transfer import PlainLink, TransferEngine

CPU = torch.device("cpu")
SLOT = 4096
"""Each chunk of these tests fills less than this."""


def slab(name: str, slots: int):
    return (HostTier if name == "host" else DeviceTier).open(name, *([CPU] if name != "host" else []), slots * SLOT)


def resident(name: str, slots: int):
    return ResidentTier(name, CPU, slots * 1500)


def linked(*slots: int, rules=None, clock=lambda: 0.0) -> ChunkMemory:
    """Slabs, the first two of which exchange chunks through a transfer engine that works inline."""
    tiers = [slab(name, n) for name, n in zip(("device", "host", "last"), slots, strict=False)]
    if len(tiers) == 1:
        return ChunkMemory(tiers, "weights-a", rules)
    crossing = Crossing(TransferEngine(PlainLink(), PlainLink(), clock=clock), *tiers[:2], ThreadPoolExecutor(1))
    return ChunkMemory(tiers, "weights-a", rules, VerifyingMover(crossing, clock))


def plain(make):
    def open_memory(*slots: int, rules=None) -> ChunkMemory:
        return ChunkMemory(
            [make(name, n) for name, n in zip(("device", "host", "last"), slots, strict=False)], "weights-a", rules
        )

    return open_memory


KINDS = {"resident": plain(resident), "slab": plain(slab), "linked": linked}


@pytest.fixture(params=KINDS)
def open_memory(request):
    """Opens a memory of so many chunks per tier; afterwards its books are checked."""
    opened = []

    def make(*slots: int, **kwargs) -> ChunkMemory:
        opened.append(KINDS[request.param](*slots, **kwargs))
        return opened[-1]

    yield make
    for memory in opened:
        assert memory.check_integrity() == []
        memory.close()


def flip(tier, chunk_id: str) -> None:
    """Change a byte of the chunk where it lies."""
    tier.get(chunk_id).encoded.payload_LN.view(-1)[0] ^= 1


def test_what_was_damaged_in_tier_0_is_not_carried_down(open_memory, new_chunk):
    a = new_chunk(0)
    memory = open_memory(2, 2)
    memory.admit(a)
    flip(memory.tiers[0], a.id)
    memory.demote([a.id])
    assert memory.lying() == [[], []]
    assert memory.fetch([a.id]) == [None]
    assert (memory.stats().quarantined, memory.stats().demoted) == (1, 0)
    assert not memory.holds(a.id)


def test_what_was_damaged_below_is_one_corrupt_miss_and_is_not_carried_up(open_memory, new_chunk):
    a = new_chunk(0)
    memory = open_memory(2, 2)
    memory.admit(a)
    memory.demote([a.id])
    flip(memory.tiers[1], a.id)
    assert memory.fetch([a.id]) == [None]
    assert (memory.stats().misses["corrupt"], memory.stats().quarantined, memory.stats().promoted) == (1, 1, 0)
    assert memory.lying() == [[], []]


def test_what_was_damaged_is_not_served_from_where_it_lies_below_tier_0(open_memory, new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    memory = open_memory(1, 1)
    memory.admit(a)
    memory.admit(b)
    flip(memory.tiers[1], a.id)
    with memory.pin([b.id]):  # so that nothing can be promoted
        assert memory.fetch([a.id]) == [None]
    assert memory.stats().misses["corrupt"] == 1


def test_a_damaged_piece_is_fetched_from_another_copy(open_memory, new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    rules = [TierRules(), TierRules(), TierRules(keeps_copies=True)]
    memory = open_memory(2, 2, 2, rules=rules)
    memory.admit(a)
    memory.demote([a.id])
    memory.demote([a.id])
    memory.fetch([a.id])
    assert memory.lying() == [[a.id], [], [a.id]]
    memory.tiers[1].put(a)
    memory._catalogue.enter(memory._catalogue.find("default", a.id), 1, memory.tiers[1].cost_bytes(a))
    memory.tiers[0].remove(a.id)
    memory._catalogue.leave(memory._catalogue.find("default", a.id), 0, "evicted")
    flip(memory.tiers[1], a.id)
    memory.fetch([a.id])[0].verify()
    assert [tier.misses["corrupt"] for tier in memory.stats().tiers] == [0, 1, 0]
    assert (memory.stats().misses["corrupt"], memory.stats().quarantined) == (0, 1)
    memory.admit(b)


def test_damage_is_not_given_a_fresh_digest_by_losing_detail(open_memory, new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    memory = open_memory(1, rules=[TierRules(ladder=Ladder((Detail("int4"),)))])
    memory.admit(a)
    flip(memory.tiers[0], a.id)
    memory.admit(b)
    assert memory.fetch([a.id]) == [None]
    assert memory.stats().quarantined == 1


def test_full_tiers_exchange_chunks_and_lose_none(open_memory, new_chunk):
    chunks = [new_chunk(i) for i in range(6)]
    memory = open_memory(2, 2, 2)
    for chunk in chunks:
        memory.admit(chunk)
    for turn in range(20):
        wanted = [chunks[turn % 6], chunks[turn * turn % 6]]
        for found in memory.fetch([chunk.id for chunk in wanted]):
            found.verify()
        del found
        assert memory.check_integrity() == []
    stats = memory.stats()
    assert (stats.dropped, sum(tier.failures for tier in stats.tiers)) == (0, 0)
    assert stats.promoted > 0


def test_a_chunk_loses_detail_where_it_lies(new_chunk):
    two_slots, one_slot = new_chunk(0, tokens=24), new_chunk(1)
    memory = ChunkMemory([slab("device", 2)], "weights-a", [TierRules(ladder=Ladder((Detail("int8"),)))])
    memory.admit(two_slots)
    memory.admit(one_slot)
    assert (memory.stats().reduced, memory.stats().dropped) == (1, 0)
    assert memory.fetch([two_slots.id])[0].encoded.codec == "int8"
    assert memory.check_integrity() == []


def test_what_a_caller_reads_stays_as_it_was_and_costs_no_other_chunk(open_memory, new_chunk):
    chunks = [new_chunk(i) for i in range(6)]
    memory = open_memory(2, 6)
    for chunk in chunks[:2]:
        memory.admit(chunk)
    read = memory.fetch([chunks[0].id, chunks[1].id])
    for chunk in chunks[2:]:
        memory.admit(chunk)
    for chunk in read:
        chunk.verify()
    assert memory.check_integrity() == []
    del read, chunk
    for found in memory.fetch([chunk.id for chunk in chunks]):
        found.verify()
    assert (memory.stats().dropped, sum(tier.failures for tier in memory.stats().tiers)) == (0, 0)


def test_what_a_caller_reads_below_tier_0_stays_there_and_costs_no_other_chunk(open_memory, new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    memory = open_memory(1, 1)
    memory.admit(a)
    memory.admit(b)
    with memory.pin([b.id]):
        (read,) = memory.fetch([a.id])
    memory.fetch([a.id])[0].verify()
    memory.fetch([b.id])[0].verify()
    read.verify()
    assert (memory.stats().dropped, sum(tier.failures for tier in memory.stats().tiers)) == (0, 0)


def test_a_promotion_that_did_not_happen_is_not_counted(open_memory, new_chunk, monkeypatch):
    a = new_chunk(0)
    memory = open_memory(1, 1)
    memory.admit(a)
    memory.demote([a.id])
    monkeypatch.setattr(type(memory.tiers[0]), "cost_bytes", lambda tier, chunk: 1)
    filled = [memory.tiers[0].put(new_chunk(7))]
    assert memory.fetch([a.id])[0].id == a.id
    assert (memory.stats().promoted, memory.lying()) == (0, [[], [a.id]])
    assert filled == [None]
    memory.tiers[0].remove(new_chunk(7).id)


def test_a_resident_tier_keeps_no_slab_alive(new_chunk):
    a = new_chunk(0)
    memory = ChunkMemory([slab("device", 1), resident("host", 2)], "weights-a")
    memory.admit(a)
    memory.demote([a.id])
    gc.collect()
    assert (memory.tiers[0].used_bytes, memory.lying()) == (0, [[], [a.id]])
    memory.fetch([a.id])[0].verify()


def test_device_and_host_exchange_chunks_over_the_link_and_others_do_not(new_chunk):
    memory, a = linked(1, 2, 2), new_chunk(0)
    engine = memory._mover._crossing.engine
    memory.admit(a)
    memory.demote([a.id])
    memory.demote([a.id])
    assert (engine.stats().down.done, engine.stats().up.done) == (1, 0)
    memory.fetch([a.id])
    assert (engine.stats().down.done, engine.stats().up.done) == (1, 0)
    memory.demote([a.id])
    memory.fetch([a.id])[0].verify()
    assert (engine.stats().down.done, engine.stats().up.done) == (2, 1)
    memory.close()


def times(*moments: float):
    """A clock that shows these, one after the other, and stands still at the last."""
    left = list(moments)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("moments", [(5.0,), (0.0, 5.0)], ids=["when asked for", "in the queue"])
def test_what_cannot_begin_to_move_in_time_is_late_and_stays_where_it_is(moments, new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    memory = linked(2, 2, clock=lambda: clock())
    clock = times(0.0)
    for chunk in (a, b):
        memory.admit(chunk)
    memory.demote([a.id])
    clock = times(*moments)
    assert [chunk and chunk.index for chunk in memory.fetch([b.id, a.id], deadline=5.0)] == [1, None]
    stats = memory.stats()
    assert (stats.misses["late"], stats.tiers[1].misses["late"], stats.tiers[1].failures) == (1, 1, 0)
    assert memory.lying() == [[b.id], [a.id]]
    assert memory.holds(a.id)
    assert memory.tiers[0].used_bytes == SLOT
    memory.fetch([a.id], deadline=6.0)[0].verify()
    assert memory.lying() == [[b.id, a.id], []]
    assert memory.check_integrity() == []
    memory.close()


def test_a_chunk_that_tier_0_did_not_take_after_all_is_given_over_bytes_of_its_own(new_chunk, monkeypatch):
    a, b = new_chunk(0), new_chunk(1)
    memory = plain(slab)(1, 1)
    memory.admit(a)
    memory.admit(b)

    def full(layers, layer_bytes):
        raise CapacityError("on purpose")

    monkeypatch.setattr(memory.tiers[0], "reserve", full)
    (found,) = memory.fetch([a.id])
    assert (memory.lying(), memory.stats().promoted) == ([[], [a.id]], 0)
    other = new_chunk(2)
    monkeypatch.undo()
    memory.tiers[0].put(other)
    memory._mover.take(other.id, memory.tiers[0])
    memory.tiers[0].remove(other.id)
    found.verify()
    assert memory.check_integrity() == []
