"""How much room a tier has, who may be asked for more, and who would make it. Decides; moves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.chunk import KVChunk
from worldkv.memory.detail import Ladder
from worldkv.memory.eviction import Candidate, EvictionPolicy, LeastRecentlyUsed, Refetch, choose
from worldkv.memory.tenants import Shares
from worldkv.memory.tier import Lends, Tier


@dataclass(frozen=True)
class TierRules:
    """How one tier is kept."""

    eviction: EvictionPolicy = field(default_factory=LeastRecentlyUsed)
    high_ratio: float = 1.0
    """Of the capacity; a chunk that would pass it ..."""
    low_ratio: float = 1.0
    """... makes the tier empty itself down to here, so that not every chunk to come has to make its own room.

    Where the tier has room, chunks are exchanged with tier 0 directly; where it is full, by way of a copy."""
    ladder: Ladder = field(default_factory=Ladder)
    """What chunks here may be reduced to before they leave."""
    shares: Shares = field(default_factory=Shares)
    refetch: Refetch = field(default_factory=lambda: Refetch(latency_seconds=1e-3, bytes_per_second=5e9))
    """What it takes to read a chunk here, for tiers that weigh whether to send it here."""
    keeps_copies: bool = False
    """Whether what is promoted stays here too; a tier that outlives the process should."""
    copies_at_once: bool = False
    """Whether what is admitted is copied here at once, not only when it leaves nearer tiers: so that others find it."""
    keeps_released: bool = False
    """Whether what nobody holds any more stays here, for a later process, until its room is needed."""


class Room:
    """Of all tiers."""

    def __init__(self, tiers: Sequence[Tier], rules: Sequence[TierRules], catalogue: Catalogue, epoch: str) -> None:
        self.tiers, self.rules = tuple(tiers), tuple(rules)
        self.epoch = epoch
        """Chunks of another epoch are stale."""
        self.lenders = tuple(tier if isinstance(tier, Lends) else None for tier in tiers)
        self._catalogue = catalogue

    def displaced_bytes(self, entry: Entry, chunk: KVChunk) -> int:
        """Of the chunks that would leave tier 0 for this one, at most."""
        cost, tenant = self.tiers[0].cost_bytes(chunk), entry.tenant
        own, need = self.over_limit(0, tenant, cost), self.wanted_bytes(0, cost)
        return self.spare(0, tenant, own, own=True) + self.spare(0, tenant, need, own=False)

    def free_bytes(self, level: int) -> int:
        """What the tier could take at once."""
        return self.tiers[level].capacity_bytes - self.tiers[level].used_bytes

    def over_limit(self, level: int, tenant: str, cost: int) -> int:
        """Bytes by which the tenant would pass its limit in the tier with `cost` more."""
        used = self._catalogue.used_bytes(level, tenant)
        return self.rules[level].shares.over_limit_bytes(tenant, used, cost)

    def wanted_bytes(self, level: int, cost: int) -> int:
        """Bytes to free before `cost` more come: none below the high watermark."""
        tier, rules = self.tiers[level], self.rules[level]
        filled = tier.used_bytes + cost
        if filled <= rules.high_ratio * tier.capacity_bytes:
            return 0
        return filled - max(cost, int(rules.low_ratio * tier.capacity_bytes))

    def spare(self, level: int, tenant: str, need: int, *, own: bool) -> int:
        """What could be freed, counted up to `need`."""
        return sum(entry.copies[level].cost_bytes for entry in self.victims(level, tenant, need, own=own))

    def has_room(self, chunk: KVChunk, level: int) -> bool:
        """Whether the tier could take the chunk at once."""
        return self.tiers[level].cost_bytes(chunk) <= self.free_bytes(level)

    def fits_beside(self, chunk: KVChunk, level: int) -> bool:
        """Whether both forms of a chunk may lie in the tier at once, so that at no moment neither does."""
        cost = self.tiers[level].cost_bytes(chunk)
        return self.has_room(chunk, level) and self.over_limit(level, chunk.tenant, cost) <= 0

    def has_room_near(self, entry: Entry, level: int) -> bool:
        """Whether tier 0 could take the chunk of tier `level`, by its size there, and no held one would have to go."""
        cost, tenant = entry.copies[level].cost_bytes, entry.tenant
        need = max(cost - self.free_bytes(0), self.over_limit(0, tenant, cost))
        return need <= 0 or self.spare(0, tenant, need, own=self.over_limit(0, tenant, cost) > 0) >= need

    def victims(
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
                if self.may_go(entry, level):
                    offered[entry.id] = entry
                    yield _candidate(entry, level, self._refetch_seconds(entry, level))

        ordered = rules.eviction.victims(candidates(), catalogue.clock)
        return [offered[candidate.id] for candidate in choose(ordered, need, spare)]

    def may_go(self, entry: Entry, level: int) -> bool:
        """Whether its bytes in the tier can be had now: nobody holds it, nobody reads it there."""
        lender = self.lenders[level]
        return not entry.firm and not (lender is not None and lender.lent(entry.id))

    def _refetch_seconds(self, entry: Entry, level: int) -> float | None:
        """To bring the chunk back once it has left the tier: from its next copy, or the next tier, that it goes to."""
        further = min((other for other in entry.copies if other > level), default=level + 1)
        if further == len(self.tiers) or entry.epoch != self.epoch:
            return None
        return self.rules[further].refetch.seconds(entry.copies[level].cost_bytes)


def chunk_fits(tier: Tier, chunk: KVChunk) -> bool:
    """Whether the tier could hold the chunk if it held nothing else."""
    return tier.cost_bytes(chunk) <= tier.capacity_bytes


def _candidate(entry: Entry, level: int, refetch_seconds: float | None) -> Candidate:
    return Candidate(
        id=entry.id,
        tenant=entry.tenant,
        cost_bytes=entry.copies[level].cost_bytes,
        last_use=entry.last_use,
        uses=entry.uses,
        seen_from=entry.seen_from,
        group=entry.group,
        refetch_seconds=refetch_seconds,
    )
