"""Pins and leases: what is held neither moves nor goes."""

import pytest

from worldkv.errors import ChunkPinned, LeaseExpired


@pytest.fixture
def full(new_chunk, make_memory):
    """(memory of two tiers of two chunks, chunks 0 and 1 in the far tier, 2 and 3 in the near one, two more)"""
    chunks = [new_chunk(i) for i in range(6)]
    memory = make_memory(2 * chunks[0].nbytes, 2 * chunks[0].nbytes)
    for chunk in chunks[:4]:
        memory.admit(chunk)
    return memory, chunks


def test_pinned_chunks_are_passed_over_and_go_on_when_unpinned(full):
    memory, chunks = full
    with memory.pin([chunks[2].id, chunks[0].id]):
        memory.admit(chunks[4])
        memory.admit(chunks[5])
        assert memory.lying() == [[chunks[2].id, chunks[5].id], [chunks[0].id, chunks[4].id]]
    assert memory.stats().tiers[0].pinned_bytes == 0
    memory.admit(chunks[3])
    assert chunks[2].id not in memory.lying()[0]
    assert memory.check_integrity() == []


def test_where_all_is_pinned_a_new_chunk_finds_no_place_and_nobody_is_harmed(full):
    memory, chunks = full
    with memory.pin([chunk.id for chunk in chunks[:4]]):
        memory.admit(chunks[4])
        assert memory.fetch([chunks[4].id, chunks[2].id])[0] is None
        stats = memory.stats()
        assert (stats.misses["evicted"], stats.dropped) == (1, 1)
        assert [tier.pinned_bytes for tier in stats.tiers] == [2 * chunks[0].nbytes] * 2


def test_a_pinned_chunk_is_read_where_it_lies(full):
    memory, chunks = full
    with memory.pin([chunks[0].id]):
        assert memory.fetch([chunks[0].id])[0].index == 0
        assert chunks[0].id in memory.lying()[1]
    memory.fetch([chunks[0].id])
    assert chunks[0].id in memory.lying()[0]


def test_a_pinned_chunk_outlives_its_last_reference(full):
    memory, chunks = full
    with memory.pin([chunks[2].id]):
        memory.release([chunks[2].id])
        assert memory.fetch([chunks[2].id])[0].index == 2
    assert memory.fetch([chunks[2].id]) == [None]
    assert memory.stats().misses["cold"] == 1


def test_a_pin_ends_with_an_error_too(full):
    memory, chunks = full
    with pytest.raises(ZeroDivisionError), memory.pin([chunks[2].id]):
        _ = 1 / 0
    assert memory.stats().tiers[0].pinned_bytes == 0


def test_demotion_moves_one_tier_down_and_refuses_what_is_held(full):
    memory, chunks = full
    memory.release([chunks[0].id])
    memory.demote([chunks[2].id])
    assert memory.lying() == [[chunks[3].id], [chunks[1].id, chunks[2].id]]
    memory.demote([chunks[1].id])  # lies in the last tier already
    with memory.pin([chunks[3].id]), pytest.raises(ChunkPinned, match="1 pins and 0 leases"):
        memory.demote([chunks[3].id])


def test_a_lease_holds_until_its_time_and_no_longer(full):
    memory, chunks = full
    lease = memory.lease([chunks[2].id, "unknown"], seconds=10, now=100)
    assert lease.ids == (chunks[2].id,)
    memory.expire(109.9)
    memory.admit(chunks[4])
    assert chunks[2].id in memory.lying()[0]
    memory.expire(110)
    memory.admit(chunks[5])
    assert chunks[2].id not in memory.lying()[0]
    assert memory.check_integrity() == []


def test_a_renewed_lease_runs_on_and_an_expired_one_cannot_be_renewed(full):
    memory, chunks = full
    lease = memory.lease([chunks[2].id], seconds=10, now=0)
    memory.renew(lease, 10, now=9)
    memory.expire(18)
    assert memory.stats().tiers[0].pinned_bytes == chunks[2].nbytes
    memory.expire(19)
    assert memory.stats().tiers[0].pinned_bytes == 0
    with pytest.raises(LeaseExpired, match="it is 20 now"):
        memory.renew(lease, 10, now=20)
    memory.end_lease(lease)


def test_a_lease_that_ended_early_frees_its_chunks_at_once(full):
    memory, chunks = full
    lease = memory.lease([chunks[2].id], seconds=10, now=0)
    memory.release([chunks[2].id])
    assert memory.holds(chunks[2].id)
    memory.end_lease(lease)
    assert not memory.holds(chunks[2].id)
