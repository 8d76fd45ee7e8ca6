"""Moving chunks among tiers: into the nearest that takes them, one tier down under pressure, out of the last.

- What is pinned or leased neither moves nor goes; chunks of other weights go first of all.
- A tenant over its limit makes room out of its own chunks, with reason `quota`; other room is made of whoever has more
  than is reserved for it, in the order of the tier's policy, with reason `evicted`.
- Where the tier has a ladder, chunks lose detail rung by rung before the first of them leaves.
- A tier is asked to hold a chunk only once there is room, and the catalogue names it only once the chunk is there.
- What leaves one tier for another is verified, and goes only once it has arrived, or its bytes are in hand.
- Where a tier lends its memory, nothing here refers to that while room is asked for: a chunk in hand has bytes of its
  own, or none and is read at the last moment. What others read there stays, as if it were pinned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from worldkv.errors import (
    CapacityError,
    ChunkCorrupt,
    ChunkEvicted,
    ChunkNotFound,
    ModelError,
    TransferError,
    TransferLate,
)
from worldkv.memory.books import Books
from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.chunk import KVChunk
from worldkv.memory.copies import Copies
from worldkv.memory.detail import Detail
from worldkv.memory.mover import Arrival, Mover
from worldkv.memory.room import Room, TierRules, chunk_fits
from worldkv.memory.tier import Tier

__all__ = ["Placement", "TierRules"]


class Placement:
    """Carries out what policy decides."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        rules: Sequence[TierRules],
        catalogue: Catalogue,
        books: Books,
        epoch: str,
        mover: Mover,
    ) -> None:
        self.tiers, self.rules = tuple(tiers), tuple(rules)
        self.room = Room(tiers, rules, catalogue, epoch)
        self._catalogue, self._books, self._mover = catalogue, books, mover
        self.copies = Copies(tiers, catalogue, books, mover)
        self.access = self.copies.access
        self._arriving: set[Entry] = set()
        """On their way into a tier, which may make others move meanwhile."""

    @property
    def epoch(self) -> str:
        """Digest of the weights whose chunks are valid; others are stale."""
        return self.room.epoch

    @epoch.setter
    def epoch(self, epoch: str) -> None:
        self.room.epoch = epoch

    def place(
        self, entry: Entry, chunk: KVChunk, *, level: int = 0, reason: str = "evicted", source: int | None = None
    ) -> bool:
        """Into tier `level` or the next that takes it; False when none did: it is dropped, for the last reason.

        `source`: the tier where the bytes of a bare chunk lie. Raises ChunkCorrupt, ChunkNotFound where they are not
        what they were.
        """
        entry.lost = reason
        self._arriving.add(entry)
        try:
            placed = any(self._enter(entry, chunk, at, source) for at in range(level, len(self.tiers)))
        finally:
            self._arriving.discard(entry)
        if placed:
            return True
        self._books.moved("dropped", chunk.nbytes)
        return False

    def place_near(self, entry: Entry, chunk: KVChunk) -> None:
        """Into tier 0 as well, where only tiers that keep copies hold it: after a restart they gave headers alone."""
        if entry.id == chunk.id and chunk.epoch == self.epoch and all(self.rules[i].keeps_copies for i in entry.copies):
            self.enter(entry, chunk, 0)

    def enter(self, entry: Entry, chunk: KVChunk, level: int, source: int | None = None, by: float = math.inf) -> bool:
        """Into this tier too; its other copies stay where they are. What is given and raised: see `place`, `bring`."""
        entry.pins += 1
        try:
            return self._enter(entry, chunk, level, source, by)
        finally:
            entry.pins -= 1

    def bring(self, entry: Entry, level: int, deadline: float) -> KVChunk | None:
        """The chunk of tier `level`, moved to tier 0 if that can take it; None where it could not be read.

        Verified but for what lies in tier 0 already. Raises TransferLate where the deadline passed before its bytes
        began to move: it stays where it is; and ChunkEvicted where others evicted it from a shared tier.
        """
        if level and self._mover.late(deadline):
            raise TransferLate(f"chunk {entry.id} in tier {self.tiers[level].name}: asked for by {deadline}, too late")
        chunk, source = self._lift(entry, level) if level else (self.copies.get(entry, 0), None)
        if chunk is None:
            return None
        self._catalogue.touch(entry)
        if level and self.room.may_go(entry, level) and self._refusal(entry, chunk, 0) is None:
            return self._promote(entry, chunk, level, source, deadline)
        return chunk if source is None else self.copies.read(entry, level)

    def begin(self, entry: Entry, level: int) -> Arrival | None:
        """Start to bring the chunk of tier `level` to tier 0; None where it is as well brought at once or cannot be."""
        entry.pins += 1  # stays while room is made for it
        try:
            if self.room.lenders[level] is not None:
                chunk, _ = self._lift(entry, level)
                if chunk is None or not self._stays_while_room_is_made(entry, chunk, level):
                    return None
                if not self._make_room(entry, chunk, 0):
                    return None
            return self._mover.start(entry.id, self.tiers[level], self.tiers[0])
        except (ChunkNotFound, CapacityError, TransferError):
            return None
        finally:
            entry.pins -= 1

    def arrive(self, entry: Entry, level: int, arrival: Arrival) -> None:
        """Take in what `begin` started, as far as tier 0 takes it. Blocks until it is here."""
        try:
            chunk = arrival.chunk()
        except (ChunkCorrupt, ChunkNotFound, TransferError):
            return  # whoever asks for it reads it again, and finds what is wrong
        if not arrival.in_place:
            if self._refusal(entry, chunk, 0) is None:
                self._promote(entry, chunk, level, None, math.inf)
            return
        if 0 not in entry.copies:
            self._catalogue.enter(entry, 0, self.tiers[0].cost_bytes(chunk))
        self._books.moved("promoted", chunk.nbytes)
        del chunk
        if not self.rules[level].keeps_copies:
            self.copies.remove(entry, level, "evicted")

    def _promote(self, entry: Entry, chunk: KVChunk, level: int, source: int | None, deadline: float) -> KVChunk | None:
        if self._stays_while_room_is_made(entry, chunk, level):
            moved = self._move_up(entry, chunk, level, source, deadline)
        else:
            if source is not None:
                staged = self.copies.get(entry, level, staged=True)
                if staged is None:
                    return None
                chunk = staged
            self.copies.remove(entry, level, "evicted")
            moved = self.place(entry, chunk) and 0 in entry.copies
            if source is not None and not moved:
                chunk, source = chunk.copy_to(chunk.encoded.device), None
        self._books.moved("promoted", chunk.nbytes, times=moved)
        if moved:  # already on its device: not copied again by whoever loads it
            return self.copies.get(entry, 0)
        if source is None:
            return chunk
        return self.copies.read(entry, level) if level in entry.copies else None

    def _stays_while_room_is_made(self, entry: Entry, chunk: KVChunk, level: int) -> bool:
        """Else it is an exchange: what makes room in tier 0 may need the room that the chunk leaves."""
        return self.rules[level].keeps_copies or (
            self.room.displaced_bytes(entry, chunk) <= self.room.free_bytes(level)
        )

    def _move_up(self, entry: Entry, chunk: KVChunk, level: int, source: int | None, deadline: float) -> bool:
        """Copy the chunk to tier 0; only then it leaves its own, if at all."""
        try:
            moved = self.enter(entry, chunk, 0, source, deadline)
        except (ChunkCorrupt, ChunkNotFound):
            self.copies.quarantine(entry, level)
            return False
        if moved and not self.rules[level].keeps_copies:
            self.copies.remove(entry, level, "evicted")
        return moved

    def demote(self, entry: Entry) -> None:
        """One tier down, unless it lies in the last; it may end further down, or be dropped."""
        level = min(entry.copies)
        if level + 1 < len(self.tiers):
            self._push_out(entry, level, "evicted")

    def enforce_limits(self) -> None:
        """Push out what tenants hold beyond their limits: after a restart these may be lower than before."""
        for level in range(len(self.tiers)):
            for tenant in sorted(self._catalogue.tenants(level)):
                self._free(level, tenant, self.room.over_limit(level, tenant, 0), own=True)

    def _lift(self, entry: Entry, level: int) -> tuple[KVChunk | None, int | None]:
        """A chunk that may leave its tier: verified, or bare and with the tier where the mover shall read it."""
        if self.room.lenders[level] is None:
            return self.copies.get(entry, level, verified=True), None
        chunk = self.copies.get(entry, level)
        return chunk and chunk.bare(), level

    def _enter(
        self, entry: Entry, chunk: KVChunk, level: int, source: int | None = None, deadline: float = math.inf
    ) -> bool:
        if level in entry.copies:
            return True
        return self._make_room(entry, chunk, level) and self._put(entry, chunk, level, source, deadline)

    def _make_room(self, entry: Entry, chunk: KVChunk, level: int) -> bool:
        """False, with the reason noted, where the tier cannot take the chunk."""
        refusal = self._refusal(entry, chunk, level)
        if refusal is not None:
            entry.left[level] = refusal
            # Too large for this tier is no reason of its own: it is why the chunk came here that counts.
            entry.lost = refusal if chunk_fits(self.tiers[level], chunk) else entry.lost
            return False
        cost = self.tiers[level].cost_bytes(chunk)
        self._free(level, entry.tenant, self.room.over_limit(level, entry.tenant, cost), own=True)
        self._free(level, entry.tenant, self.room.wanted_bytes(level, cost), own=False)
        if self.room.over_limit(level, entry.tenant, cost) > 0:  # what was to go has come to be held meanwhile
            entry.left[level] = entry.lost = "quota"
            return False
        return True

    def _put(self, entry: Entry, chunk: KVChunk, level: int, source: int | None, deadline: float) -> bool:
        if self.access.write(chunk, level, entry.names, source, deadline) is not None:
            entry.left[level] = entry.lost = "evicted"
            return False
        self._catalogue.enter(entry, level, self.tiers[level].cost_bytes(chunk))
        return True

    def _refusal(self, entry: Entry, chunk: KVChunk, level: int) -> str | None:
        """Why the tier cannot take the chunk, as a reason of misses; None when it can. Reclaims stale chunks."""
        tier, tenant = self.tiers[level], entry.tenant
        cost, limit = tier.cost_bytes(chunk), self.rules[level].shares.share(tenant).limit_bytes
        if not chunk_fits(tier, chunk):
            return "evicted"
        self._reclaim(level, tier.used_bytes + cost - tier.capacity_bytes)
        own_need, need = self.room.over_limit(level, tenant, cost), tier.used_bytes + cost - tier.capacity_bytes
        if (limit is not None and cost > limit) or self.room.spare(level, tenant, own_need, own=True) < own_need:
            return "quota"
        return "evicted" if self.room.spare(level, tenant, need, own=False) < need else None

    def _reclaim(self, level: int, need: int) -> None:
        """Drop chunks of other weights, then unread ones, until `need` bytes are free, or none is left."""
        if need <= 0:
            return
        wanted_bytes = self.tiers[level].used_bytes - need
        self.access.retry_stuck(level)
        batch, freed = [], 0
        for entry in self._catalogue.lying(level, lambda entry: entry.epoch != self.epoch):
            if freed >= need:
                break
            if self.room.may_go(entry, level):
                batch.append(entry)
                freed += entry.copies[level].cost_bytes
        for entry in batch:
            self.copies.drop(entry, "stale_epoch")
            self._catalogue.settle(entry)
        self.access.give_up_unread(level, wanted_bytes)

    def _free(self, level: int, tenant: str, need: int, *, own: bool) -> None:
        """Make room: by detail as far as that goes, then by chunks."""
        for rung in self.rules[level].ladder.rungs:
            need -= self._lose_detail(level, tenant, need, rung, own=own)
        for entry in self.room.victims(level, tenant, need, own=own):
            if level in entry.copies:  # else it went with one that went before
                self._push_out(entry, level, "quota" if own else "evicted")

    def _lose_detail(self, level: int, tenant: str, need: int, rung: Detail, *, own: bool) -> int:
        """Reduce chunks to the rung until `need` bytes are free, or none is left that can be; returns the bytes."""
        ladder, freed = self.rules[level].ladder, 0

        def on_the_rung_above(entry: Entry) -> bool:
            return ladder.next_rung(entry.form) == rung

        while freed < need:
            victims = self.room.victims(level, tenant, need - freed, own=own, where=on_the_rung_above)
            if not victims:
                break
            for entry in victims:
                if freed < need and level in entry.copies:
                    gained = self._reduce(entry, level, rung)
                    if gained is None:
                        return freed
                    freed += gained
        return freed

    def _reduce(self, entry: Entry, level: int, rung: Detail) -> int | None:
        """Replace the tier's copy by one with less detail; bytes that became free, None where it took none."""
        cost = entry.copies[level].cost_bytes
        if len(entry.copies) > 1 or entry in self._arriving:
            self.copies.remove(entry, level, "evicted")  # nothing is lost while another tier has all detail
            return cost
        try:
            small = self._reduced(entry, level, rung)
        except ModelError:
            small = None
        if small is None:
            if level in entry.copies:
                self._push_out(entry, level, "evicted")
            else:
                self._catalogue.settle(entry)
            return cost
        twin = self._catalogue.find(entry.tenant, small.id)
        if twin is not None and twin is not entry and (twin.copies or twin in self._arriving):
            self.copies.remove(entry, level, "evicted")
            self._catalogue.merge(entry, twin)
            self.copies.keep_names(twin)
            return cost
        if self.room.fits_beside(small, level):
            fault = self.access.write(small, level, entry.names)
            if fault is None:
                self.copies.remove(entry, level, "evicted")
                return self._enter_reduced(entry, small, level, cost)
            if isinstance(fault, TransferError):
                return None
        return self._exchange(entry, small, level, cost)

    def _reduced(self, entry: Entry, level: int, rung: Detail) -> KVChunk | None:
        chunk = self.copies.read(entry, level)
        return chunk and self.rules[level].ladder.reduce(chunk, rung)

    def _exchange(self, entry: Entry, small: KVChunk, level: int, cost: int) -> int | None:
        """Where there is no room for both: out with the chunk, in with its reduced form. Returns what `_reduce` does.

        Should that fail the chunk comes back, or goes further down.
        """
        whole = self.copies.read(entry, level)
        if level in entry.copies:
            self.copies.remove(entry, level, "evicted")
        if not self.room.has_room(small, level):
            whole = None  # it is a view, and keeps its bytes in the tier for as long as it is held
        if self.access.write(small, level, entry.names) is None:
            return self._enter_reduced(entry, small, level, cost)
        if whole is None:
            entry = self._become(entry, small)
        elif self.access.write(whole, level, entry.names) is None:
            self._catalogue.enter(entry, level, cost)
            return None
        self._books.moved("demoted", cost, times=self.place(entry, whole or small, level=level + 1))
        self._catalogue.settle(entry)
        return cost

    def _enter_reduced(self, entry: Entry, small: KVChunk, level: int, cost: int) -> int:
        """The tier holds the chunk with less detail, and no longer with more; returns the bytes that became free."""
        entry, small_cost = self._become(entry, small), self.tiers[level].cost_bytes(small)
        self._catalogue.enter(entry, level, small_cost)
        self.copies.keep_names(entry)
        self._books.events["reduced"] += 1
        return cost - small_cost

    def _become(self, entry: Entry, small: KVChunk) -> Entry:
        """The entry, which lies nowhere, as one of the chunk with less detail."""
        twin = self._catalogue.find(entry.tenant, small.id)
        if twin is not None and twin is not entry:
            self._catalogue.merge(entry, twin)
            entry = twin
        self._catalogue.rename(entry, small)
        return entry

    def _push_out(self, entry: Entry, level: int, reason: str) -> None:
        """One tier down, or for good."""
        if any(other > level for other in entry.copies):
            self._books.moved("demoted", self.copies.remove(entry, level, reason))
            return
        if level + 1 == len(self.tiers) or entry.epoch != self.epoch:
            cost = self.copies.remove(entry, level, reason)
            self._books.moved("dropped", cost, times=not entry.copies)
        else:
            self._push_down(entry, level, reason)
        self._catalogue.settle(entry)

    def _push_down(self, entry: Entry, level: int, reason: str) -> None:
        """Into the next tier that takes it; out of this one in any case."""
        chunk, source = None, None
        with suppress(ChunkEvicted):
            chunk, source = self._lift(entry, level)
        if chunk is None:
            if level in entry.copies:  # it cannot be read now, and its room is needed now
                cost = self.copies.remove(entry, level, reason)
                self._books.moved("dropped", cost, times=not entry.copies)
            return
        try:
            placed = self.place(entry, chunk, level=level + 1, reason=reason, source=source)
        except (ChunkCorrupt, ChunkNotFound):
            self.copies.quarantine(entry, level)
            return
        lost = entry.lost
        cost = self.copies.remove(entry, level, reason)
        entry.lost = lost
        self._books.moved("demoted", cost, times=placed)
