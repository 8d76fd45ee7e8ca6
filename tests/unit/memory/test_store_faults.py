"""Tiers that damage, refuse or lose chunks: a miss with a reason or another copy, never wrong bytes, never an error."""

import pytest
import torch

from worldkv.errors import TransferError
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.resident import ResidentTier

CPU = torch.device("cpu")


class Failing(ResidentTier):
    """A tier whose named verbs fail."""

    verbs: tuple[str, ...] = ()

    def put(self, chunk):
        if "put" in self.verbs:
            raise TransferError("put fails")
        super().put(chunk)

    def get(self, chunk_id):
        if "get" in self.verbs:
            raise TransferError("get fails")
        return super().get(chunk_id)

    def remove(self, chunk_id):
        if "remove" in self.verbs:
            raise TransferError("remove fails")
        super().remove(chunk_id)


def two_tiers(chunk, *, far_keeps_copies: bool = False) -> ChunkMemory:
    """Room for one chunk in `near`, for three in `far`; both verify what they give."""
    tiers = [Failing("near", CPU, chunk.nbytes, verifies=True), Failing("far", CPU, 3 * chunk.nbytes, verifies=True)]
    return ChunkMemory(tiers, "weights-a", [TierRules(), TierRules(keeps_copies=far_keeps_copies)])


def test_a_damaged_copy_is_one_corrupt_miss_in_its_tier_and_a_hit_in_the_next(new_chunk, damage):
    a, b = new_chunk(0), new_chunk(1)
    memory = two_tiers(a, far_keeps_copies=True)
    for chunk in (a, b):
        memory.admit(chunk)
    memory.fetch([a.id])
    assert memory.lying() == [[a.id], [b.id, a.id]] or memory.lying() == [[a.id], [a.id, b.id]]
    damage(memory.tiers[0], a.id)
    found = memory.fetch([a.id])[0]
    found.verify()
    stats = memory.stats()
    assert [tier.misses["corrupt"] for tier in stats.tiers] == [1, 0]
    assert (stats.misses["corrupt"], stats.quarantined, stats.tiers[1].hits) == (0, 1, 2)
    assert memory.fetch([a.id])[0] is not None
    assert memory.check_integrity() == []


def test_a_tier_that_cannot_write_is_passed_over(new_chunk):
    a = new_chunk(0)
    memory = two_tiers(a)
    memory.tiers[0].verbs = ("put",)
    memory.admit(a)
    assert memory.lying() == [[], [a.id]]
    assert memory.fetch([a.id])[0].id == a.id
    assert memory.stats().tiers[0].failures > 0
    assert memory.check_integrity() == []


def test_a_copy_that_stays_is_booked_once_when_its_promotion_fails(new_chunk):
    a = new_chunk(0)
    memory = two_tiers(a, far_keeps_copies=True)
    memory.admit(a)
    memory.demote([a.id])
    memory.tiers[0].verbs = ("put",)
    assert memory.fetch([a.id])[0].id == a.id
    assert memory.lying() == [[], [a.id]]
    assert memory.check_integrity() == []


def test_where_no_tier_can_write_the_chunk_is_dropped_and_misses(new_chunk):
    a = new_chunk(0)
    memory = two_tiers(a)
    for tier in memory.tiers:
        tier.verbs = ("put",)
    memory.admit(a)
    assert memory.fetch([a.id]) == [None]
    assert (memory.stats().misses["evicted"], memory.stats().dropped) == (1, 1)


def test_a_tier_that_cannot_read_now_is_a_miss_now_and_a_hit_later(new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    memory = two_tiers(a)
    memory.admit(a)
    memory.admit(b)
    memory.tiers[1].verbs = ("get",)
    assert memory.fetch([a.id]) == [None]
    assert memory.holds(a.id)
    stats = memory.stats()
    assert (stats.misses["corrupt"], stats.tiers[1].failures, stats.quarantined) == (1, 1, 0)
    memory.tiers[1].verbs = ()
    assert memory.fetch([a.id])[0].id == a.id


def test_bytes_that_could_not_be_removed_stay_counted_until_they_are(new_chunk):
    chunks = [new_chunk(i) for i in range(5)]
    memory = two_tiers(chunks[0])
    for chunk in chunks[:4]:
        memory.admit(chunk)
    memory.tiers[1].verbs = ("remove",)
    memory.release([chunks[0].id])
    assert memory.tiers[1].used_bytes == 3 * chunks[0].nbytes
    assert memory.fetch([chunks[0].id]) == [None]
    assert memory.check_integrity() == []
    memory.tiers[1].verbs = ()
    memory.admit(chunks[4])  # its room is where the released chunk still lay
    assert memory.lying() == [[chunks[4].id], [chunk.id for chunk in chunks[1:4]]]
    assert memory.check_integrity() == []


def disk_memory(folder, chunk, epoch: str = "weights-a") -> ChunkMemory:
    tiers = [ResidentTier("host", CPU, chunk.nbytes), DiskTier.open("disk", folder, 4 * 4096)]
    return ChunkMemory(tiers, epoch, [TierRules(), TierRules(keeps_copies=True)])


def test_what_lies_on_disk_is_found_by_the_next_process(new_chunk, tmp_path):
    chunks = [new_chunk(i) for i in range(3)]
    first = disk_memory(tmp_path / "chunks", chunks[0])
    for chunk in chunks:
        first.admit(chunk)
    assert len(first.lying()[1]) == 2
    first.close()
    second = disk_memory(tmp_path / "chunks", chunks[0])
    assert second.adopt() == 2
    assert [chunk and chunk.index for chunk in second.fetch([chunk.id for chunk in chunks])] == [0, 1, None]
    assert second.fetch([chunks[0].id], tenant="another") == [None]
    second.admit_dropped([chunks[0].id])
    assert second.check_integrity() == []
    second.release([chunks[0].id])
    assert not second.holds(chunks[0].id)
    second.close()


def test_a_look_at_a_chunk_whose_file_is_gone_changes_no_book(new_chunk, tmp_path):
    chunk = new_chunk(0)
    memory = disk_memory(tmp_path / "chunks", chunk)
    memory.admit(chunk)
    memory.demote([chunk.id])
    (file,) = (tmp_path / "chunks").rglob(f"{chunk.id}*")
    file.unlink()
    before = memory.stats()
    assert memory.held([chunk.id]) == {}
    assert memory.stats() == before
    assert memory.fetch([chunk.id]) == [None]
    assert memory.check_integrity() == []
    memory.close()


def test_chunks_found_of_other_weights_are_stale_and_their_room_is_used(new_chunk, tmp_path):
    chunks = [new_chunk(i) for i in range(6)]
    first = disk_memory(tmp_path / "chunks", chunks[0])
    for chunk in chunks[:5]:
        first.admit(chunk)
    on_disk = first.lying()[1]
    first.close()
    second = disk_memory(tmp_path / "chunks", chunks[0], epoch="weights-b")
    assert second.adopt() == len(on_disk) > 1
    assert second.fetch(on_disk[:1]) == [None]
    assert second.stats().misses["stale_epoch"] == 1
    for i in range(5):
        second.admit(new_chunk(i, epoch="weights-b"))
    assert len(second.lying()[1]) == len(on_disk)
    assert set(second.lying()[1]).isdisjoint(on_disk)
    assert second.check_integrity() == []
    second.close()


@pytest.mark.parametrize("place", [0, 200, -1])
def test_a_damaged_file_is_quarantined_at_the_next_start(new_chunk, tmp_path, place):
    chunk = new_chunk(0)
    first = DiskTier.open("disk", tmp_path / "chunks", 4 * 4096)
    first.put(chunk)
    first.close()
    (file,) = (tmp_path / "chunks").rglob(f"{chunk.id}*")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    second = disk_memory(tmp_path / "chunks", chunk)
    assert second.adopt() in (0, 1)
    found = second.fetch([chunk.id])[0]
    assert found is None or found.id == chunk.id
    assert second.check_integrity() == []
    second.close()
