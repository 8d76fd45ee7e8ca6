from dataclasses import asdict

import msgpack
import pytest
import torch

from worldkv.errors import CapacityError, ChunkForeign, ChunkNotFound
from worldkv.memory.store import ChunkMemory


def misses(memory: ChunkMemory) -> dict[str, int]:
    return {reason: count for reason, count in memory.stats().misses.items() if count}


def test_a_memory_without_tiers_is_refused():
    with pytest.raises(CapacityError, match="at least one tier"):
        ChunkMemory([], "weights-a")


def test_the_least_recently_used_chunk_is_demoted_first(new_chunk, make_memory):
    a, b, c, d = (new_chunk(i) for i in range(4))
    memory = make_memory(3 * a.nbytes, 3 * a.nbytes)
    for chunk in (a, b, c):
        memory.admit(chunk)
    memory.fetch([a.id])  # b is now the oldest
    memory.admit(d)
    assert memory.lying() == [[c.id, a.id, d.id], [b.id]]
    assert memory.stats().demoted == 1


def test_the_last_tier_drops_its_oldest_chunk(new_chunk, make_memory):
    chunks = [new_chunk(i) for i in range(4)]
    memory = make_memory(chunks[0].nbytes, 2 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    assert memory.lying() == [[chunks[3].id], [chunks[1].id, chunks[2].id]]
    stats = memory.stats()
    assert (stats.admitted, stats.demoted, stats.dropped) == (4, 3, 1)


def test_a_chunk_that_is_pushed_out_of_everything_is_dropped_not_demoted(new_chunk, make_memory):
    large, small = new_chunk(0, tokens=6), new_chunk(1, tokens=2)
    memory = make_memory(large.nbytes, small.nbytes)
    memory.admit(large)
    memory.admit(small)
    assert memory.lying() == [[small.id], []]
    assert (memory.stats().demoted, memory.stats().dropped) == (0, 1)


def test_a_hit_in_a_colder_tier_promotes_the_chunk(new_chunk, make_memory):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(a.nbytes, a.nbytes)
    memory.admit(a)
    memory.admit(b)
    assert memory.lying() == [[b.id], [a.id]]
    assert memory.fetch([a.id])[0] is memory.tiers[0].get(a.id)
    assert memory.lying() == [[a.id], [b.id]]
    stats = memory.stats()
    assert (stats.promoted, [tier.hits for tier in stats.tiers]) == (1, [0, 1])


def test_a_chunk_too_large_for_tier_0_lives_and_hits_in_tier_1(new_chunk, make_memory):
    large, small = new_chunk(0, tokens=6), new_chunk(1, tokens=2)
    memory = make_memory(small.nbytes, large.nbytes)
    memory.admit(small)
    memory.admit(large)
    assert memory.fetch([large.id])[0].id == large.id
    assert memory.lying() == [[small.id], [large.id]]
    assert (memory.stats().promoted, memory.stats().demoted) == (0, 0)


def test_a_chunk_larger_than_every_tier_misses_as_evicted(new_chunk, make_memory):
    large, small = new_chunk(0, tokens=6), new_chunk(1, tokens=2)
    memory = make_memory(small.nbytes, small.nbytes)
    memory.admit(small)
    memory.admit(large)
    assert memory.lying() == [[small.id], []]
    assert memory.fetch([large.id]) == [None]
    assert misses(memory) == {"evicted": 1}
    assert memory.stats().dropped == 1


def test_a_chunk_that_nobody_admitted_misses_as_cold(make_memory):
    memory = make_memory(1000)
    assert memory.fetch(["0" * 32]) == [None]
    assert misses(memory) == {"cold": 1}


def test_a_chunk_of_another_model_is_refused_with_both_epochs(new_chunk, make_memory):
    memory, chunk = make_memory(10**6), new_chunk(3, epoch="another-model")
    with pytest.raises(
        ChunkForeign, match=f"chunk {chunk.id}, number 3.*'weights-a' expected, 'another-model' found: "
    ):
        memory.admit(chunk)
    assert (memory.stats().admitted, memory.lying(), memory.fetch([chunk.id])) == (0, [[]], [None])
    assert memory.check_integrity([]) == []


def test_a_chunk_of_another_tenant_is_refused_with_both_tenants(new_chunk, make_memory):
    memory, chunk = make_memory(10**6), new_chunk(0, tenant="theirs")
    with pytest.raises(ChunkForeign, match=r"tenant 'ours' expected, 'theirs' found; admit it for the tenant"):
        memory.admit(chunk, tenant="ours")
    assert memory.check_integrity([]) == []
    assert memory.admit(chunk, tenant="theirs") == chunk.id


def test_a_chunk_of_the_weights_before_misses_as_stale_and_is_dropped(new_chunk, make_memory):
    chunk = new_chunk(0, epoch="weights-a")
    memory = make_memory(2 * chunk.nbytes)
    memory.set_epoch("weights-b")
    memory.admit(chunk)
    assert memory.fetch([chunk.id]) == [None]
    assert misses(memory) == {"stale_epoch": 1}
    assert memory.lying() == [[]]
    assert memory.stats().dropped == 1


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
def test_a_flipped_byte_in_the_host_tier_is_a_miss_never_a_chunk(new_chunk, make_memory, damage, codec):
    a, b = new_chunk(0, codec=codec), new_chunk(1, codec=codec)
    memory = make_memory(a.nbytes, 2 * a.nbytes)
    memory.admit(a)
    memory.admit(b)
    damage(memory.tiers[1], a.id)
    assert memory.fetch([a.id]) == [None]
    assert misses(memory) == {"corrupt": 1}
    assert memory.lying() == [[b.id], []]
    assert memory.fetch([a.id]) == [None]
    assert misses(memory) == {"corrupt": 1, "evicted": 1}


def test_a_corrupt_chunk_that_is_admitted_again_hits_again(new_chunk, make_memory, damage):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(a.nbytes, 2 * a.nbytes)
    memory.admit(a)
    memory.admit(b)
    damage(memory.tiers[1], a.id)
    memory.fetch([a.id])
    memory.admit(a)
    assert memory.fetch([a.id])[0].id == a.id


def test_fetch_answers_in_the_order_of_the_question(new_chunk, make_memory):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(4 * a.nbytes)
    memory.admit(a)
    memory.admit(b)
    found = memory.fetch([b.id, "0" * 32, a.id, b.id])
    assert [chunk and chunk.index for chunk in found] == [1, None, 0, 1]


def test_equal_content_is_stored_once_and_goes_with_its_last_holder(new_chunk, make_memory):
    chunk, twin = new_chunk(0), new_chunk(0)
    memory = make_memory(4 * chunk.nbytes)
    assert memory.admit(chunk) == memory.admit(twin)
    assert memory.tiers[0].used_bytes == chunk.nbytes
    memory.release([chunk.id])
    assert memory.fetch([chunk.id])[0] is not None
    memory.release([chunk.id])
    assert memory.lying() == [[]]
    assert memory.fetch([chunk.id]) == [None]
    assert misses(memory) == {"cold": 1}


def test_tenants_never_share_a_chunk(new_chunk, make_memory):
    ours, theirs = new_chunk(0, tenant="ours"), new_chunk(0, tenant="theirs")
    memory = make_memory(4 * ours.nbytes)
    memory.admit(ours)
    memory.admit(theirs)
    memory.release([theirs.id], tenant="theirs")
    assert memory.lying() == [[ours.id]]


def test_releasing_what_nobody_holds_is_refused(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory = make_memory(chunk.nbytes)
    memory.admit(chunk)
    memory.release([chunk.id])
    with pytest.raises(ChunkNotFound, match=f"chunk {chunk.id} of tenant default is held by nobody"):
        memory.release([chunk.id])


def test_chunks_dropped_elsewhere_miss_as_evicted_until_released(make_memory):
    memory = make_memory(1000)
    memory.admit_dropped(["a"])
    memory.fetch(["a"])
    memory.release(["a"])
    memory.fetch(["a"])
    assert misses(memory) == {"evicted": 1, "cold": 1}
    assert memory.check_integrity() == []


def test_held_lists_sound_chunks_coldest_first_and_moves_nothing(new_chunk, make_memory, damage):
    chunks = [new_chunk(i) for i in range(5)]
    memory = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    damage(memory.tiers[1], chunks[1].id)
    before = memory.lying(), memory.stats()
    held = memory.held([chunk.id for chunk in chunks[:4]] + ["unknown"])
    assert [chunk.index for chunk in held.values()] == [0, 2, 3]
    assert (memory.lying(), memory.stats()) == before


def test_chunks_admitted_as_held_lists_them_lie_where_they_lay(new_chunk, make_memory):
    chunks = [new_chunk(i) for i in range(6)]
    memory = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    memory.fetch([chunks[2].id, chunks[4].id])
    twin = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in memory.held(chunk.id for chunk in chunks).values():
        twin.admit(chunk)
    assert twin.lying() == memory.lying()


def test_the_audit_names_each_kind_of_fault(new_chunk, make_memory, audits):
    a, b, c = (new_chunk(i) for i in range(3))
    memory = make_memory(4 * a.nbytes, 4 * a.nbytes)
    audits.excuse(memory)
    memory.admit(a)
    memory.admit(c)
    memory.tiers[1].put(b)
    memory.tiers[0].remove(a.id)
    memory.tiers[0].used_bytes += 1
    faults = "\n".join(memory.check_integrity())
    assert f"chunk {b.id} lies in tier tier1 but in no book" in faults
    assert f"chunk {a.id} is booked in tier tier0 but is not there" in faults
    assert f"tier tier0: {c.nbytes} bytes held, {c.nbytes + 1} booked" in faults
    assert f"tier tier0: {2 * c.nbytes} bytes held, {c.nbytes + 1} used" in faults


def test_stats_are_a_copy_of_that_moment(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory = make_memory(2 * chunk.nbytes)
    before = memory.stats()
    memory.admit(chunk)
    memory.fetch([chunk.id, "unknown"])
    after = memory.stats()
    assert (before.lookups, before.admitted, before.tiers[0].chunks) == (0, 0, 0)
    assert (after.lookups, after.hits, after.misses["cold"]) == (2, 1, 1)
    assert (after.admitted, after.admitted_bytes) == (1, chunk.nbytes)
    tier = after.tiers[0]
    assert (tier.chunks, tier.used_bytes, tier.capacity_bytes) == (1, chunk.nbytes, 2 * chunk.nbytes)


def test_what_is_fetched_is_what_was_admitted(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory = make_memory(2 * chunk.nbytes)
    memory.admit(chunk)
    (found,) = memory.fetch([chunk.id])
    for name, tensor in chunk.encoded.tensors.items():
        assert torch.equal(found.encoded.tensors[name], tensor)


def test_stats_are_plain_values_that_can_be_packed(new_chunk, make_memory):
    memory = make_memory(1000, 1000)
    memory.admit(new_chunk(0))
    memory.fetch(["unknown"])
    stats = asdict(memory.stats())
    assert msgpack.unpackb(msgpack.packb(stats), use_list=False) == stats


def test_each_tier_counts_the_lookups_that_reached_it(new_chunk, make_memory):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(a.nbytes, a.nbytes)
    memory.admit(a)
    memory.admit(b)
    memory.fetch([a.id, "unknown"])
    near, far = memory.stats().tiers
    assert (near.lookups, near.hits, near.misses["evicted"], near.misses["cold"]) == (2, 0, 1, 1)
    assert (far.lookups, far.hits, far.misses["cold"]) == (2, 1, 1)


def test_no_chunk_of_a_fetch_is_displaced_by_another_one_of_it(new_chunk, make_memory):
    chunks = [new_chunk(i) for i in range(4)]
    memory = make_memory(2 * chunks[0].nbytes, 2 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    found = memory.fetch([chunk.id for chunk in chunks])
    assert [chunk.index for chunk in found] == [0, 1, 2, 3]
    assert memory.lying()[0] == [chunks[0].id, chunks[1].id]


def test_after_set_epoch_old_chunks_miss_as_stale_and_new_ones_hit(new_chunk, make_memory):
    old, new = new_chunk(0), new_chunk(0, epoch="weights-b")
    memory = make_memory(2 * old.nbytes)
    memory.admit(old)
    memory.set_epoch("weights-b")
    memory.admit(new)
    assert not memory.holds(old.id)
    assert [chunk and chunk.epoch for chunk in memory.fetch([old.id, new.id, old.id])] == [None, "weights-b", None]
    assert misses(memory) == {"stale_epoch": 2}
    assert memory.lying() == [[new.id]]


def test_a_chunk_dropped_elsewhere_is_of_the_weights_that_made_it_once_it_comes(new_chunk, make_memory):
    chunk = new_chunk(0, epoch="weights-b")
    memory = make_memory(chunk.nbytes)
    memory.admit_dropped([chunk.id])
    memory.set_epoch("weights-b")
    memory.admit(chunk)
    assert memory.fetch([chunk.id])[0] is not None
    assert memory.check_integrity() == []


def test_set_epoch_touches_no_chunk_and_their_bytes_go_first_when_room_is_needed(new_chunk, make_memory):
    old = [new_chunk(i) for i in range(3)]
    new = [new_chunk(i, epoch="weights-b") for i in range(2)]
    memory = make_memory(4 * old[0].nbytes, 4 * old[0].nbytes)
    for chunk in old:
        memory.admit(chunk)
    memory.set_epoch("weights-b")
    assert memory.lying() == [[chunk.id for chunk in old], []]
    memory.admit(new[0])
    memory.fetch([new[0].id])
    memory.admit(new[1])
    # Dropped, not demoted: nobody will ever read them.
    assert memory.lying() == [[old[1].id, old[2].id, new[0].id, new[1].id], []]
    assert memory.check_integrity() == []


def test_a_lookup_of_another_tenants_chunk_is_cold_and_changes_nothing(new_chunk, make_memory):
    a, b = new_chunk(0, tenant="ours"), new_chunk(1, tenant="ours")
    memory = make_memory(a.nbytes, a.nbytes)
    memory.admit(a)
    memory.admit(b)
    before = memory.lying()
    assert memory.fetch([a.id, b.id, "unknown"], tenant="theirs") == [None, None, None]
    assert memory.lying() == before
    assert misses(memory) == {"cold": 3}
    rows = [row for row in memory.stats().tenants if row.tenant == "theirs"]
    assert [(row.lookups, row.misses["cold"], row.used_bytes) for row in rows] == [(3, 3, 0), (3, 3, 0)]
    with pytest.raises(ChunkNotFound, match="tenant theirs"):
        memory.release([a.id], tenant="theirs")
    assert not memory.holds(a.id, tenant="theirs")
