"""The device tier on the CPU, and the order of work that its slots keep, with a device that the test plays."""

import gc
from dataclasses import dataclass

import pytest
import torch

from worldkv.errors import CapacityError, ConfigError
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.extents import Extent
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.slab import GRAIN_BYTES, HostSlab, SlabTier, slide

CPU = torch.device("cpu")


@dataclass(eq=False)
class Pending:
    over: bool = False
    held_streams: int = 0

    def done(self):
        return self.over

    def wait(self):
        self.over = True

    def hold_stream(self):
        self.held_streams += 1


class BusySlab(HostSlab):
    """Memory of a device whose readers are still at work when their views go."""

    def __init__(self, grains):
        super().__init__(memoryview(bytearray(grains * GRAIN_BYTES)))
        self.fences = []

    def fence(self):
        self.fences.append(Pending())
        return self.fences[-1]


def test_a_chunk_is_copied_in_and_comes_back_on_its_device(new_chunk):
    tier, chunk = DeviceTier.open("device", CPU, 3 * GRAIN_BYTES), new_chunk()
    tier.put(chunk)
    back = tier.get(chunk.id)
    back.verify()
    assert back.encoded.device == CPU
    out = (torch.empty(back.encoded.shape), torch.empty(back.encoded.shape))
    back.load(*out)
    assert out[0].equal(chunk.encoded.tensors["k"])
    assert tier.check() == []
    tier.close()
    assert len(tier) == 0


def test_a_capacity_of_no_slot_is_refused_with_its_key():
    with pytest.raises(ConfigError, match="tier device: capacity_bytes = 10: at least 4096"):
        DeviceTier.open("device", CPU, 10)


def test_capacity_is_whole_slots():
    assert DeviceTier.open("device", CPU, 3 * GRAIN_BYTES + 5).capacity_bytes == 3 * GRAIN_BYTES


def test_whoever_reuses_a_slot_waits_for_its_last_readers(new_chunk):
    slab = BusySlab(2)
    tier, chunk = SlabTier("device", slab), new_chunk()
    assert tier.reserve(1, GRAIN_BYTES).after == ()
    gc.collect()
    tier.put(chunk)
    tier.remove(chunk.id)
    assert [mark.done() for mark in slab.fences] == [False, False]
    fresh = tier.reserve(1, GRAIN_BYTES)
    assert slab.fences[-1] in fresh.after
    assert all(mark in slab.fences for mark in fresh.after)


def test_a_fence_that_is_done_is_waited_for_no_more(new_chunk):
    slab = BusySlab(1)
    tier, chunk = SlabTier("device", slab), new_chunk()
    for _ in range(3):
        tier.put(chunk)
        tier.remove(chunk.id)
        slab.fences[-1].over = True
    tier.put(chunk)
    tier.remove(chunk.id)
    assert len(tier._books.fences) == 1


def test_a_copy_on_the_current_stream_waits_there(new_chunk):
    slab = BusySlab(1)
    tier = SlabTier("device", slab)
    tier.put(new_chunk(0))
    tier.remove(new_chunk(0).id)
    tier.put(new_chunk(1))
    assert [mark.held_streams for mark in slab.fences] == [1]


def test_whoever_writes_where_a_chunk_slid_away_waits_for_the_slide(new_chunk):
    slab = BusySlab(3)
    tier = SlabTier("device", slab)
    first, second, third = (new_chunk(i) for i in range(3))
    for chunk in (first, second, third):
        tier.put(chunk)
    tier.remove(first.id)
    tier.remove(third.id)
    for mark in slab.fences:
        mark.over = True
    room = tier.reserve(1, 2 * GRAIN_BYTES)
    assert room.extent == Extent(GRAIN_BYTES, 3 * GRAIN_BYTES)
    assert room.after == (slab.fences[-1],)
    tier.get(second.id).verify()


def test_a_tier_full_of_readers_refuses(new_chunk):
    tier = DeviceTier.open("device", CPU, GRAIN_BYTES)
    tier.put(new_chunk(0))
    reader = tier.get(new_chunk(0).id)
    tier.remove(reader.id)
    with pytest.raises(CapacityError, match="still read"):
        tier.put(new_chunk(1))
    reader.verify()


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_slide_may_overlap_itself(step, monkeypatch):
    monkeypatch.setattr("worldkv.memory.tiers.slab.SLIDE_BYTES", 10)
    memory = torch.arange(256, dtype=torch.uint8)
    slide(memory, Extent(100, 150), Extent(100 - step, 150 - step))
    assert memory[100 - step : 150 - step].equal(torch.arange(100, 150, dtype=torch.uint8))


def test_a_memory_of_slabs_gives_back_what_was_admitted_while_readers_hold_on(new_chunk):
    tiers = [DeviceTier.open("device", CPU, 3 * GRAIN_BYTES), HostTier.open("host", 5 * GRAIN_BYTES)]
    memory = ChunkMemory(tiers, "weights-a")
    made = [new_chunk(i) for i in range(12)]
    reader = None
    for chunk in made:
        memory.admit(chunk)
        reader = reader or memory.fetch([chunk.id])[0]
    hits = 0
    for chunk in made:
        found = memory.fetch([chunk.id])[0]
        if found is not None:
            found.verify()
            assert found.id == chunk.id
            hits += 1
        del found
        assert memory.check_integrity() == []
    # Of eight slots the reader holds one, and what moves up is read in another.
    assert hits >= 6
    reader.verify()
    assert reader.id == made[0].id
    assert memory.check_integrity() == []
