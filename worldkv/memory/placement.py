"""Moving chunks among tiers: into the nearest that takes them, one tier down under pressure, out of the last.

- What is pinned or leased neither moves nor goes; chunks of other weights go first of all.
- A tenant over its limit makes room out of its own chunks, with reason `quota`; other room is made of whoever has more
  than is reserved for it, in the order of the tier's policy, with reason `evicted`.
- Where the tier has a ladder, chunks lose detail rung by rung before the first of them leaves.
- A tier is asked to hold a chunk only once there is room, and the catalogue names it only once `put` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from worldkv.errors import CapacityError, ChunkCorrupt, ChunkNotFound, ModelError, TransferError
from worldkv.memory.books import Books
from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.chunk import KVChunk
from worldkv.memory.detail import Detail, Ladder
from worldkv.memory.eviction import Candidate, EvictionPolicy, LeastRecentlyUsed, choose
from worldkv.memory.tenants import Shares
from worldkv.memory.tier import Quarantines, Tier


@dataclass(frozen=True)
class TierRules:
    """How one tier is kept."""

    eviction: EvictionPolicy = field(default_factory=LeastRecentlyUsed)
    high_ratio: float = 1.0
    """Of the capacity; a chunk that would pass it ..."""
    low_ratio: float = 1.0
    """... makes the tier empty itself down to here, so that not every chunk to come has to make its own room."""
    ladder: Ladder = field(default_factory=Ladder)
    """What chunks here may be reduced to before they leave."""
    shares: Shares = field(default_factory=Shares)
    keeps_copies: bool = False
    """Whether what is promoted stays here too; a tier that outlives the process should."""


class Placement:
    """Carries out what policy decides."""

    def __init__(
        self, tiers: Sequence[Tier], rules: Sequence[TierRules], catalogue: Catalogue, books: Books, epoch: str
    ) -> None:
        self.tiers, self.rules, self.epoch = tuple(tiers), tuple(rules), epoch
        self._catalogue, self._books = catalogue, books
        self.stuck: tuple[set[str], ...] = tuple(set() for _ in tiers)
        """Per tier: ids of chunks that the tier failed to remove; tried again when their bytes are needed."""
        self._arriving: set[Entry] = set()
        """On their way into a tier, which may make others move meanwhile."""

    def place(self, entry: Entry, chunk: KVChunk, *, level: int = 0, reason: str = "evicted") -> bool:
        """Into tier `level` or the next that takes it; False when none did: it is dropped, for the last reason."""
        entry.lost = reason
        self._arriving.add(entry)
        placed = any(self._enter(entry, chunk, at) for at in range(level, len(self.tiers)))
        self._arriving.discard(entry)
        if placed:
            return True
        self._books.events["dropped"] += 1
        return False

    def promote(self, entry: Entry, chunk: KVChunk, level: int) -> KVChunk:
        """Move the chunk, just read in tier `level`, to tier 0 if that can take it; the chunk where it is now."""
        if level == 0 or entry.firm or self._refusal(entry, chunk, 0) is not None:
            return chunk
        if not self.rules[level].keeps_copies:
            self.remove(entry, level, "evicted")
        self.place(entry, chunk)
        self._books.events["promoted"] += 1
        # Already on its device: not copied again by whoever loads it.
        return (self.read(entry, 0) if 0 in entry.copies else None) or chunk

    def demote(self, entry: Entry) -> None:
        """One tier down, unless it lies in the last; it may end further down, or be dropped."""
        level = min(entry.copies)
        if level + 1 < len(self.tiers):
            self._push_out(entry, level, "evicted")

    def read(self, entry: Entry, level: int) -> KVChunk | None:
        """The chunk as the tier gives it; None where it is damaged, and then taken out, or cannot be read now."""
        try:
            chunk = self.tiers[level].get(entry.id)
        except (ChunkCorrupt, ChunkNotFound):
            self._quarantine(entry, level)
            return None
        except TransferError:
            self._books.failures[level] += 1
            return None
        return chunk

    def remove(self, entry: Entry, level: int, reason: str) -> None:
        """Out of one tier."""
        self._catalogue.leave(entry, level, reason)
        self._clear_away(entry.id, level)

    def drop(self, entry: Entry, reason: str) -> None:
        """Out of every tier."""
        if entry.copies:
            self._books.events["dropped"] += 1
        for level in list(entry.copies):
            self.remove(entry, level, reason)

    def enforce_limits(self) -> None:
        """Push out what tenants hold beyond their limits: after a restart these may be lower than before."""
        for level in range(len(self.tiers)):
            for tenant in sorted(self._catalogue.tenants(level)):
                self._free(level, tenant, self._over_limit(level, tenant, 0), own=True)

    def settle(self, entry: Entry) -> None:
        """Forget what lies nowhere any more and nobody asks for: chunks found at start-up that had to go."""
        if not entry.copies and entry.references == 0 and not entry.firm:
            self._catalogue.forget(entry)

    def retry_stuck(self, level: int) -> None:
        """Try again to remove what the tier failed to remove."""
        for chunk_id in list(self.stuck[level]):
            self._clear_away(chunk_id, level)

    def _quarantine(self, entry: Entry, level: int) -> None:
        self._catalogue.leave(entry, level, "evicted")
        self.set_aside(entry.id, level)
        self._books.events["dropped"] += not entry.copies

    def set_aside(self, chunk_id: str, level: int) -> None:
        """Take a bad piece out of the tier, which may keep it as evidence where nothing reads it."""
        self._books.events["quarantined"] += 1
        tier = self.tiers[level]
        if not isinstance(tier, Quarantines):
            self._clear_away(chunk_id, level)
            return
        try:
            tier.quarantine(chunk_id)
        except TransferError:
            self._books.failures[level] += 1
            self.stuck[level].add(chunk_id)

    def _clear_away(self, chunk_id: str, level: int) -> None:
        try:
            self.tiers[level].remove(chunk_id)
            self.stuck[level].discard(chunk_id)
        except TransferError:
            self._books.failures[level] += 1
            self.stuck[level].add(chunk_id)

    def _enter(self, entry: Entry, chunk: KVChunk, level: int) -> bool:
        refusal = self._refusal(entry, chunk, level)
        if refusal is not None:
            entry.left[level] = refusal
            # Too large for this tier is no reason of its own: it is why the chunk came here that counts.
            entry.lost = refusal if chunk_fits(self.tiers[level], chunk) else entry.lost
            return False
        cost = self.tiers[level].cost_bytes(chunk)
        self._free(level, entry.tenant, self._over_limit(level, entry.tenant, cost), own=True)
        self._free(level, entry.tenant, self._wanted_bytes(level, cost), own=False)
        return self._put(entry, chunk, level, cost)

    def _put(self, entry: Entry, chunk: KVChunk, level: int, cost: int) -> bool:
        try:
            self.tiers[level].put(chunk)
        except (CapacityError, TransferError):
            self._books.failures[level] += 1
            entry.left[level] = entry.lost = "evicted"
            return False
        self.stuck[level].discard(chunk.id)
        self._catalogue.enter(entry, level, cost)
        return True

    def _refusal(self, entry: Entry, chunk: KVChunk, level: int) -> str | None:
        """Why the tier cannot take the chunk, as a reason of misses; None when it can. Reclaims stale chunks."""
        tier, tenant = self.tiers[level], entry.tenant
        cost, limit = tier.cost_bytes(chunk), self.rules[level].shares.share(tenant).limit_bytes
        if not chunk_fits(tier, chunk):
            return "evicted"
        self._reclaim(level, tier.used_bytes + cost - tier.capacity_bytes)
        own_need, need = self._over_limit(level, tenant, cost), tier.used_bytes + cost - tier.capacity_bytes
        if (limit is not None and cost > limit) or self._spare(level, tenant, own_need, own=True) < own_need:
            return "quota"
        return "evicted" if self._spare(level, tenant, need, own=False) < need else None

    def _over_limit(self, level: int, tenant: str, cost: int) -> int:
        used = self._catalogue.used_bytes(level, tenant)
        return self.rules[level].shares.over_limit_bytes(tenant, used, cost)

    def _wanted_bytes(self, level: int, cost: int) -> int:
        """Bytes to free before `cost` more come: none below the high watermark."""
        tier, rules = self.tiers[level], self.rules[level]
        filled = tier.used_bytes + cost
        if filled <= rules.high_ratio * tier.capacity_bytes:
            return 0
        return filled - max(cost, int(rules.low_ratio * tier.capacity_bytes))

    def _spare(self, level: int, tenant: str, need: int, *, own: bool) -> int:
        """What could be freed, counted up to `need`."""
        return sum(entry.copies[level].cost_bytes for entry in self._victims(level, tenant, need, own=own))

    def _reclaim(self, level: int, need: int) -> None:
        """Drop chunks of other weights until `need` bytes are free, or none is left."""
        if need <= 0:
            return
        self.retry_stuck(level)
        batch, freed = [], 0
        for entry in self._catalogue.lying(level, lambda entry: entry.epoch != self.epoch):
            if freed >= need:
                break
            if not entry.firm:
                batch.append(entry)
                freed += entry.copies[level].cost_bytes
        for entry in batch:
            self.drop(entry, "stale_epoch")
            self.settle(entry)

    def _free(self, level: int, tenant: str, need: int, *, own: bool) -> None:
        """Make room: by detail as far as that goes, then by chunks."""
        for rung in self.rules[level].ladder.rungs:
            need -= self._lose_detail(level, tenant, need, rung, own=own)
        for entry in self._victims(level, tenant, need, own=own):
            self._push_out(entry, level, "quota" if own else "evicted")

    def _lose_detail(self, level: int, tenant: str, need: int, rung: Detail, *, own: bool) -> int:
        """Reduce chunks to the rung until `need` bytes are free, or none is left that can be; returns the bytes."""
        ladder, freed = self.rules[level].ladder, 0

        def on_the_rung_above(entry: Entry) -> bool:
            return ladder.next_rung(entry.form) == rung

        while freed < need:
            victims = self._victims(level, tenant, need - freed, own=own, where=on_the_rung_above)
            if not victims:
                break
            for entry in victims:
                if freed < need:
                    freed += self._reduce(entry, level, rung)
        return freed

    def _reduce(self, entry: Entry, level: int, rung: Detail) -> int:
        """Replace the tier's copy by one with less detail; returns the bytes that became free."""
        cost = entry.copies[level].cost_bytes
        if len(entry.copies) > 1 or entry in self._arriving:
            self.remove(entry, level, "evicted")  # nothing is lost while another tier has all detail
            return cost
        try:
            chunk = self.read(entry, level)
            small = chunk and self.rules[level].ladder.reduce(chunk, rung)
        except ModelError:
            small = None
        if small is None:
            if level in entry.copies:
                self._push_out(entry, level, "evicted")
            else:
                self.settle(entry)
            return cost
        self.remove(entry, level, "evicted")
        twin = self._catalogue.find(entry.tenant, small.id)
        if twin is not None and twin is not entry:
            self._catalogue.merge(entry, twin)
            entry = twin
            if twin.copies or twin in self._arriving:
                return cost
        self._catalogue.rename(entry, small)
        entry.reductions += 1
        self._books.events["reduced"] += 1
        if not self._put(entry, small, level, self.tiers[level].cost_bytes(small)):
            self._books.events["dropped"] += 1
            return cost
        return cost - entry.copies[level].cost_bytes

    def _push_out(self, entry: Entry, level: int, reason: str) -> None:
        """One tier down, or for good."""
        if any(other > level for other in entry.copies):
            self.remove(entry, level, reason)
            self._books.events["demoted"] += 1
            return
        last = level + 1 == len(self.tiers) or entry.epoch != self.epoch
        chunk = None if last else self.read(entry, level)
        if level in entry.copies:
            self.remove(entry, level, reason)
            if chunk is not None:
                self._books.events["demoted"] += self.place(entry, chunk, level=level + 1, reason=reason)
            else:
                self._books.events["dropped"] += not entry.copies
        self.settle(entry)

    def _victims(
        self, level: int, tenant: str, need: int, *, own: bool, where: Callable[[Entry], bool] = lambda entry: True
    ) -> list[Entry]:
        """Who goes for the tenant's sake, first first: enough for `need`, or all who may."""
        if need <= 0:
            return []
        rules, catalogue = self.rules[level], self._catalogue
        tenants = {tenant} if own else catalogue.tenants(level)
        used = ((who, catalogue.used_bytes(level, who)) for who in sorted(tenants))
        spare = rules.shares.spare_bytes(used, tenant)
        lying = catalogue.lying(level, lambda entry: entry.tenant in spare and where(entry))
        offered: dict[str, Entry] = {}

        def candidates() -> Iterator[Candidate]:
            for entry in lying:
                if not entry.firm:
                    offered[entry.id] = entry
                    yield _candidate(entry, level)

        ordered = rules.eviction.victims(candidates(), catalogue.clock)
        return [offered[candidate.id] for candidate in choose(ordered, need, spare)]


def chunk_fits(tier: Tier, chunk: KVChunk) -> bool:
    """Whether the tier could hold the chunk if it held nothing else."""
    return tier.cost_bytes(chunk) <= tier.capacity_bytes


def _candidate(entry: Entry, level: int) -> Candidate:
    return Candidate(
        id=entry.id,
        tenant=entry.tenant,
        cost_bytes=entry.copies[level].cost_bytes,
        last_use=entry.last_use,
        uses=entry.uses,
        seen_from=entry.seen_from,
        group=entry.group,
    )
