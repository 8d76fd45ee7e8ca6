"""What a memory does between chunks, and the audit that every test of this folder ends with."""

import errno

import pytest
from faulty_disk import FaultyDisk

from worldkv.errors import TransferError
from worldkv.memory.store import AUDIT_SECONDS, AUDIT_SECONDS_PER_CHUNK, ChunkMemory
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.filesystem import FailPoint


def stuck_tier(memory, *, ids):
    """Let the first tier fail to remove these chunks, until the list is empty."""
    tier, remove = memory.tiers[0], memory.tiers[0].remove

    def refuse(chunk_id):
        if chunk_id in ids:
            raise TransferError("remove fails")
        remove(chunk_id)

    tier.remove = refuse


def test_leases_end_whenever_the_memory_is_idle(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory = make_memory(2 * chunk.nbytes)
    memory.admit(chunk)
    memory.lease([chunk.id], seconds=2, now=100)
    memory.release([chunk.id])
    memory.idle(101)
    assert memory.holds(chunk.id)
    memory.idle(102)
    assert not memory.holds(chunk.id)


def test_audits_come_at_once_then_seldom_and_a_clock_set_back_does_not_stop_them(make_memory):
    memory = make_memory(100)
    for now in (50, 51, 50 + AUDIT_SECONDS - 1):
        assert memory.idle(now) == []
    assert memory.stats().audits == 1
    memory.idle(50 + AUDIT_SECONDS)
    assert memory.stats().audits == 2
    memory.idle(10)
    assert memory.stats().audits == 3


def test_the_more_chunks_there_are_the_more_seldom_they_are_audited(make_memory):
    memory = make_memory(100)
    many = 2 * int(AUDIT_SECONDS / AUDIT_SECONDS_PER_CHUNK)
    memory.admit_dropped(f"{i:032x}" for i in range(many))
    memory.idle(0)
    memory.idle(2 * AUDIT_SECONDS - 1)
    assert memory.stats().audits == 1
    memory.idle(2 * AUDIT_SECONDS)
    assert memory.stats().audits == 2


def test_an_idle_memory_tries_again_to_remove_what_was_stuck(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory, stuck = make_memory(2 * chunk.nbytes), [chunk.id]
    memory.admit(chunk)
    stuck_tier(memory, ids=stuck)
    memory.release([chunk.id])
    memory.idle(0)
    assert memory.tiers[0].used_bytes == chunk.nbytes
    stuck.clear()
    memory.idle(AUDIT_SECONDS)
    assert memory.tiers[0].used_bytes == 0


def test_faults_are_told_and_counted_by_each_audit(new_chunk, make_memory, audits):
    chunk = new_chunk(0)
    memory = make_memory(2 * chunk.nbytes)
    audits.excuse(memory)
    memory.tiers[0].put(chunk)
    assert memory.idle(0) == [f"chunk {chunk.id} lies in tier tier0 but in no book"]
    memory.idle(1)
    memory.idle(AUDIT_SECONDS)
    assert (memory.stats().audits, memory.stats().faults) == (2, 2)


def test_a_disk_that_went_away_is_a_fault_and_stops_nobody(tmp_path, new_chunk, audits):
    disk = FaultyDisk()
    memory = ChunkMemory([DiskTier.open("disk", tmp_path / "tier", 2**20, disk)], "weights-a")
    audits.excuse(memory)
    disk.failing = {FailPoint.SCAN: errno.EIO}
    (fault,) = memory.idle(0)
    assert fault.startswith("tier disk: folder ")
    assert fault.endswith(" cannot be listed: Input/output error")
    memory.close()


@pytest.mark.parametrize("closed", [True, False])
def test_the_audit_after_each_test_finds_a_broken_book(new_chunk, make_memory, audits, auditing, closed):
    chunk = new_chunk(0)

    def test() -> None:
        with auditing():
            memory = make_memory(2 * chunk.nbytes)
            audits.excuse(memory)  # of the audit of this test itself
            memory.tiers[0].put(chunk)
            if closed:
                memory.close()

    with pytest.raises(AssertionError, match=f"chunk {chunk.id} lies in tier tier0 but in no book"):
        test()


def test_the_audit_after_each_test_passes_sound_books(new_chunk, make_memory, auditing):
    with auditing():
        make_memory(100).close()
        make_memory(1000).admit(new_chunk(0))
