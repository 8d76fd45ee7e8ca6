"""Chunks that cross between tiers: sealed and verified on the way, or nothing of them is there."""

import gc
import math
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from worldkv.errors import CapacityError, ChunkCorrupt, TransferError
from worldkv.memory.codec import CODECS
from worldkv.memory.crossing import Crossing, Label
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.transfer import PlainLink, TransferEngine

CPU = torch.device("cpu")
LAYERS = 4


@pytest.fixture(autouse=True)
def _short_fragments(monkeypatch):
    """One layer each, so that tests move bytes, not megabytes."""
    monkeypatch.setattr("worldkv.memory.fragments.FRAGMENT_BYTES", 16)


class AtOnce(Executor):
    """Runs what it is given there and then."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture(params=[False, True], ids=["digests by the host", "digests by the device"])
def crossing(request):
    tiers = (DeviceTier.open("device", CPU, 16 * 4096), HostTier.open("host", 16 * 4096))
    crossing = Crossing(TransferEngine(PlainLink(), PlainLink()), *tiers, AtOnce(), request.param)
    yield crossing
    gc.collect()
    for tier in tiers:
        assert tier.check() == []


def keys_and_values(seed=0):
    return torch.randn(2, LAYERS, 6, 2, 6, generator=torch.Generator().manual_seed(seed)).unbind()


def label(chunk):
    return Label(chunk.tenant, chunk.epoch, chunk.index, chunk.c2w_F44, chunk.token_ids_T3)


@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_that_went_down_is_the_one_that_would_have_been_made(codec, crossing, new_chunk):
    like = new_chunk(3, codec=codec, pruned=True)
    kv = CODECS[codec].decode(like.encoded)
    chunk = crossing.down(CODECS[codec], kv, label(like)).chunk()
    chunk.verify()
    expected = CODECS[codec].encode(*kv)
    assert chunk.encoded.payload_LN.equal(expected.payload_LN)
    assert chunk.id in crossing.host
    assert crossing.host.get(chunk.id).header.checksum == chunk.id


def test_a_chunk_that_went_up_is_the_same_and_ready_layer_by_layer(crossing, new_chunk):
    chunk = new_chunk()
    crossing.host.put(chunk)
    ascent = crossing.up(chunk.id)
    assert ascent.layer(0).payload_LN.equal(chunk.encoded.payload_LN[:1])
    assert chunk.id not in crossing.device
    there = ascent.chunk()
    there.verify()
    assert there.id == chunk.id
    assert chunk.id in crossing.device
    again = crossing.down_again(chunk.id)
    assert again.chunk().id == chunk.id


def test_asked_again_a_transfer_gives_the_same_chunk(crossing, new_chunk):
    chunk = new_chunk()
    crossing.device.put(chunk)
    descent = crossing.down_again(chunk.id)
    assert [descent.chunk().id, descent.chunk().id] == [chunk.id] * 2
    crossing.device.remove(chunk.id)
    ascent = crossing.up(chunk.id)
    assert [ascent.chunk().id, ascent.chunk().id] == [chunk.id] * 2


def test_a_transfer_that_failed_refers_to_no_memory(crossing, new_chunk, monkeypatch):
    def broken(link, destinations, sources, after):
        raise RuntimeError("the link is broken")

    monkeypatch.setattr(PlainLink, "copy", broken)
    chunk = new_chunk()
    crossing.host.put(chunk)
    gc.disable()
    try:
        with suppress(TransferError):
            crossing.up(chunk.id).chunk()
        assert crossing.device.used_bytes == 0
        assert not crossing.host.lent(chunk.id)
    finally:
        gc.enable()


class Lazy:
    """A link, and the end of its last copy, which lands when somebody waits for it to be over."""

    def copy(self, destinations, sources, after):
        PlainLink().copy(destinations, sources, after)
        return self

    def done(self):
        return False

    def hold_stream(self):
        pass

    def wait(self):
        pass


def test_a_moved_chunk_has_arrived_and_its_source_is_read_no_more(crossing, new_chunk):
    chunk, slow = new_chunk(), Lazy()
    link = replace(crossing, engine=TransferEngine(slow, slow))
    link.host.put(chunk)
    VerifyingMover(link).copy(chunk.id, link.host, link.device, math.inf)
    assert not link.host.lent(chunk.id)
    assert link.device.get(chunk.id).encoded.payload_LN.equal(chunk.encoded.payload_LN)


def test_digests_leave_nothing_referred_to_once_they_are_known(crossing, new_chunk):
    """An executor may refer to its last task for as long as it has no other."""
    kept = []

    class Keeps(AtOnce):
        def submit(self, fn, /, *args, **kwargs):
            kept.append((fn, args, kwargs))
            return super().submit(fn, *args, **kwargs)

    chunk, link = new_chunk(), replace(crossing, hashers=Keeps())
    link.host.put(chunk)
    link.up(chunk.id).chunk()
    link.down_again(chunk.id).chunk()
    assert bool(kept) != link.device_digests
    assert not link.host.lent(chunk.id)
    assert not link.device.lent(chunk.id)


def test_what_was_damaged_on_the_host_does_not_reach_the_device(crossing, new_chunk):
    chunk = new_chunk()
    crossing.host.put(chunk)
    crossing.host.get(chunk.id).encoded.payload_LN[1, 5] ^= 1
    ascent = crossing.up(chunk.id)
    with pytest.raises(ChunkCorrupt, match="layer 1"):
        ascent.chunk()
    assert chunk.id not in crossing.device
    del ascent
    gc.collect()
    assert crossing.device.used_bytes == 0


def test_what_was_damaged_on_its_way_up_is_found_where_the_device_computes_digests(crossing, new_chunk):
    class Noisy(PlainLink):
        def copy(self, destinations, sources, after):
            mark = super().copy(destinations, sources, after)
            destinations[0].view(-1)[5] ^= 1
            return mark

    chunk, noisy = new_chunk(), Noisy()
    link = replace(crossing, engine=TransferEngine(noisy, noisy), device_digests=True)
    link.host.put(chunk)
    with pytest.raises(ChunkCorrupt, match="layer 0"):
        link.up(chunk.id).chunk()
    assert chunk.id not in link.device


def test_a_chunk_set_aside_is_a_verified_copy_that_needs_its_tier_no_more(crossing, new_chunk):
    chunk, other = new_chunk(), new_chunk(1)
    room_LN = torch.zeros_like(chunk.encoded.payload_LN)
    crossing.host.put(chunk)
    crossing.host.put(other)
    aside = crossing.aside(crossing.host.get(chunk.id), room_LN)
    assert not crossing.host.lent(chunk.id)
    crossing.host.remove(chunk.id)
    aside.verify()
    assert (aside.id, aside.encoded.payload_LN.data_ptr()) == (chunk.id, room_LN.data_ptr())
    crossing.host.get(other.id).encoded.payload_LN[1, 5] ^= 1
    with pytest.raises(ChunkCorrupt, match="layer 1"):
        crossing.aside(crossing.host.get(other.id), room_LN)


def test_what_was_damaged_on_the_device_does_not_reach_the_host(crossing, new_chunk):
    chunk = new_chunk()
    crossing.device.put(chunk)
    crossing.device.get(chunk.id).encoded.payload_LN[1, 5] ^= 1
    with pytest.raises(ChunkCorrupt, match=chunk.id):
        crossing.down_again(chunk.id).chunk()
    assert len(crossing.host) == 0


def test_what_is_late_or_cancelled_is_not_published_and_leaves_no_bytes(crossing, new_chunk):
    chunk = new_chunk()
    late = crossing.down(CODECS["int8"], keys_and_values(), label(chunk), deadline=-math.inf)
    with pytest.raises(TransferError, match="late"):
        late.chunk()
    crossing.host.put(chunk)
    ascent = crossing.up(chunk.id)
    assert ascent.ticket.cancel()
    with pytest.raises(TransferError, match="cancelled"):
        ascent.chunk()
    assert len(crossing.device) == 0
    del late, ascent
    gc.collect()
    assert crossing.device.used_bytes == 0
    assert crossing.host.used_bytes == crossing.host.cost_bytes(chunk)


def test_no_room_is_an_error_before_anything_moves(crossing, new_chunk):
    chunk = new_chunk()
    crossing.host.put(chunk)
    held = [crossing.device.reserve(1, 4096) for _ in range(16)]
    with pytest.raises(CapacityError, match="65536 bytes arriving"):
        crossing.up(chunk.id)
    assert crossing.engine.stats().up.submitted == 0
    assert len(held) == 16
