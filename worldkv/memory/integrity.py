"""The audit of the chunk memory: every book recounted from another one. Reads no payloads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.placement import Placement, TierRules
from worldkv.memory.tier import Tier
from worldkv.stats import MemoryStats, TenantStats, TierStats


def tier_faults(placement: Placement, catalogue: Catalogue) -> Iterator[str]:
    """Tiers against the catalogue: what lies where, free + held + in flight = capacity, limits."""
    entries, rules = catalogue.entries(), placement.rules
    for level, tier in enumerate(placement.tiers):
        yield from tier.check()
        booked = {entry.id: entry for entry in entries if level in entry.copies}
        here = set(tier.ids()) - placement.access.stuck[level] - set(placement.access.unread[level].values())
        yield from (f"chunk {i} lies in tier {tier.name} but in no book" for i in sorted(here - booked.keys()))
        yield from (f"chunk {i} is booked in tier {tier.name} but is not there" for i in sorted(booked.keys() - here))
        held = sum(entry.copies[level].cost_bytes for entry in booked.values())
        # What a tier counts beyond what is held is still being read, written or removed there.
        if not held <= tier.used_bytes <= tier.capacity_bytes:
            yield f"tier {tier.name}: {held} bytes held, {tier.used_bytes} used, {tier.capacity_bytes} cap"
        if len(booked) != sum(1 for _ in catalogue.lying(level)):
            yield f"tier {tier.name}: {len(booked)} chunks booked, another number stands in order of use"
        yield from _tenant_faults(level, tier, rules[level], booked.values(), catalogue)


def _tenant_faults(
    level: int, tier: Tier, rules: TierRules, booked: Iterable[Entry], catalogue: Catalogue
) -> Iterator[str]:
    used: Counter[str] = Counter()
    for entry in booked:
        used[entry.tenant] += entry.copies[level].cost_bytes
    for tenant in sorted(catalogue.tenants(level) | used.keys()):
        booked_bytes = catalogue.used_bytes(level, tenant)
        if used[tenant] != booked_bytes:
            yield f"tier {tier.name}: tenant {tenant} holds {used[tenant]} bytes, {booked_bytes} booked"
        if rules.shares.over_limit_bytes(tenant, used[tenant], 0) > 0:
            yield f"tier {tier.name}: tenant {tenant} holds {used[tenant]} bytes, over its limit"


def entry_faults(catalogue: Catalogue) -> Iterator[str]:
    """Entries against their names and holders."""
    for (tenant, name), entry in catalogue.names():
        if tenant != entry.tenant or name not in entry.names:
            yield f"chunk {name} of tenant {tenant} leads to one that does not know the name"
    for entry in catalogue.entries():
        if not entry.wanted:
            yield f"chunk {entry.id} is held by nobody"
        if min(entry.references, entry.pins, entry.leases) < 0:
            yield f"chunk {entry.id}: {entry.references} references, {entry.pins} pins, {entry.leases} leases"


def reference_faults(catalogue: Catalogue, lists: Iterable[ChunkList], tenant: str) -> Iterator[str]:
    """References of the tenant's chunks against the lists of all its sessions: neither leaked nor missing."""
    parts = {id(part): part for chunks in lists for part in chunks.parts}
    holders = Counter(id(part) for chunks in lists for part in chunks.parts)
    yield from (
        f"a part of {len(part.ids)} chunks counts {part.holders} lists, {holders[key]} hold it"
        for key, part in parts.items()
        if part.holders != holders[key]
    )
    counted: Counter[Entry] = Counter()
    for part in parts.values():
        for chunk_id in part.ids.values():
            entry = catalogue.find(tenant, chunk_id)
            if entry is None:
                yield f"chunk {chunk_id} stands in a list but is unknown"
            else:
                counted[entry] += 1
    for entry in catalogue.entries():
        if entry.tenant == tenant and entry.references != counted[entry]:
            yield f"chunk {entry.id}: {entry.references} references, {counted[entry]} in lists"


def lookup_faults(stats: MemoryStats) -> Iterator[str]:
    """Lookups that are neither a hit nor a miss with a reason, or that one tier passed on and the next never saw."""
    rows: list[tuple[str, MemoryStats | TierStats | TenantStats]] = [("memory", stats)]
    rows += [(f"tier {tier.name}", tier) for tier in stats.tiers]
    rows += [(f"tenant {row.tenant} in tier {row.tier}", row) for row in stats.tenants]
    for name, row in rows:
        misses = sum(row.misses.values())
        if row.lookups != row.hits + misses:
            yield f"{name}: {row.lookups} lookups, {row.hits} hits, {misses} misses"
    ahead = stats.prefetch
    if ahead.issued < ahead.useful + ahead.late + ahead.wasted:
        yield f"prefetch: {ahead.issued} issued, {ahead.useful} useful, {ahead.late} late, {ahead.wasted} wasted"
    for tier in stats.tiers:
        if tier.hits != tier.fetches.count:
            yield f"tier {tier.name}: {tier.hits} hits, {tier.fetches.count} of them timed"
        of_tenants = sum(row.lookups for row in stats.tenants if row.tier == tier.name)
        if of_tenants != tier.lookups:
            yield f"tier {tier.name}: {tier.lookups} lookups, {of_tenants} of tenants"
