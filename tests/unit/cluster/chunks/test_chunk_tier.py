"""The node tier of workers against the servers of a cluster in this process."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cluster.chunks.labels import Gone
from worldkv.errors import CapacityError, ChunkCorrupt, ChunkEvicted, ChunkNotFound, TransferError
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tier import Quarantines, ReadsAside, Shared, Survives
from worldkv.memory.tiers.resident import ResidentTier

SIZE = 8192


def same(chunk, other) -> bool:
    return chunk.id == other.id and chunk.encoded.payload_LN.equal(other.encoded.payload_LN)


def test_a_chunk_comes_back_as_it_went_in_and_is_found_by_another_worker_of_its_tenant(village, new_chunk):
    town = village(20 * SIZE)
    maker, other = town.worker(), town.worker(pid=2)
    assert isinstance(maker, Survives)
    assert isinstance(maker, Shared)
    assert isinstance(maker, Quarantines)
    chunk = new_chunk(0, pruned=True)
    assert maker.cost_bytes(chunk) == SIZE
    maker.put(chunk)
    maker.put(chunk)
    assert (list(maker.ids()), maker.used_bytes) == ([chunk.id], SIZE)
    assert same(maker.get(chunk.id), chunk)
    assert other.find("somebody", [chunk.id]) == {}
    with pytest.raises(ChunkNotFound):
        other.get(chunk.id)
    outline = other.find("default", [chunk.id, "none"])[chunk.id]
    assert outline.encoded.device.type == "meta"
    other.put(outline)
    assert same(other.get(chunk.id), chunk)
    assert (other.check(), maker.check()) == ([], [])
    town.check()


def test_a_chunk_outlives_its_worker_and_goes_first_once_nobody_claims_it(village, new_chunk):
    town = village(4 * SIZE)
    maker, other, third = (town.worker(pid=pid) for pid in (1, 2, 3))
    chunk, older = new_chunk(0), new_chunk(1)
    maker.put(older)
    maker.put(chunk)
    town.servers["a"].sweep(lambda process: process.pid != 1)
    for tier in (other, third):
        tier.put(tier.find("default", [chunk.id])[chunk.id])
    other.remove(chunk.id)
    assert same(third.get(chunk.id), chunk)
    gc.collect()
    third.give_back()
    third.remove(chunk.id)
    assert town.servers["a"].figures()["chunks"] == 2
    for i in (2, 3):
        other.put(new_chunk(i))
    assert list(third.find("default", [older.id, chunk.id])) == [older.id]
    town.check()


def test_what_is_read_from_elsewhere_drives_no_chunk_out_of_its_node(village, new_chunk):
    town = village(8 * SIZE, nodes=("a", "b"))
    near, far = town.worker(capacity_bytes=2 * SIZE), town.worker("b", 2)
    for i in range(4):
        far.put(new_chunk(i))
    near.put(new_chunk(9))
    town.pass_time(1)
    for i in range(4):
        if len(near) == 2:
            near.remove(next(near.ids()))
        near.put(near.find("default", [new_chunk(i).id])[new_chunk(i).id])
    assert new_chunk(9).id not in near
    assert list(near.find("default", [new_chunk(9).id])) == [new_chunk(9).id]


def test_what_others_evicted_is_told_as_such_and_what_is_read_is_not_evicted(village, new_chunk):
    town = village(4 * SIZE)
    one, other = town.worker(pid=1), town.worker(pid=2)
    first, second = new_chunk(0), new_chunk(1)
    one.put(first)
    one.put(second)
    reading = one.get(first.id)
    for i in range(2, 6):
        other.put(new_chunk(i))
    with pytest.raises(ChunkEvicted):
        one.get(second.id)
    assert same(one.get(first.id), first)
    reading.verify()
    assert town.servers["a"].figures()["used_bytes"] <= 4 * SIZE
    town.check()


def test_what_is_dropped_while_it_is_read_counts_until_it_is_let_go(village, new_chunk):
    town = village(4 * SIZE)
    tier, chunk = town.worker(), new_chunk(0)
    tier.put(chunk)
    part = tier.get(chunk.id).encoded.layer_range(1, 2).payload_LN
    town.servers["a"]._drop(("default", chunk.id), Gone.EVICTED)
    assert town.servers["a"].figures()["used_bytes"] == SIZE
    assert part.equal(chunk.encoded.payload_LN[1:])
    del part
    gc.collect()
    tier.give_back()
    assert town.servers["a"].figures()["used_bytes"] == 0
    town.check()


def test_a_process_part_is_bounded_and_a_server_that_is_full_of_readers_refuses(village, new_chunk):
    town = village(4 * SIZE)
    small = town.worker(capacity_bytes=SIZE)
    small.put(new_chunk(0))
    with pytest.raises(CapacityError, match=r"tier node: 8192 bytes asked, 0 of 8192 free"):
        small.put(new_chunk(1))
    tier = town.worker(pid=2)
    for i in range(3):
        tier.put(new_chunk(i))
    reading = [tier.get(new_chunk(i).id) for i in range(3)]
    tier.put(new_chunk(9))
    with pytest.raises(ChunkNotFound, match=r"was not written: .* being read"):
        tier.get(new_chunk(9).id)
    assert len(reading) == 3
    town.check()


def test_a_damaged_chunk_never_becomes_visible(village, new_chunk):
    town = village(20 * SIZE)
    tier, chunk = town.worker(), new_chunk(0)
    chunk.encoded.payload_LN[0, 0] ^= 1
    tier.put(chunk)
    with pytest.raises(ChunkNotFound, match=r"was not written: .*checksum of layer 0"):
        tier.get(chunk.id)
    assert town.worker(pid=2).find("default", [chunk.id]) == {}


def test_damage_in_the_store_is_corrupt_and_goes_for_everybody(village, new_chunk):
    town = village(20 * SIZE)
    tier, other, chunk = town.worker(), town.worker(pid=2), new_chunk(0)
    tier.put(chunk)
    (data,) = town.servers["a"]._handles.values()
    data.flags.writeable = True
    data[-1] ^= 1
    with pytest.raises(ChunkCorrupt, match="checksum of layer 1"):
        tier.get(chunk.id)
    tier.quarantine(chunk.id)
    assert other.find("default", [chunk.id]) == {}
    assert chunk.id not in tier
    town.check()


def test_a_chunk_is_verified_once_per_process_and_copy(village, new_chunk, monkeypatch):
    town = village(20 * SIZE)
    tier, chunk, checks = town.worker(), new_chunk(0), []
    tier.put(chunk)
    verify = type(chunk).verify
    monkeypatch.setattr(type(chunk), "verify", lambda self: (checks.append(1), verify(self)))
    for _ in range(3):
        tier.get(chunk.id)
    assert len(checks) == 1


def test_another_copy_of_a_chunk_is_verified_too(village, new_chunk):
    town = village(20 * SIZE, nodes=("a", "b"), copies=2)
    tier, chunk = town.worker(), new_chunk(0)
    tier.put(chunk)
    tier.flush(5)
    tier.get(chunk.id)
    (data,) = town.servers["b"]._handles.values()
    data.flags.writeable = True
    data[-1] ^= 1
    town.servers["a"]._drop(("default", chunk.id), Gone.EVICTED)
    town.pass_time(1)
    with pytest.raises(ChunkCorrupt, match="checksum of layer 1"):
        tier.get(chunk.id)
    tier.quarantine(chunk.id)
    assert town.servers["b"].figures()["chunks"] == 0


def test_further_names_are_kept_and_found_by_others(village, new_chunk):
    town = village(20 * SIZE, nodes=("a", "b"))
    tier, other, chunk = town.worker(), town.worker("b", 2), new_chunk(0)
    tier.put(chunk)
    tier.also_name(chunk.id, ["old name"])
    tier.also_name(chunk.id, ["old name"])
    town.pass_time(1)
    for name in (chunk.id, "old name"):
        outline = other.find("default", [name])[name]
        assert outline.id == chunk.id
    other.put(outline)
    assert other.names(chunk.id) == tier.names(chunk.id) == ("old name",)
    town.check()


def test_another_nodes_chunk_is_found_through_the_directory_and_read(village, new_chunk):
    town = village(20 * SIZE, nodes=("a", "b"))
    maker, far, chunk = town.worker(), town.worker("b", 2), new_chunk(0)
    maker.put(chunk)
    town.pass_time(1)
    far.put(far.find("default", [chunk.id])[chunk.id])
    far.prefetch([chunk.id, "unknown"])
    assert town.objects.ahead == 1
    assert same(far.get(chunk.id), chunk)
    assert same(far.get(chunk.id), chunk)
    assert town.servers["a"].figures()["lent_bytes"] == 0


def test_with_two_copies_a_chunk_survives_its_node_and_a_third_copy_is_made(village, new_chunk):
    town = village(20 * SIZE, nodes=("a", "b", "c"), copies=2)
    maker, far, chunk = town.worker(), town.worker("b", 2), new_chunk(0)
    maker.put(chunk)
    assert maker.flush(5) == {chunk.id}
    assert sum(server.figures()["chunks"] for server in town.servers.values()) == 2
    far.put(far.find("default", [chunk.id])[chunk.id])
    town.kill("a")
    assert same(far.get(chunk.id), chunk)
    town.pass_time(10)
    assert sum(server.figures()["chunks"] for server in town.servers.values()) == 2
    town.check()


def test_a_copy_for_which_there_is_no_room_is_not_waited_for(village, new_chunk):
    town = village(4 * SIZE, nodes=("a", "b"), copies=2)
    reader, maker = town.worker("b", 2), town.worker()
    for i in range(3):
        reader.put(new_chunk(i))
    reading = [reader.get(new_chunk(i).id) for i in range(3)]
    town.pass_time(1)
    maker.put(new_chunk(9))
    assert maker.flush(5) == {new_chunk(9).id}
    assert maker.get(new_chunk(9).id) is not None
    assert [chunk.index for chunk in reading] == [0, 1, 2]
    assert town.worker("b", 3).find("default", [new_chunk(9).id]) != {}
    assert ("default", new_chunk(9).id) not in town.servers["b"]._books.held
    town.check()


def test_without_copies_a_dead_nodes_chunk_is_not_found_and_a_restarted_server_is_empty(village, new_chunk):
    town = village(20 * SIZE, nodes=("a", "b"))
    maker, far, chunk = town.worker(), town.worker("b", 2), new_chunk(0)
    maker.put(chunk)
    town.pass_time(1)
    far.put(far.find("default", [chunk.id])[chunk.id])
    town.kill("a")
    with pytest.raises(TransferError, match="cannot be read now: node a"):
        far.get(chunk.id)
    town.pass_time(6)
    with pytest.raises(ChunkNotFound, match="all that had it are gone"):
        far.get(chunk.id)
    town.start("a")
    town.pass_time(1)
    with pytest.raises(ChunkNotFound):
        maker.get(chunk.id)
    assert far.find("default", [chunk.id]) == {}
    town.check()


def test_directories_that_die_are_rebuilt_and_one_is_enough(village, new_chunk, absent):
    town = village(20 * SIZE, nodes=("a", "b"))
    maker, far, chunk = town.worker(), town.worker("b", 2), new_chunk(0)
    maker.put(chunk)
    town.pass_time(1)
    town.replicas[0] = absent()
    assert list(far.find("default", [chunk.id])) == [chunk.id]
    town.kill_directory(0)
    town.kill_directory(1)
    assert list(far.find("default", [chunk.id, "none"])) == [chunk.id]
    town.replicas[:] = [absent(), absent()]
    with pytest.raises(TransferError, match="no directory could tell"):
        far.find("default", [chunk.id])


SHARED = TierRules(keeps_copies=True, keeps_released=True, copies_at_once=True)


def memory_of(tier, chunks: int, mover: VerifyingMover | None = None) -> ChunkMemory:
    """Of a worker: room for so many chunks on the device, and the node tier."""
    device = ResidentTier("device", torch.device("cpu"), max(1, chunks * 1792))
    return ChunkMemory([device, tier], "weights-a", [TierRules(), SHARED], mover)


def test_a_moved_session_finds_its_chunks_on_another_node_without_their_bytes(village, new_chunk):
    town = village(20 * SIZE, nodes=("a", "b"))
    maker, mover = memory_of(town.worker(), 1), memory_of(town.worker("b", 2), 1)
    chunks = [new_chunk(i) for i in range(3)]
    assert chunks[0].nbytes < 1792 < 2 * chunks[0].nbytes
    ids = [maker.admit(chunk) for chunk in chunks]
    assert maker.tiers[1].flush(5) == set(ids)
    mover.admit_dropped(ids)
    assert not any(map(mover.holds, ids))
    mover.prefetch(ids)
    assert all(map(mover.holds, ids))
    assert town.objects.ahead == 3
    assert all(map(same, mover.fetch(ids), chunks))
    assert mover.stats().hits == 3
    mover.release(ids)
    assert mover.lying()[1] == ids
    for one in (maker, mover):
        assert one.check_integrity() == []
    town.check()


def test_another_tenant_finds_nothing_and_asks_in_the_same_way_as_for_what_never_was(village, new_chunk):
    town = village(20 * SIZE, nodes=("a", "b"))
    maker, mover = memory_of(town.worker(), 1), memory_of(town.worker("b", 2), 1)
    chunk_id = maker.admit(new_chunk(0))
    town.pass_time(1)
    asked = []
    for server in (*town.servers.values(), *town.replicas):
        find = server.find
        server.find = lambda tenant, names, *rest, find=find: asked.append(list(names)) or find(tenant, names, *rest)
    assert mover.fetch([chunk_id], tenant="other") == [None]
    of_another, asked[:] = len(asked), []
    assert mover.fetch(["0" * 32], tenant="other") == [None]
    assert len(asked) == of_another > 0
    assert mover.stats().misses["cold"] == 2
    assert mover.lying() == [[], []]


def test_an_eviction_by_others_is_a_miss_with_that_reason_and_a_dead_node_is_a_miss(village, new_chunk):
    town = village(4 * SIZE, nodes=("a", "b"))
    maker, other, far = memory_of(town.worker(), 1), memory_of(town.worker(pid=2), 1), memory_of(town.worker("b", 3), 0)
    first, second = [maker.admit(new_chunk(i)) for i in range(2)]
    town.pass_time(1)
    far.admit_dropped([first, second])
    assert None not in far.fetch([first, second])
    for i in range(2, 6):
        other.admit(new_chunk(i))
    assert maker.fetch([first]) == [None]
    assert maker.stats().misses == {**maker.stats().misses, "evicted": 1, "corrupt": 0}
    assert not maker.holds(first)
    assert far.fetch([first]) == [None]
    assert far.stats().misses["evicted"] == 1
    survivor = other.lying()[1][-1]
    town.pass_time(1)
    far.admit_dropped([survivor])
    assert far.fetch([survivor]) != [None]
    town.kill("a")
    assert far.fetch([survivor]) == [None]
    assert far.holds(survivor)  # the node may be back
    town.pass_time(6)
    assert far.fetch([survivor]) == [None]
    assert not far.holds(survivor)
    stats = far.stats()
    assert (stats.lookups, stats.hits, stats.misses["corrupt"]) == (6, 3, 2)
    for one in (maker, other, far):
        assert one.check_integrity() == []


def test_a_chunk_that_was_evicted_is_shared_again_when_it_is_admitted_again(village, new_chunk):
    town = village(4 * SIZE)
    maker, other = memory_of(town.worker(), 4), memory_of(town.worker(pid=2), 1)
    chunk_id = maker.admit(new_chunk(0))
    for i in range(1, 5):
        other.admit(new_chunk(i))
    assert maker.fetch([chunk_id])[0] is not None
    maker.release([chunk_id])
    maker.admit(new_chunk(0))
    assert chunk_id in maker.lying()[1]


def test_while_no_directory_answers_nothing_counts_as_copied(village, new_chunk, absent):
    town = village(20 * SIZE)
    tier, chunk = town.worker(), new_chunk(0)
    tier.put(chunk)
    known = town.replicas[:]
    town.replicas[:] = [absent(), absent()]
    assert tier.flush(2) == set()
    town.replicas[:] = known
    assert tier.flush(2) == {chunk.id}


def test_what_was_evicted_here_and_lies_on_a_node_that_does_not_answer_may_come_back(village, new_chunk):
    town = village(4 * SIZE, nodes=("a", "b"), copies=2)
    tier, other, chunk = town.worker(), town.worker(pid=2), new_chunk(0)
    tier.put(chunk)
    tier.flush(5)
    for i in range(1, 5):
        other.put(new_chunk(i))
    away = town.servers.pop("b")
    with pytest.raises(TransferError, match="cannot be read now: node b"):
        tier.get(chunk.id)
    town.servers["b"] = away
    assert same(tier.get(chunk.id), chunk)


class SlowObjects:
    """Bytes of another node that take as long as the test wants."""

    def __init__(self, objects):
        self._objects, self.asked, self.arrived = objects, threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self._objects, name)

    def open(self, handle):
        self.asked.set()
        assert self.arrived.wait(20)
        return self._objects.open(handle)


def test_what_lies_on_another_node_is_read_aside_while_the_session_goes_on(village, new_chunk):
    town = village(4 * SIZE, nodes=("a", "b"))
    maker, tier = memory_of(town.worker(), 1), town.worker("b", 2)
    assert isinstance(tier, ReadsAside)
    (wanted, other) = (maker.admit(new_chunk(i)) for i in range(2))
    town.pass_time(1)
    slow = town.objects = SlowObjects(town.objects)
    with ThreadPoolExecutor(2) as readers:
        reader = memory_of(tier, 10, VerifyingMover(readers=readers))
        reader.admit_dropped([wanted, other])
        expected = reader.prefetch([wanted, other])  # returns, though no byte has come
        assert reader.lying()[0] == []
        own = reader.admit(new_chunk(7))
        assert reader.fetch([own])[0] is not None
        slow.arrived.set()
        found = reader.fetch([wanted, other])
        assert [chunk.id for chunk in found] == [wanted, other]
        assert same(found[0], new_chunk(0))
        expected.let_go()
        assert set(reader.lying()[0]) == {wanted, other, own}
        prefetched = reader.stats().prefetch
        assert (prefetched.issued, prefetched.useful + prefetched.late) == (2, 2)
        assert reader.check_integrity() == []
    town.check()


def test_a_chunk_that_is_given_up_while_it_is_read_aside_leaves_nothing_behind(village, new_chunk):
    town = village(4 * SIZE, nodes=("a", "b"))
    maker, tier, chunk = town.worker(), town.worker("b", 2), new_chunk(0)
    maker.put(chunk)
    town.pass_time(1)
    tier.put(tier.find("default", [chunk.id])[chunk.id])
    slow = town.objects = SlowObjects(town.objects)
    with ThreadPoolExecutor(1) as readers:
        reading = readers.submit(tier.get, chunk.id)
        assert slow.asked.wait(20)
        tier.remove(chunk.id)
        slow.arrived.set()
        assert same(reading.result(), chunk)
    del reading
    assert tier._seen == {}
    gc.collect()
    tier.give_back()
    assert [server.figures()["lent_bytes"] for server in town.servers.values()] == [0, 0]
    town.check()


def test_prefetching_finds_shared_chunks_and_what_was_evicted_meanwhile_raises_nothing(village, new_chunk):
    town = village(4 * SIZE, nodes=("a", "b"))
    maker, mover = memory_of(town.worker(), 1), memory_of(town.worker("b", 2), 10)
    first, second = (maker.admit(new_chunk(i)) for i in range(2))
    town.pass_time(1)
    mover.admit_dropped([first, second])
    mover.prefetch([second, "unknown"]).let_go()
    assert mover.lying()[0] == [second]
    assert (mover.stats().tiers[1].written_bytes, mover.stats().prefetch.issued) == (0, 1)
    mover.fetch([second])
    assert mover.stats().prefetch.useful == 1
    mover.tiers[1].put(mover.tiers[1].find("default", [first])[first])
    entry = mover._catalogue.find("default", first)
    mover._catalogue.rename(entry, new_chunk(0))
    mover._catalogue.enter(entry, 1, SIZE)  # known, and then
    for i in range(2, 6):
        maker.admit(new_chunk(i))
    mover.prefetch([first]).let_go()
    assert mover.lying() == [[second], [second]]
    assert mover.check_integrity() == []
    town.check()
