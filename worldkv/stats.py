"""Frozen figures that others read (monitoring, reports); counters live with whoever counts.

All fields are plain numbers, strings, dicts and tuples of these: `dataclasses.asdict` of any of them can be packed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

MISS_REASONS = ("cold", "evicted", "quota", "late", "corrupt", "stale_epoch")
"""cold: never admitted by this tenant. evicted, quota: was here and had to go, for others or for its tenant's limit.
late: not there at its deadline. corrupt: there, but could not be given back intact, damaged or not readable.
stale_epoch: made by other weights."""


@dataclass(frozen=True)
class TierStats:
    """One tier at one moment. `lookups == hits + sum(misses.values())`, always.

    Tiers are asked in order, until one has the chunk: what misses in one tier is a lookup of the next.
    """

    name: str
    chunks: int
    used_bytes: int
    capacity_bytes: int
    hits: int
    lookups: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    """Chunks that the tier could not write or read; each is retried elsewhere or counted as a miss as well."""
    pinned_bytes: int = 0
    """Held firmly by pins and leases."""


@dataclass(frozen=True)
class TenantStats:
    """One tenant in one tier at one moment. `lookups == hits + sum(misses.values())`, always."""

    tenant: str
    tier: str
    chunks: int
    used_bytes: int
    hits: int
    lookups: int
    misses: dict[str, int]


@dataclass(frozen=True)
class MemoryStats:
    """One chunk memory at one moment. `lookups == hits + sum(misses.values())`, always."""

    lookups: int
    hits: int
    misses: dict[str, int] = field(default_factory=dict)
    admitted: int = 0
    admitted_bytes: int = 0
    demoted: int = 0
    promoted: int = 0
    dropped: int = 0
    reduced: int = 0
    """Chunks that lost detail to make room."""
    quarantined: int = 0
    """Pieces taken out of a tier because they were damaged."""
    audits: int = 0
    faults: int = 0
    """Found in the books by these audits; what is not mended is found again by each. Anything but 0 is a bug, or a
    tier that someone else has changed."""
    tiers: tuple[TierStats, ...] = ()
    tenants: tuple[TenantStats, ...] = ()
    """Per tenant and tier."""

    def at_fullest(self, earlier: MemoryStats | None) -> MemoryStats:
        """These counters, with each tier as full as it is now or was in `earlier`, whichever is more."""
        if earlier is None:
            return self
        tiers = (
            replace(now, chunks=max(now.chunks, was.chunks), used_bytes=max(now.used_bytes, was.used_bytes))
            for now, was in zip(self.tiers, earlier.tiers, strict=True)
        )
        return replace(self, tiers=tuple(tiers))
