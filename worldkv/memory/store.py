"""The chunk memory of one process: tiers of chunks, nearest first, each bounded.

- A chunk lies in exactly one tier; admitted to tier 0, demoted when that is full, dropped from the last.
- Every lookup is a hit in one tier or a miss with a reason: `lookups = hits + misses` holds after every call.
- A chunk that fails its checksum, or was made by other weights, is a miss and is dropped; it never returns pixels.
- Chunks are counted by reference: sessions that fork hold the same chunk, and it goes when the last lets go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from worldkv.errors import CapacityError, ChunkCorrupt, ChunkNotFound
from worldkv.memory.chunk import KVChunk
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.stats import MISS_REASONS, MemoryStats, TierStats


class ChunkMemory:
    """Admit, fetch and release chunks. Single-threaded; calls block for copies between devices only."""

    def __init__(self, tiers: Sequence[ResidentTier], epoch: str) -> None:
        if not tiers:
            raise CapacityError("a chunk memory needs at least one tier, got none")
        self.tiers, self.epoch = tuple(tiers), epoch
        self._references: Counter[str] = Counter()
        self._hits: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._count: Counter[str] = Counter()

    def __contains__(self, chunk_id: str) -> bool:
        """Whether any tier holds the chunk now; no lookup is counted."""
        return self._tier_of(chunk_id) is not None

    def admit(self, chunk: KVChunk) -> str:
        """Take one reference on the chunk and store it in tier 0, demoting others; returns its id.

        A chunk larger than every tier is dropped at once, and its fetch will miss as evicted.
        """
        self._references[chunk.id] += 1
        self._count["admitted"] += 1
        self._count["admitted_bytes"] += chunk.nbytes
        if self._tier_of(chunk.id) is None:
            self._place(chunk, 0)
        return chunk.id

    def retain(self, chunk_ids: Iterable[str]) -> None:
        """Take one more reference on each (a fork). Raises ChunkNotFound for a chunk nobody holds."""
        for chunk_id in chunk_ids:
            if self._references[chunk_id] <= 0:
                raise ChunkNotFound(f"chunk {chunk_id} is held by no session and cannot be retained")
            self._references[chunk_id] += 1

    def admit_dropped(self, chunk_ids: Iterable[str]) -> None:
        """Take one reference on chunks that were dropped elsewhere: they miss as evicted, not as cold.

        Where this memory holds the same content for another session, they hit.
        """
        self._references.update(chunk_ids)

    def release(self, chunk_ids: Iterable[str]) -> None:
        """Give back one reference on each; a chunk nobody holds any more is gone."""
        for chunk_id in chunk_ids:
            self._references[chunk_id] -= 1
            if self._references[chunk_id] <= 0:
                del self._references[chunk_id]
                tier = self._tier_of(chunk_id)
                if tier is not None:
                    tier.pop(chunk_id)

    def fetch(self, chunk_ids: Sequence[str]) -> list[KVChunk | None]:
        """The chunks, in order, promoted to tier 0 where they fit; None for each miss."""
        return [self._fetch(chunk_id) for chunk_id in chunk_ids]

    def held(self, chunk_ids: Iterable[str]) -> list[KVChunk]:
        """Those of the chunks that a tier holds and that are sound, coldest first.

        Admitted in this order to empty tiers of the same size, they lie where they lie here. No lookup is counted
        and nothing moves.
        """
        wanted = set(chunk_ids)
        lying = [tier.peek(i) for tier in reversed(self.tiers) for i in tier.ids() if i in wanted]
        return [chunk for chunk in lying if chunk.epoch == self.epoch and _sound(chunk)]

    def stats(self) -> MemoryStats:
        """A frozen copy of all counters and the tiers' fill."""
        hits, misses = self._hits.total(), {reason: self._misses[reason] for reason in MISS_REASONS}
        tiers = tuple(TierStats(t.name, len(t), t.used_bytes, t.capacity_bytes, self._hits[t.name]) for t in self.tiers)
        counts = {k: self._count[k] for k in ("admitted", "admitted_bytes", "demoted", "promoted", "dropped")}
        return MemoryStats(self._count["lookups"], hits, misses, tiers=tiers, **counts)

    def audit(self) -> list[str]:
        """Faults in the books, empty when all is well: held twice, unreferenced, or bytes miscounted."""
        faults = []
        seen: Counter[str] = Counter(i for tier in self.tiers for i in tier.ids())
        faults += [f"chunk {i} lies in {n} tiers" for i, n in seen.items() if n > 1]
        faults += [f"chunk {i} is held by nobody" for i in seen if self._references[i] <= 0]
        for tier in self.tiers:
            used = sum(tier.peek(i).nbytes for i in tier.ids())
            if used != tier.used_bytes or used > tier.capacity_bytes:
                faults.append(
                    f"tier {tier.name}: {used} bytes held, {tier.used_bytes} booked, {tier.capacity_bytes} cap"
                )
        return faults

    def _tier_of(self, chunk_id: str) -> ResidentTier | None:
        return next((tier for tier in self.tiers if chunk_id in tier), None)

    def _place(self, chunk: KVChunk, level: int) -> bool:
        """Into tier `level`, pushing its least recently used chunks one tier down, or out of the last.

        A chunk that is larger than the tier goes further down; False when no tier took it.
        """
        if level == len(self.tiers):
            self._count["dropped"] += 1
            return False
        tier = self.tiers[level]
        if chunk.nbytes > tier.capacity_bytes:
            return self._place(chunk, level + 1)
        while chunk.nbytes > tier.capacity_bytes - tier.used_bytes:
            oldest = tier.pop(next(tier.ids()))
            self._count["demoted"] += self._place(oldest, level + 1)
        tier.put(chunk)
        return True

    def _fetch(self, chunk_id: str) -> KVChunk | None:
        self._count["lookups"] += 1
        tier = self._tier_of(chunk_id)
        if tier is None:
            self._misses["evicted" if self._references[chunk_id] > 0 else "cold"] += 1
            return None
        chunk = tier.get(chunk_id)
        if (reason := self._fault(chunk, tier)) is not None:
            tier.pop(chunk_id)
            self._misses[reason] += 1
            self._count["dropped"] += 1
            return None
        self._hits[tier.name] += 1
        if tier is not self.tiers[0] and chunk.nbytes <= self.tiers[0].capacity_bytes:
            self._place(tier.pop(chunk_id), 0)
            self._count["promoted"] += 1
            return self.tiers[0].peek(chunk_id)  # already on its device: not copied again by whoever loads it
        return chunk

    def _fault(self, chunk: KVChunk, tier: ResidentTier) -> str | None:
        if chunk.epoch != self.epoch:
            return "stale_epoch"
        if tier is self.tiers[0]:
            return None  # verified when it came here; device memory is not checked again at each use
        return None if _sound(chunk) else "corrupt"


def _sound(chunk: KVChunk) -> bool:
    try:
        chunk.verify()
    except ChunkCorrupt:
        return False
    return True
