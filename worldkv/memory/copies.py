"""One chunk's copy in one tier, and what the catalogue and the books say of it: read, taken out, set aside."""

from __future__ import annotations

from collections.abc import Sequence

from worldkv.errors import ChunkCorrupt, ChunkEvicted, ChunkNotFound, TransferError
from worldkv.memory.access import TierAccess
from worldkv.memory.books import Books
from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.chunk import KVChunk
from worldkv.memory.mover import Mover
from worldkv.memory.tier import Tier


class Copies:
    """All of a memory's; who moves where is for others to say."""

    def __init__(self, tiers: Sequence[Tier], catalogue: Catalogue, books: Books, mover: Mover) -> None:
        self.tiers, self.access = tuple(tiers), TierAccess(tiers, books, mover)
        self._catalogue, self._books, self._mover = catalogue, books, mover

    def read(self, entry: Entry, level: int) -> KVChunk | None:
        """The chunk, verified; None where it is damaged or gone, and then taken out, or cannot be read now."""
        try:
            return self.get(entry, level, verified=True)
        except ChunkEvicted:
            return None

    def get(self, entry: Entry, level: int, *, verified: bool = False, staged: bool = False) -> KVChunk | None:
        """The chunk; None where it is damaged, and then taken out, or cannot be read now.

        `staged`: over memory of the mover's. Raises ChunkEvicted where others evicted it from a shared tier.
        """
        tier = self.tiers[level]
        try:
            if staged:
                return self._mover.take(entry.id, tier)
            chunk = tier.get(entry.id)
            if verified and not tier.verifies:
                chunk.verify()
        except ChunkEvicted:
            self._books.moved("dropped", self.remove(entry, level, "evicted"), times=not entry.copies)
            raise
        except (ChunkCorrupt, ChunkNotFound):
            self.quarantine(entry, level)
            return None
        except TransferError:
            self._books.failures[level] += 1
            return None
        return chunk

    def remove(self, entry: Entry, level: int, reason: str) -> int:
        """Out of one tier; returns the bytes that it took up there."""
        cost = self._leave(entry, level, reason)
        self.access.clear_away(entry.id, level)
        return cost

    def drop(self, entry: Entry, reason: str) -> None:
        """Out of every tier."""
        if entry.copies:
            self._books.moved("dropped", max(copy.cost_bytes for copy in entry.copies.values()))
        for level in list(entry.copies):
            self.remove(entry, level, reason)

    def keep_names(self, entry: Entry) -> None:
        """Let the tiers that survive know all ids under which their copy is asked for."""
        for level in entry.copies:
            self.access.keep_names(entry.id, level, entry.names)

    def quarantine(self, entry: Entry, level: int) -> None:
        """The tier's copy is bad: take it out."""
        cost = self._leave(entry, level, "evicted")
        self.access.set_aside(entry.id, level)
        self._books.moved("dropped", cost, times=not entry.copies)

    def _leave(self, entry: Entry, level: int, reason: str) -> int:
        if level == 0:
            self._books.left_nearest(entry)
        return self._catalogue.leave(entry, level, reason)
