import random

import pytest

from worldkv.errors import ConfigError
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tenants import Share, Shares


def shared_memory(make_memory, *capacities: int, **shares: Share) -> ChunkMemory:
    """Tiers in each of which the tenants have these shares."""
    rules = [TierRules(shares=Shares(shares)) for _ in capacities]
    return ChunkMemory(make_memory(*capacities).tiers, "weights-a", rules)


def chunks_of(new_chunk, tenant: str, count: int) -> list:
    return [new_chunk(i, tenant=tenant) for i in range(count)]


def fetch_one(memory: ChunkMemory, chunk) -> bool:
    return memory.fetch([chunk.id], tenant=chunk.tenant) != [None]


def test_a_tenant_over_its_limit_evicts_its_own_chunks_and_misses_them_as_quota(new_chunk, make_memory):
    ours, theirs = chunks_of(new_chunk, "ours", 4), chunks_of(new_chunk, "theirs", 3)
    size = ours[0].nbytes
    memory = shared_memory(make_memory, 10 * size, ours=Share(limit_bytes=2 * size))
    for chunk in [*theirs, *ours]:
        memory.admit(chunk)
    assert memory.lying() == [[chunk.id for chunk in [*theirs, *ours[2:]]]]
    assert [fetch_one(memory, chunk) for chunk in [*ours, *theirs]] == [False, False, True, True, True, True, True]
    assert memory.stats().misses["quota"] == 2
    row = next(row for row in memory.stats().tenants if row.tenant == "ours")
    assert (row.chunks, row.used_bytes, row.lookups, row.hits, row.misses["quota"]) == (2, 2 * size, 4, 2, 2)


def test_over_its_limit_in_one_tier_a_chunk_goes_on_to_the_next(new_chunk, make_memory):
    ours = chunks_of(new_chunk, "ours", 3)
    size = ours[0].nbytes
    memory = shared_memory(make_memory, 10 * size, 10 * size, ours=Share(limit_bytes=size))
    for chunk in ours:
        memory.admit(chunk)
    assert memory.lying() == [[ours[2].id], [ours[1].id]]
    assert not fetch_one(memory, ours[0])
    assert memory.stats().misses["quota"] == 1


def test_a_chunk_larger_than_the_tenants_limit_is_a_miss_by_quota(new_chunk, make_memory):
    chunk = new_chunk(0, tenant="ours")
    memory = shared_memory(make_memory, 10 * chunk.nbytes, ours=Share(limit_bytes=chunk.nbytes - 1))
    memory.admit(chunk)
    assert not fetch_one(memory, chunk)
    assert memory.stats().misses["quota"] == 1


def test_what_is_reserved_is_safe_from_others_and_what_is_beyond_is_not(new_chunk, make_memory):
    guarded, noisy = chunks_of(new_chunk, "guarded", 3), chunks_of(new_chunk, "noisy", 20)
    size = guarded[0].nbytes
    memory = shared_memory(make_memory, 5 * size, guarded=Share(reserved_bytes=2 * size))
    for chunk in [*guarded, *noisy]:
        memory.admit(chunk)
    assert [fetch_one(memory, chunk) for chunk in guarded] == [False, True, True]


def test_a_guarded_tenant_can_take_back_what_it_reserved(new_chunk, make_memory):
    guarded, noisy = chunks_of(new_chunk, "guarded", 2), chunks_of(new_chunk, "noisy", 5)
    size = guarded[0].nbytes
    memory = shared_memory(make_memory, 5 * size, guarded=Share(reserved_bytes=2 * size))
    for chunk in [*noisy, *guarded]:
        memory.admit(chunk)
    assert all(fetch_one(memory, chunk) for chunk in guarded)


def test_a_tenant_whose_neighbours_reserved_everything_is_dropped_not_they(new_chunk, make_memory):
    guarded, other = chunks_of(new_chunk, "guarded", 2), new_chunk(0, tenant="other")
    size = other.nbytes
    memory = shared_memory(make_memory, 2 * size, guarded=Share(reserved_bytes=2 * size))
    for chunk in [*guarded, other]:
        memory.admit(chunk)
    assert not fetch_one(memory, other)
    assert memory.stats().misses["evicted"] == 1
    assert all(fetch_one(memory, chunk) for chunk in guarded)


@pytest.mark.parametrize("seed", range(2))
def test_a_noisy_tenant_costs_a_guarded_one_at_most_a_point_of_its_hit_rate(new_chunk, make_memory, seed):
    guarded, noisy = chunks_of(new_chunk, "guarded", 30), chunks_of(new_chunk, "noisy", 120)
    size = guarded[0].nbytes

    def hit_rate(noise: int) -> float:
        """Of the guarded tenant, which uses what is reserved for it in each of two tiers."""
        rng, other = random.Random(seed), random.Random(seed)
        memory = shared_memory(make_memory, 24 * size, 24 * size, guarded=Share(12 * size, 12 * size))
        for chunk in guarded:
            memory.admit(chunk)
        hits = 0
        for _ in range(300):
            hits += fetch_one(memory, guarded[int(rng.triangular(0, 29, 29))])
            for _ in range(noise):
                memory.admit(other.choice(noisy))
                fetch_one(memory, other.choice(noisy))
        assert memory.check_integrity() == []
        return hits / 300

    alone = hit_rate(0)
    assert 0.5 < alone < 1
    assert hit_rate(4) >= alone - 0.01


def test_more_reserved_than_there_is_is_refused(make_memory):
    with pytest.raises(ConfigError, match="tier tier0: 11 bytes are reserved for tenants, its capacity is 10"):
        shared_memory(make_memory, 10, a=Share(reserved_bytes=5), b=Share(reserved_bytes=6))
    with pytest.raises(ConfigError, match="reserved_bytes=5, limit_bytes=4"):
        Share(5, 4)
