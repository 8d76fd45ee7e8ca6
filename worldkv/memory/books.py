"""What the chunk memory counts, and the frozen figures made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.tier import Tier
from worldkv.stats import MISS_REASONS, MemoryStats, TenantStats, TierStats

EVENTS = ("admitted", "admitted_bytes", "demoted", "promoted", "dropped", "reduced", "quarantined", "audits", "faults")


class Books:
    """Counters; each lookup is entered once, when its outcome is known."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.failures: Counter[int] = Counter()
        """By tier."""
        self._hits: Counter[tuple[int, str]] = Counter()
        self._misses: Counter[tuple[int, str, str]] = Counter()
        self._lookups: Counter[tuple[int, str]] = Counter()
        self._all_lookups = 0
        self._final: Counter[str] = Counter()

    def passed(self, tier: int, tenant: str, reason: str) -> None:
        """The tier was asked and could not give the chunk."""
        self._lookups[tier, tenant] += 1
        self._misses[tier, tenant, reason] += 1

    def hit(self, tier: int, tenant: str) -> None:
        """The lookup ended in this tier."""
        self._all_lookups += 1
        self._lookups[tier, tenant] += 1
        self._hits[tier, tenant] += 1

    def miss(self, reason: str) -> None:
        """The lookup ended with nothing."""
        self._all_lookups += 1
        self._final[reason] += 1

    def stats(self, tiers: Sequence[Tier], catalogue: Catalogue) -> MemoryStats:
        """Everything, frozen."""
        per_tenant = [
            self._tenant(level, tier, tenant, catalogue)
            for level, tier in enumerate(tiers)
            for tenant in sorted(catalogue.tenants(level) | {who for at, who in self._lookups if at == level})
        ]
        firm = [entry for entry in catalogue.entries() if entry.firm]
        return MemoryStats(
            lookups=self._all_lookups,
            hits=self._hits.total(),
            misses={reason: self._final[reason] for reason in MISS_REASONS},
            tiers=tuple(self._tier(level, tier, firm) for level, tier in enumerate(tiers)),
            tenants=tuple(per_tenant),
            **{event: self.events[event] for event in EVENTS},
        )

    def _tier(self, level: int, tier: Tier, firm: Sequence[Entry]) -> TierStats:
        return TierStats(
            name=tier.name,
            chunks=len(tier),
            used_bytes=tier.used_bytes,
            capacity_bytes=tier.capacity_bytes,
            hits=sum(n for (at, _), n in self._hits.items() if at == level),
            lookups=sum(n for (at, _), n in self._lookups.items() if at == level),
            misses=self._reasons(level, None),
            failures=self.failures[level],
            pinned_bytes=sum(entry.copies[level].cost_bytes for entry in firm if level in entry.copies),
        )

    def _tenant(self, level: int, tier: Tier, tenant: str, catalogue: Catalogue) -> TenantStats:
        return TenantStats(
            tenant=tenant,
            tier=tier.name,
            chunks=catalogue.chunks(level, tenant),
            used_bytes=catalogue.used_bytes(level, tenant),
            hits=self._hits[level, tenant],
            lookups=self._lookups[level, tenant],
            misses=self._reasons(level, tenant),
        )

    def _reasons(self, level: int, tenant: str | None) -> dict[str, int]:
        found = dict.fromkeys(MISS_REASONS, 0)
        for (at, who, reason), n in self._misses.items():
            if at == level and tenant in (None, who):
                found[reason] += n
        return found
