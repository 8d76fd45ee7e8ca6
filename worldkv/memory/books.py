"""What the chunk memory counts, and the frozen figures made of it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence

from worldkv.durations import About, Clock, DurationBook, Listener, Span, nobody
from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.chunk import KVChunk
from worldkv.memory.tier import Tier
from worldkv.stats import MISS_REASONS, MemoryStats, PrefetchStats, TenantStats, TierStats

MOVES = ("admitted", "demoted", "promoted", "dropped")
"""Counted in chunks and in bytes."""
EVENTS = (*MOVES, *(f"{move}_bytes" for move in MOVES), "reduced", "quarantined", "audits", "faults")
PREFETCH = ("issued", "issued_bytes", "useful", "late", "wasted")


class Books:
    """Counters; each lookup is entered once, when its outcome is known."""

    def __init__(self, clock: Clock = time.perf_counter, listener: Listener = nobody) -> None:
        """`listener` is told of each chunk that is fetched or written, in seconds of `clock`."""
        self.clock, self._listener = clock, listener
        self.prefetch: Counter[str] = Counter()
        self._fetches: defaultdict[int, DurationBook] = defaultdict(DurationBook)
        self._writes: defaultdict[int, DurationBook] = defaultdict(DurationBook)
        self._written_bytes: Counter[int] = Counter()
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

    def fetched(self, level: int, tier: str, chunk: KVChunk, started: float) -> None:
        """The chunk of a lookup that began then came out of the tier."""
        self._time(self._fetches[level], "fetch", tier, chunk, started)

    def written(self, level: int, tier: str, chunk: KVChunk, started: float) -> None:
        """The chunk now lies in the tier; copying it there began then."""
        self._time(self._writes[level], "write", tier, chunk, started)
        self._written_bytes[level] += chunk.nbytes

    def moved(self, how: str, nbytes: int, *, times: bool | int = 1) -> None:
        """One of MOVES happened to a chunk of so many bytes, unless `times` says that it did not."""
        self.events[how] += times
        self.events[f"{how}_bytes"] += times * nbytes

    def told(self, span: Span) -> None:
        """The listener hears of something that is counted elsewhere."""
        self._listener(span)

    def asked_for(self, entry: Entry) -> None:
        """The chunk was given: if it lay in tier 0 because it was brought there early, that was of use."""
        self.prefetch["useful"] += entry.early
        entry.early = False

    def left_nearest(self, entry: Entry) -> None:
        """The chunk leaves tier 0: if it was brought there early and not asked for since, that was in vain."""
        self.prefetch["wasted"] += entry.early
        entry.early = False

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
            prefetch=PrefetchStats(**{name: self.prefetch[name] for name in PREFETCH}),
            tiers=tuple(self._tier(level, tier, firm) for level, tier in enumerate(tiers)),
            tenants=tuple(per_tenant),
            **{event: self.events[event] for event in EVENTS},
        )

    def _time(self, book: DurationBook, verb: str, tier: str, chunk: KVChunk, started: float) -> None:
        ended = self.clock()
        book.add(ended - started)
        if self._listener is not nobody:
            about = About(tier=tier, tenant=chunk.tenant, chunk=chunk.id, index=chunk.index, bytes=chunk.nbytes)
            self._listener(Span(f"tier {tier}", verb, started, ended, about))

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
            fetches=self._fetches[level].frozen(),
            writes=self._writes[level].frozen(),
            written_bytes=self._written_bytes[level],
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
