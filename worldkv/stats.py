"""Frozen figures that others read (monitoring, reports); counters live with whoever counts.

All fields are plain numbers, strings, dicts and tuples of these: `dataclasses.asdict` of any of them can be packed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

MISS_REASONS = ("cold", "evicted", "quota", "late", "corrupt", "stale_epoch")
"""cold: never admitted by this tenant. evicted, quota: was here and had to go, for others or for its tenant's limit.
late: not there at its deadline. corrupt: there, but could not be given back intact, damaged or not readable.
stale_epoch: made by other weights."""

SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets in which durations are counted."""


@dataclass(frozen=True)
class Durations:
    """How often something took how long. Of the same kind, they may be added."""

    counts: tuple[int, ...] = (0,) * (len(SECONDS_BOUNDS) + 1)
    """Per bucket, not cumulated: up to and including each of SECONDS_BOUNDS, then longer than all of them."""
    seconds: float = 0.0
    """All of them together."""

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def __add__(self, other: Durations) -> Durations:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Durations(counts, self.seconds + other.seconds)


@dataclass(frozen=True)
class PrefetchStats:
    """Chunks that were to be in tier 0 before they are asked for. `issued >= useful + late + wasted`, always.

    The rest of those issued lie in tier 0 and wait.
    """

    issued: int = 0
    issued_bytes: int = 0
    useful: int = 0
    """Found in tier 0 when they were asked for."""
    late: int = 0
    """Not begun by their deadline, or not brought."""
    wasted: int = 0
    """Left tier 0, or lost detail there, before anyone asked."""


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
    fetches: Durations = Durations()
    """Of the hits: from asking to the chunk in hand, in tier 0 where it fits."""
    writes: Durations = Durations()
    """Of all chunks that came in, however they came: from the first byte to the last."""
    written_bytes: int = 0
    """Payload of these."""


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
    demoted_bytes: int = 0
    """Of demoted, promoted and dropped chunks: as the tier they left counts them."""
    promoted: int = 0
    promoted_bytes: int = 0
    dropped: int = 0
    dropped_bytes: int = 0
    reduced: int = 0
    """Chunks that lost detail to make room."""
    quarantined: int = 0
    """Pieces taken out of a tier because they were damaged."""
    audits: int = 0
    faults: int = 0
    """Found in the books by these audits; what is not mended is found again by each. Anything but 0 is a bug, or a
    tier that someone else has changed."""
    prefetch: PrefetchStats = PrefetchStats()
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

    def plus(self, other: MemoryStats) -> MemoryStats:
        """Both memories as one: of two workers with the same tiers."""
        tenants = {(tenant.tenant, tenant.tier): tenant for tenant in self.tenants}
        for tenant in other.tenants:
            key = (tenant.tenant, tenant.tier)
            tenants[key] = _sum(tenants[key], tenant) if key in tenants else tenant
        both: MemoryStats = _sum(replace(self, tenants=()), replace(other, tenants=()))
        return replace(both, tenants=tuple(tenants.values()))


def _sum(one: Any, other: Any) -> Any:
    """Two figures of a kind: numbers add up, names stay."""
    if is_dataclass(one):
        return type(one)(**{f.name: _sum(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)})  # type: ignore[misc]
    if isinstance(one, dict):
        return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
    if isinstance(one, tuple):
        return tuple(_sum(*pair) for pair in zip(one, other, strict=True))
    return one if isinstance(one, str) else one + other


@dataclass(frozen=True)
class WorkStats:
    """What one process that rolls out has done so far, its chunk memory included."""

    memory: MemoryStats
    stages: dict[str, Durations] = field(default_factory=dict)
    """Stage of `worldkv.rollout` -> how long it took, once for each batch of chunks."""
    chunks: Durations = Durations()
    """Batches of generated chunks: all stages, and what was done between this one and the one before."""
    chunks_generated: int = 0
    """Of all sessions."""
    video_frames: int = 0
    """Generated, of all sessions."""
    chunks_retrieved: int = 0
    chunks_missed: int = 0
    """Wanted for a window and not given by any tier."""
    fidelity_db: float | None = None
    """PSNR against the true pictures, mean over the latest chunks into whose window something was brought back; None
    where no truth is known or nothing was brought back yet."""


@dataclass(frozen=True)
class WorkerStats:
    """One worker of a cluster at one moment."""

    worker: str
    """Its slot, from 0; a label of metrics."""
    node: str
    """Address of its node."""
    tenant: str
    process: int = 0
    """Its id on that node."""
    batch: int | None = None
    """Number of the batch under way; None: idle."""
    doing: str = "starting"
    """In words, for people."""
    sessions: int = 0
    """Live now."""
    chunk: int = 0
    """Chunks of the batch that are made, of `chunks`."""
    chunks: int = 0
    chunk_seconds: float = 0.0
    """Wall clock of the newest chunk of the batch."""
    batches: int = 0
    """Finished."""
    checkpoints: int = 0
    restores: int = 0
    storage_failures: int = 0
    """Writes to durable storage that failed; each was tried again, or a checkpoint was left out."""
    restarts: int = 0
    """How many workers this slot had before."""
    gpus: tuple[int, ...] = ()
    """Indices on its node of those that it computes on."""
    age_seconds: float = 0.0
    """Since it said all this; filled in by whoever asked it."""
    model: str = ""
    work: WorkStats | None = None
    """All since the worker started; None: it has no model yet."""
