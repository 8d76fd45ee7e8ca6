"""The transfer engine and the tiers on a real device: bytes, order, and what overlaps with what.

Slow kernels spin for a number of clock cycles, far longer than what must not wait for them.
"""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from worldkv.errors import ChunkCorrupt, TransferError
from worldkv.memory import digests
from worldkv.memory.chunk import make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.crossing import Crossing, Label
from worldkv.memory.fragments import PIN_PIECE_BYTES
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.store import ChunkMemory
from worldkv.memory.ticket import Copy
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.transfer import TransferEngine, fence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]

MIB = 2**20
# About a fifth of a second at 2 GHz.
SLOW_CYCLES = 400_000_000


@pytest.fixture(scope="module")
def device():
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def engine(device):
    with TransferEngine.open(device) as engine:
        yield engine
        torch.cuda.synchronize(device)


@pytest.fixture
def on_host():
    tier = HostTier.open("host", 1280 * MIB, headroom=lambda: None)
    tier.wait_pinned()
    yield tier
    gc.collect()
    assert tier.check() == []
    tier.close()


def noise(layers, layer_bytes, device="cpu", seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(256, (layers, layer_bytes), dtype=torch.uint8, device=device, generator=generator)


def pinned(like):
    return torch.zeros(like.shape, dtype=torch.uint8, pin_memory=True)


@pytest.mark.parametrize(("layers", "layer_bytes"), [(1, 64), (7, 999_936), (40, 1 * MIB), (3, 70 * MIB)])
def test_bytes_are_the_same_down_and_up(layers, layer_bytes, device, engine, on_host):
    there = noise(layers, layer_bytes, device)
    room = on_host.reserve(layers, layer_bytes)
    engine.submit(Copy(there, room.payload_LN, "down")).wait()
    assert room.payload_LN.equal(there.cpu())
    back = torch.zeros_like(there)
    ticket = engine.submit(Copy(room.payload_LN, back, "up"))
    ticket.wait_layer(layers - 1)
    assert back.equal(there)
    ticket.wait()


def test_the_slab_is_pinned_and_chunks_may_lie_across_its_pieces(device, engine, on_host):
    assert on_host.pin_fault is None
    assert on_host.pinned_bytes == on_host.capacity_bytes
    fill = on_host.reserve(1, PIN_PIECE_BYTES - 12_288)
    room = on_host.reserve(4, 2 * MIB)
    start = room.payload_LN.data_ptr()
    assert start // PIN_PIECE_BYTES != (start + room.payload_LN.nbytes - 1) // PIN_PIECE_BYTES
    assert fill.payload_LN.is_pinned()
    there = noise(4, 2 * MIB, device)
    engine.submit(Copy(there, room.payload_LN, "down")).wait()
    assert room.payload_LN.equal(there.cpu())


def test_a_chunk_that_is_put_without_the_engine_may_lie_across_pieces_too(device, on_host):
    on_host.reserve(1, PIN_PIECE_BYTES - 12_288)
    ((kv, label),) = chunks(1, device)
    encoded = CODECS["bf16"].encode(*kv)
    chunk = make_chunk(tenant=label.tenant, epoch=label.epoch, index=0, c2w_F44=label.c2w_F44, encoded=encoded)
    on_host.put(chunk)
    assert on_host.get(chunk.id).encoded.payload_LN.equal(chunk.encoded.payload_LN.cpu())


def test_copies_are_right_while_the_slab_is_being_pinned(device, engine):
    tier = HostTier.open("host", 1024 * MIB, headroom=lambda: None)
    sources = [noise(8, MIB, device, seed) for seed in range(16)]
    rooms = [tier.reserve(8, MIB) for _ in range(100)]
    tickets = [engine.submit(Copy(sources[i % 16], room.payload_LN, "down")) for i, room in enumerate(rooms)]
    for i, (ticket, room) in enumerate(zip(tickets, rooms, strict=True)):
        ticket.wait()
        assert room.payload_LN.equal(sources[i % 16].cpu())
    tier.wait_pinned()
    assert tier.pin_fault is None
    tier.close()


def test_short_chunks_that_travel_together_arrive_whole_and_in_place(device, engine, on_host):
    there = [noise(8, MIB // 4, device, seed) for seed in range(100)]
    rooms = [on_host.reserve(8, MIB // 4) for _ in there]
    pairs = zip(there, rooms, strict=True)
    for ticket in engine.submit_all(
        [Copy(source, room.payload_LN, "down", after=room.after) for source, room in pairs]
    ):
        ticket.wait()
    back = [torch.zeros_like(one) for one in there]
    for ticket in engine.submit_all([Copy(a.payload_LN, b, "up") for a, b in zip(rooms, back, strict=True)]):
        ticket.wait_layer(7)
    for source, room, again in zip(there, rooms, back, strict=True):
        assert room.payload_LN.equal(source.cpu())
        assert again.equal(source)
    stats = engine.stats()
    assert stats.down.done == 100
    assert stats.down.hauls < 100
    assert stats.up.hauls < 100


@pytest.mark.parametrize("shape", [(1, 256), (3, 1024), (7, 999_936), (2, 17 * 1024 + 64), (40, MIB), (3, 70 * MIB)])
def test_the_device_computes_the_digests_of_xxhash(shape, device):
    assert digests.fault(device) is None
    payload_LN = noise(*shape, device)
    expected = digests.digests_of(payload_LN.cpu())
    assert digests.digests_of(payload_LN) == expected
    payload_LN[-1, -1] ^= 1
    assert digests.digests_of(payload_LN)[-1] != expected[-1]


def test_a_copy_down_waits_for_the_kernel_that_makes_its_source(device, engine):
    there = torch.zeros((8, MIB), dtype=torch.uint8, device=device)
    here = pinned(there)
    torch.cuda._sleep(SLOW_CYCLES)
    there.fill_(7)
    engine.submit(Copy(there, here, "down")).wait()
    assert bool((here == 7).all())


def test_a_layer_is_read_while_later_ones_still_move(device, engine):
    here = noise(64, 16 * MIB).pin_memory()
    there = torch.zeros_like(here, device=device)
    ticket = engine.submit(Copy(here, there, "up"))
    ticket.wait_layer(0)
    first = there[0].clone()
    read = torch.cuda.current_stream(device).record_event()
    read.synchronize()
    assert ticket.bytes_done < here.nbytes
    ticket.wait_layer(63)
    last = there[63].clone()
    assert first.cpu().equal(here[0])
    assert last.cpu().equal(here[63])


def test_what_is_cancelled_stops_at_a_fragment_and_is_not_done(device, engine):
    here = noise(64, 16 * MIB).pin_memory()
    there = torch.full_like(here, 7, device=device)
    torch.cuda.synchronize(device)
    ticket = engine.submit(Copy(here, there, "up"))
    ticket.wait_layer(0)
    assert ticket.cancel()
    with pytest.raises(TransferError, match="cancelled"):
        ticket.wait()
    engine.close()
    torch.cuda.synchronize(device)
    assert there[0].cpu().equal(here[0])
    assert bool((there[63] == 7).all())


def test_what_is_cancelled_before_it_starts_moves_nothing(device, engine):
    torch.cuda._sleep(SLOW_CYCLES)
    slow = fence(device)
    first_here, here = noise(8, 8 * MIB).pin_memory(), noise(8, MIB).pin_memory()
    first_there, there = torch.zeros_like(first_here, device=device), torch.zeros_like(here, device=device)
    # The first fills what may be enqueued and waits for the kernel, so the second cannot have started.
    engine.submit(Copy(first_here, first_there, "up", after=(slow,)))
    ticket = engine.submit(Copy(here, there, "up"))
    assert ticket.cancel()
    engine.close()
    assert not there.any()
    assert ticket.bytes_done == 0


def test_copies_and_compute_overlap(device, engine):
    here = noise(32, 16 * MIB).pin_memory()
    there = torch.zeros_like(here, device=device)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

    def seconds(copies, products):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        ticket = engine.submit(Copy(here, there, "up")) if copies else None
        for _ in range(products):
            a @ a
        if ticket is not None:
            ticket.wait()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(2):
        seconds(True, 4)
    alone = min(seconds(True, 0) for _ in range(3))
    one = min(seconds(False, 32) for _ in range(3)) / 32
    products = max(1, round(alone / one))
    computing = min(seconds(False, products) for _ in range(3))
    together = min(seconds(True, products) for _ in range(3))
    assert together < 0.8 * (alone + computing)


def chunks(count, device, layers=8, heads=8, tokens=512):
    label = Label("default", "weights", 0, np.tile(np.eye(4, dtype=np.float32), (3, 1, 1)))
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(count):
        kv = torch.randn(2, layers, tokens, heads, 64, device=device, generator=generator)
        yield tuple(kv.bfloat16()), label


@pytest.fixture(params=[False, True], ids=["digests by the host", "digests by the device"])
def crossing(request, device, engine, on_host):
    tier = DeviceTier.open("device", device, 64 * MIB)
    with ThreadPoolExecutor(4) as hashers:
        yield Crossing(engine, tier, on_host, hashers, request.param)
    gc.collect()
    assert tier.check() == []


@pytest.mark.parametrize("codec", CODECS)
def test_chunks_cross_both_ways_and_decode_to_the_same(codec, device, crossing):
    for kv, label in chunks(3, device):
        expected = CODECS[codec].encode(*kv)
        chunk = crossing.down(CODECS[codec], kv, label).chunk()
        chunk.verify()
        assert chunk.encoded.payload_LN.equal(expected.payload_LN.cpu())
        ascent = crossing.up(chunk.id)
        assert ascent.layer(0).payload_LN.equal(expected.payload_LN[:1])
        there = ascent.chunk()
        there.verify()
        out, want = ([torch.empty_like(x) for x in kv] for _ in range(2))
        there.load(*out)
        CODECS[codec].decode(expected, out=tuple(want))
        assert all(a.equal(b) for a, b in zip(out, want, strict=True))


def test_what_was_damaged_on_the_host_does_not_reach_the_device(device, crossing):
    kv, label = next(chunks(1, device))
    chunk = crossing.down(CODECS["int8"], kv, label).chunk()
    crossing.host.get(chunk.id).encoded.payload_LN[5, 77] ^= 1
    with pytest.raises(ChunkCorrupt, match="layer 5"):
        crossing.up(chunk.id).chunk()
    assert chunk.id not in crossing.device


def test_a_chunk_that_is_still_being_made_is_sealed_as_it_will_be(device, crossing):
    kv, label = next(chunks(1, device))
    expected = CODECS["bf16"].encode(*kv).payload_LN.cpu()
    late = [torch.zeros_like(x) for x in kv]
    torch.cuda._sleep(SLOW_CYCLES // 4)
    for made, x in zip(late, kv, strict=True):
        made.copy_(x)
    chunk = crossing.down(CODECS["bf16"], tuple(late), label).chunk()
    chunk.verify()
    assert chunk.encoded.payload_LN.equal(expected)


def test_views_of_the_device_slab_share_it_and_keep_their_bytes(device, crossing):
    kv, label = next(chunks(1, device))
    chunk = crossing.down(CODECS["bf16"], kv, label).chunk()
    tier = crossing.device
    tier.put(chunk)
    one, other = (tier.get(chunk.id).encoded.payload_LN for _ in range(2))
    assert one.data_ptr() == other.data_ptr()
    part = one[1:]
    del one, other
    tier.remove(chunk.id)
    gc.collect()
    assert tier.used_bytes > 0
    assert part.cpu().equal(chunk.encoded.payload_LN[1:])
    del part
    gc.collect()
    assert tier.used_bytes == 0


def test_a_slot_is_not_overwritten_before_its_last_readers_have_read(device, engine, crossing):
    (kv_a, label), (kv_b, _) = chunks(2, device)
    first, second = (crossing.down(CODECS["bf16"], kv, label).chunk() for kv in (kv_a, kv_b))
    slot = DeviceTier.open("slot", device, crossing.host.cost_bytes(first))
    tight = Crossing(engine, slot, crossing.host, crossing.hashers, crossing.device_digests)
    ascent = tight.up(first.id)
    view_LN = ascent.chunk().encoded.payload_LN
    ascent.ticket.wait()
    del ascent
    torch.cuda._sleep(SLOW_CYCLES)
    read_LN = view_LN.clone()  # enqueued behind the slow kernel
    del view_LN
    gc.collect()
    slot.remove(first.id)
    there = tight.up(second.id).chunk()
    assert read_LN.cpu().equal(first.encoded.payload_LN)
    assert there.encoded.payload_LN.cpu().equal(second.encoded.payload_LN)


def test_chunks_that_slide_keep_their_bytes_under_traffic(device, engine, crossing):
    made = [crossing.down(CODECS["bf16"], kv, label).chunk() for kv, label in chunks(4, device)]
    large_kv, label = next(chunks(1, device, layers=16))
    large = crossing.down(CODECS["bf16"], large_kv, label).chunk()
    small_cost = crossing.host.cost_bytes(made[0])
    tier = DeviceTier.open("tight", device, 4 * small_cost)
    tight = Crossing(engine, tier, crossing.host, crossing.hashers, crossing.device_digests)
    for chunk in made:
        ascent = tight.up(chunk.id)
        ascent.chunk()
        ascent.ticket.wait()
    del ascent
    gc.collect()
    tier.remove(made[0].id)
    tier.remove(made[2].id)
    there = tight.up(large.id).chunk()
    for chunk in (made[1], made[3], large):
        assert tier.get(chunk.id).encoded.payload_LN.cpu().equal(chunk.encoded.payload_LN)
    assert there.id == large.id
    assert tier.check() == []


@pytest.mark.parametrize("device_digests", [False, True])
@pytest.mark.parametrize("spare", [0, 1])
def test_a_memory_over_the_link_gives_what_was_admitted_and_loses_none(spare, device_digests, device, engine):
    """With a spare slot on the host chunks are exchanged over the link, without one by way of a copy."""
    made = [
        make_chunk(
            tenant=label.tenant,
            epoch=label.epoch,
            index=i,
            c2w_F44=label.c2w_F44,
            encoded=CODECS["bf16"].encode(*kv),
        )
        for i, (kv, label) in enumerate(chunks(6, device))
    ]
    slot = made[0].encoded.nbytes
    tiers = DeviceTier.open("device", device, 3 * slot), HostTier.open("host", (3 + spare) * slot)
    with ThreadPoolExecutor(2) as hashers:
        memory = ChunkMemory(tiers, "weights", mover=VerifyingMover(Crossing(engine, *tiers, hashers, device_digests)))
        for chunk in made:
            memory.admit(chunk)
        for turn in range(24):
            torch.cuda._sleep(SLOW_CYCLES // 100)
            wanted = made[turn % 6], made[turn * turn % 6]
            for chunk, found in zip(wanted, memory.fetch([chunk.id for chunk in wanted]), strict=True):
                assert found.encoded.device == device
                assert found.encoded.payload_LN.equal(chunk.encoded.payload_LN)
            del found
            assert memory.check_integrity() == []
        assert (memory.stats().dropped, memory.stats().misses["corrupt"]) == (0, 0)
        assert (engine.stats().up.done > 0) == bool(spare)
        memory.close()
