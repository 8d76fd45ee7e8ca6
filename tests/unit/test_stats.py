"""Figures of several workers as one."""

from worldkv.stats import Durations, MemoryStats, PrefetchStats, TenantStats, TierStats


def memory(times: int, tenant: str = "a") -> MemoryStats:
    misses = {"cold": times, "evicted": 0}
    tier = TierStats(
        "device", 2 * times, 3 * times, 4 * times, times, 2 * times, misses, writes=Durations(seconds=times)
    )
    row = TenantStats(tenant, "device", 2 * times, 3 * times, times, 2 * times, misses)
    counts = {"admitted": 5 * times, "prefetch": PrefetchStats(issued=times)}
    return MemoryStats(2 * times, times, misses, tiers=(tier,), tenants=(row,), **counts)


def test_two_memories_add_up_and_the_books_still_balance():
    both = memory(1).plus(memory(2))
    assert both == memory(3)
    assert both.lookups == both.hits + sum(both.misses.values())


def test_tenants_that_only_one_of_them_has_stay():
    both = memory(1).plus(memory(2, "b"))
    assert [(row.tenant, row.chunks) for row in both.tenants] == [("a", 2), ("b", 4)]
