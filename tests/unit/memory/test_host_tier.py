"""The host tier: what any slab keeps, its limits, and how it is pinned with a driver of the test's own."""

import gc
from itertools import count

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from worldkv.errors import CapacityError, ChunkNotFound, ConfigError
from worldkv.memory.fragments import PIN_PIECE_BYTES
from worldkv.memory.tiers.headroom import Headroom, host_headroom
from worldkv.memory.tiers.host import HostTier, address_of
from worldkv.memory.tiers.slab import GRAIN_BYTES

# Chunks of 1, 2 and 5 grains.
TOKENS = (6, 40, 90)


def grains(n):
    return HostTier.open("host", n * GRAIN_BYTES)


class Driver:
    """Remembers what is pinned; refuses once `limit` pieces are."""

    def __init__(self, limit=1000):
        self.pinned, self.limit = {}, limit

    def pin(self, address, nbytes):
        if len(self.pinned) >= self.limit:
            raise RuntimeError("no memory left to pin")
        self.pinned[address] = nbytes

    def unpin(self, address):
        del self.pinned[address]


def test_a_chunk_comes_back_as_it_went_in(new_chunk):
    tier, chunk = grains(4), new_chunk(pruned=True)
    tier.put(chunk)
    back = tier.get(chunk.id)
    back.verify()
    assert back.id == chunk.id
    assert back.encoded.payload_LN.data_ptr() != chunk.encoded.payload_LN.data_ptr()
    assert list(tier.ids()) == [chunk.id]
    assert (len(tier), tier.used_bytes, tier.cost_bytes(chunk)) == (1, GRAIN_BYTES, GRAIN_BYTES)


def test_views_share_the_slab_and_put_of_what_is_here_changes_nothing(new_chunk):
    tier, chunk = grains(4), new_chunk()
    tier.put(chunk)
    tier.put(chunk)
    one, other = (tier.get(chunk.id).encoded.payload_LN for _ in range(2))
    assert one.data_ptr() == other.data_ptr()
    assert tier.used_bytes == GRAIN_BYTES


def test_what_does_not_fit_is_refused_with_the_figures(new_chunk):
    tier = grains(2)
    tier.put(new_chunk(0))
    with pytest.raises(CapacityError, match=r"tier host: \d+ bytes asked, 4096 bytes free .* capacity 8192"):
        tier.put(new_chunk(1, tokens=200))
    assert tier.check() == []
    assert len(tier) == 1


def test_what_is_not_here_is_not_found_and_removing_it_does_nothing():
    tier = grains(2)
    tier.remove("nothing")
    with pytest.raises(ChunkNotFound, match="tier host does not hold chunk nothing"):
        tier.get("nothing")


def test_a_removed_chunk_keeps_its_bytes_until_its_last_reader_lets_go(new_chunk):
    tier, chunk = grains(1), new_chunk(0)
    tier.put(chunk)
    part = tier.get(chunk.id).encoded.layer_range(1, 2).tensors["k"]
    tier.remove(chunk.id)
    assert chunk.id not in tier
    assert tier.used_bytes == GRAIN_BYTES
    with pytest.raises(CapacityError, match="4096 bytes arriving or still read"):
        tier.put(new_chunk(1))
    assert part.equal(chunk.encoded.tensors["k"][1:])
    assert tier.check() == []
    del part
    gc.collect()
    assert tier.used_bytes == 0
    tier.put(new_chunk(1))


def test_scattered_room_is_gathered_around_what_is_being_read(new_chunk):
    tier = grains(8)
    small = [new_chunk(i) for i in range(8)]
    for chunk in small:
        tier.put(chunk)
    reader = tier.get(small[1].id)
    for i in (2, 4, 6):
        tier.remove(small[i].id)
    large = new_chunk(9, tokens=60)
    assert tier.cost_bytes(large) == 3 * GRAIN_BYTES
    tier.put(large)
    assert tier.used_bytes == tier.capacity_bytes
    reader.verify()
    for chunk in (large, *(small[i] for i in (0, 1, 3, 5, 7))):
        tier.get(chunk.id).verify()
    assert tier.check() == []


def test_check_finds_books_that_were_tampered_with(new_chunk):
    tier = grains(4)
    tier.put(new_chunk(0))
    tier._books.held.clear()
    assert "0 bytes free, held or loose" in tier.check()[0].replace("12288", "0")


def test_a_reservation_is_published_once(new_chunk):
    tier, chunk = grains(4), new_chunk()
    room = tier.reserve(*chunk.encoded.payload_LN.shape)
    room.payload_LN.copy_(chunk.encoded.payload_LN)
    assert tier.used_bytes == GRAIN_BYTES
    assert chunk.id not in tier
    tier.publish(room, chunk)
    tier.get(chunk.id).verify()
    with pytest.raises(ValueError, match="not reserved"):
        tier.publish(room, chunk)


class Slabs(RuleBasedStateMachine):
    """Random use of a tier, with readers that come and go; nobody may ever see another chunk's bytes."""

    def __init__(self):
        super().__init__()
        self.tier = grains(12)
        self.number = count()
        self.here, self.readers = {}, []

    @rule(tokens=st.sampled_from(TOKENS))
    def put(self, tokens):
        chunk = self.chunk_of(next(self.number), tokens=tokens)
        cost, free = self.tier.cost_bytes(chunk), self.tier.capacity_bytes - self.tier.used_bytes
        try:
            self.tier.put(chunk)
            self.here[chunk.id] = chunk
        except CapacityError:
            assert cost > free or self.readers

    @precondition(lambda self: self.here)
    @rule(n=st.integers(0, 20))
    def read(self, n):
        self.readers.append(self.tier.get(list(self.here)[n % len(self.here)]))

    @precondition(lambda self: self.readers)
    @rule(n=st.integers(0, 20))
    def let_go(self, n):
        self.readers.pop(n % len(self.readers))

    @precondition(lambda self: self.here)
    @rule(n=st.integers(0, 20))
    def remove(self, n):
        chunk_id = list(self.here)[n % len(self.here)]
        del self.here[chunk_id]
        self.tier.remove(chunk_id)

    @invariant()
    def books_hold(self):
        assert self.tier.check() == []
        assert self.tier.used_bytes <= self.tier.capacity_bytes
        assert list(self.tier.ids()) == list(self.here)
        used = sum(self.tier.cost_bytes(chunk) for chunk in self.here.values())
        lingering = {r.id: self.tier.cost_bytes(r) for r in self.readers if r.id not in self.here}
        assert self.tier.used_bytes == used + sum(lingering.values())

    @invariant()
    def everyone_reads_what_was_written(self):
        for reader in self.readers:
            reader.verify()

    def teardown(self):
        for chunk_id in self.here:
            self.tier.get(chunk_id).verify()


def test_readers_never_see_the_bytes_of_another_chunk(new_chunk):
    Slabs.chunk_of = staticmethod(new_chunk)
    run_state_machine_as_test(Slabs, settings=settings(max_examples=30, stateful_step_count=30))


def test_a_slab_is_refused_before_it_is_allocated_where_the_host_cannot_give_it():
    def headroom():
        return Headroom(5000, "memory.max = 9000 in /sys/fs/cgroup/job")

    with pytest.raises(ConfigError, match=r"capacity_bytes = 8192: only 5000 bytes .*memory.max = 9000.*lower"):
        HostTier.open("host", 8192, headroom=headroom)
    with pytest.raises(ConfigError, match="at least 4096"):
        HostTier.open("host", 100)
    with pytest.raises(ConfigError, match="capacity_bytes = 1152921504606846976: the system refuses"):
        HostTier.open("host", 2**60, headroom=lambda: None)


def test_a_slab_larger_than_what_is_touched_costs_nothing(new_chunk):
    tier, chunk = HostTier.open("host", 2**38, headroom=lambda: None), new_chunk()
    tier.put(chunk)
    tier.get(chunk.id).verify()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_limit_of_machine_and_control_groups_is_found(tmp_path):
    assert host_headroom(tmp_path) is None
    write(tmp_path / "proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert host_headroom(tmp_path) == (50 * 1024, "MemAvailable in /proc/meminfo")

    write(tmp_path / "proc/self/cgroup", "0::/jobs/a\n")
    groups = tmp_path / "sys/fs/cgroup"
    write(groups / "jobs/a/memory.max", "max\n")
    write(groups / "jobs/memory.max", "30000\n")
    write(groups / "jobs/memory.current", "20000\n")
    write(groups / "jobs/memory.stat", "anon 5\ninactive_file 4000\n")
    assert host_headroom(tmp_path) == (14000, "memory.max = 30000 in /sys/fs/cgroup/jobs")

    write(tmp_path / "proc/self/cgroup", "4:cpu,memory:/elsewhere\n0::/\n")
    write(groups / "memory/memory.limit_in_bytes", "10000\n")
    write(groups / "memory/memory.usage_in_bytes", "12000\n")
    assert host_headroom(tmp_path) == (0, "memory.limit_in_bytes = 10000 in /sys/fs/cgroup/memory")


def test_pieces_are_pinned_in_order_from_an_aligned_start_and_unpinned_at_the_end(new_chunk):
    driver, capacity = Driver(), 2 * PIN_PIECE_BYTES + GRAIN_BYTES
    tier = HostTier.open("host", capacity, registrar=driver)
    chunk = new_chunk()
    tier.put(chunk)  # served, whatever is pinned by now
    tier.wait_pinned()
    assert tier.pinned_bytes == capacity
    assert all(address % PIN_PIECE_BYTES == 0 for address in driver.pinned)
    assert list(driver.pinned.values()) == [PIN_PIECE_BYTES, PIN_PIECE_BYTES, GRAIN_BYTES]
    assert tier.get(chunk.id).encoded.payload_LN.data_ptr() == min(driver.pinned)
    tier.close()
    assert driver.pinned == {}
    assert len(tier) == 0


def test_a_driver_that_refuses_leaves_plain_memory_and_says_so(new_chunk):
    tier = HostTier.open("host", 3 * PIN_PIECE_BYTES, registrar=Driver(limit=1))
    tier.wait_pinned()
    assert tier.pinned_bytes == PIN_PIECE_BYTES
    assert tier.pin_fault == "tier host: 67108864 of 201326592 bytes pinned, then: no memory left to pin"
    chunk = new_chunk()
    tier.put(chunk)
    tier.get(chunk.id).verify()
    tier.close()


def test_a_piece_that_cannot_be_unpinned_keeps_no_other_one_pinned(monkeypatch):
    monkeypatch.setattr("worldkv.memory.tiers.host.PIN_PIECE_BYTES", GRAIN_BYTES)
    driver = Driver()
    tier = HostTier.open("host", 3 * GRAIN_BYTES, registrar=driver)
    tier.wait_pinned()
    assert len(driver.pinned) == 3
    lost = sorted(driver.pinned)[1]
    del driver.pinned[lost]
    driver.unpin = lambda address: driver.pinned.pop(address) if address != lost else _refuse()
    tier.close()
    assert driver.pinned == {}
    assert f"byte {GRAIN_BYTES} stays pinned: no such piece" in tier.pin_fault


def _refuse():
    raise RuntimeError("no such piece")


def test_closing_stops_the_pinning():
    buffer = memoryview(bytearray(GRAIN_BYTES))
    tier = HostTier("host", buffer, Driver())
    tier.close()
    tier.pin()
    assert tier.pinned_bytes == 0
    assert address_of(buffer) == torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
