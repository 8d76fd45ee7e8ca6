"""The tiers as the chunk memory uses them: what fails there is counted, and remembered to be tried again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from worldkv.errors import CapacityError, TransferError, TransferLate
from worldkv.memory.books import Books
from worldkv.memory.chunk import KVChunk
from worldkv.memory.mover import Mover
from worldkv.memory.tier import Quarantines, Shared, Survives, Tier


class TierAccess:
    """Verbs on one chunk in one tier; the catalogue's business is the caller's."""

    def __init__(self, tiers: Sequence[Tier], books: Books, mover: Mover) -> None:
        self.tiers, self._books, self._mover = tuple(tiers), books, mover
        self.survivors = tuple(tier if isinstance(tier, Survives) else None for tier in tiers)
        self.shared = tuple(tier if isinstance(tier, Shared) else None for tier in tiers)
        self.stuck: tuple[set[str], ...] = tuple(set() for _ in tiers)
        """Per tier: ids of chunks that the tier failed to remove; tried again when their bytes are needed."""
        self.unread: tuple[dict[str, str], ...] = tuple({} for _ in tiers)
        """Per tier: every id of chunks of an earlier process that could not be read yet -> what the tier calls them."""
        self._attempts = itertools.count()

    def write(
        self,
        chunk: KVChunk,
        level: int,
        names: Iterable[str],
        source: int | None = None,
        deadline: float = math.inf,
    ) -> CapacityError | TransferError | None:
        """Put the chunk, with the ids under which it is asked for; the fault where that failed.

        `source`: the tier where the bytes of a bare chunk lie; then it raises as `Mover.copy` does for those, and
        TransferLate.
        """
        started = self._books.clock()
        try:
            if source is None:
                self.tiers[level].put(chunk)
            else:
                self._mover.copy(chunk.id, self.tiers[source], self.tiers[level], deadline)
        except TransferLate:
            raise
        except (CapacityError, TransferError) as fault:
            self._books.failures[level] += 1
            return fault
        if source is not None or chunk.encoded.device.type != "meta":  # else it was there, and is but taken up
            self._books.written(level, self.tiers[level].name, chunk, started)
        self.stuck[level].discard(chunk.id)
        self.now_read(chunk.id, level)
        self.keep_names(chunk.id, level, names)
        return None

    def keep_names(self, chunk_id: str, level: int, names: Iterable[str]) -> None:
        """Where the tier survives, let it know all ids under which its chunk is asked for."""
        tier = self.survivors[level]
        if tier is None or all(name == chunk_id for name in names):
            return
        try:
            tier.also_name(chunk_id, names)
        except TransferError:
            self._books.failures[level] += 1

    def clear_away(self, chunk_id: str, level: int) -> None:
        """Remove the chunk."""
        try:
            self.tiers[level].remove(chunk_id)
            self.stuck[level].discard(chunk_id)
        except TransferError:
            self._books.failures[level] += 1
            self.stuck[level].add(chunk_id)

    def retry_stuck(self, level: int) -> None:
        """Try again to remove what the tier failed to remove, until it fails: the next time begins with another."""
        waiting = sorted(self.stuck[level])
        start = next(self._attempts) % max(1, len(waiting))
        for chunk_id in waiting[start:] + waiting[:start]:
            self.clear_away(chunk_id, level)
            if chunk_id in self.stuck[level]:
                break

    def set_aside(self, chunk_id: str, level: int) -> None:
        """Take a bad piece out of the tier, which may keep it as evidence where nothing reads it."""
        self.now_read(chunk_id, level)
        self._books.events["quarantined"] += 1
        tier = self.tiers[level]
        if not isinstance(tier, Quarantines):
            self.clear_away(chunk_id, level)
            return
        try:
            tier.quarantine(chunk_id)
        except TransferError:
            self._books.failures[level] += 1
            self.stuck[level].add(chunk_id)

    def find(self, tenant: str, chunk_ids: Sequence[str], level: int) -> Mapping[str, KVChunk]:
        """Outlines of those of the chunks that others have put into a shared tier; none of any other tier."""
        tier = self.shared[level]
        if tier is None or not chunk_ids:
            return {}
        try:
            return tier.find(tenant, chunk_ids)
        except TransferError:
            self._books.failures[level] += 1
            return {}

    def not_read(self, chunk_id: str, level: int, names: Iterable[str]) -> None:
        """The chunk, also asked for under these names, could not be read: to be tried again."""
        self._books.failures[level] += 1
        self.unread[level].update(dict.fromkeys((chunk_id, *names), chunk_id))

    def now_read(self, chunk_id: str, level: int) -> None:
        """The chunk is not unread any more."""
        unread = self.unread[level]
        for name in [name for name, i in unread.items() if i == chunk_id]:
            del unread[name]

    def give_up_unread(self, level: int, wanted_bytes: int) -> None:
        """Drop chunks that could not be read yet until the tier uses no more than `wanted_bytes`, or none is left."""
        for chunk_id in dict.fromkeys(self.unread[level].values()):
            if self.tiers[level].used_bytes > wanted_bytes:
                self.now_read(chunk_id, level)
                before = self.tiers[level].used_bytes
                self.clear_away(chunk_id, level)
                self._books.moved("dropped", before - self.tiers[level].used_bytes)
