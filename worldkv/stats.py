"""Frozen figures that others read (monitoring, reports); counters live with whoever counts."""

from __future__ import annotations

from dataclasses import dataclass, field

MISS_REASONS = ("cold", "evicted", "quota", "late", "corrupt", "stale_epoch")


@dataclass(frozen=True)
class TierStats:
    """One tier at one moment."""

    name: str
    chunks: int
    used_bytes: int
    capacity_bytes: int
    hits: int


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
    tiers: tuple[TierStats, ...] = ()
