"""Taking up what an earlier process left in the tiers, by headers alone: the same work however large chunks are.

- A payload is verified when it is first read; a header that is damaged is set aside at once.
- What cannot be read now stays, counts as a failure of its tier, and is tried again when somebody asks for it. It goes
  unread only where its bytes are needed.
- A chunk is found under every id under which it was ever admitted.
- What others have put into a shared tier is taken up when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from worldkv.errors import ChunkCorrupt, ChunkNotFound, TransferError
from worldkv.memory.catalogue import Catalogue, Entry
from worldkv.memory.chunk import KVChunk
from worldkv.memory.placement import Placement
from worldkv.memory.tier import Survives

# Headers asked for ahead of their turn, for a disk to read at once; four times as many took no less time.
AHEAD = 64


class Adoption:
    """Enters into the catalogue what tiers that survive hold."""

    def __init__(self, placement: Placement, catalogue: Catalogue) -> None:
        self._placement, self._access, self._catalogue = placement, placement.access, catalogue

    def start(self) -> int:
        """Take up all there is; how many chunks. Blocks for reading their headers."""
        taken: list[tuple[int, Entry]] = []
        for level, tier in reversed(list(enumerate(self._access.survivors))):
            for chunk_id in () if tier is None else _in_turn(tier):
                entry = self._take_up(level, chunk_id)
                taken += [] if entry is None else [(level, entry)]
        # Only now: a name must not stand for a chunk that lies here itself.
        for level, entry in taken:
            self._name(level, entry)
        self._placement.enforce_limits()
        return len(taken)

    def try_again(self, tenant: str, chunk_id: str) -> None:
        """Take up what could not be read before, if it is what the tenant asks for and nothing else is at hand."""
        for level, unread in enumerate(self._access.unread):
            known = self._catalogue.find(tenant, chunk_id) if chunk_id in unread else None
            if chunk_id in unread and (known is None or not known.copies):
                entry = self._take_up(level, unread[chunk_id])
                if entry is not None:
                    self._name(level, entry)
                    self._placement.enforce_limits()

    def look_around(self, tenant: str, chunk_ids: Sequence[str]) -> None:
        """Take up those of the tenant's chunks that no tier here holds, and that others put into a shared one.

        What lies in that alone begins to come nearer. Blocks for headers, not for payloads.
        """
        for level, tier in enumerate(self._access.shared):
            if tier is None:
                continue
            missing = [chunk_id for chunk_id in dict.fromkeys(chunk_ids) if not self._lying(tenant, chunk_id)]
            for name, outline in self._access.find(tenant, missing, level).items():
                entry = self._entry_of(outline)
                if self._placement.enter(entry, outline, level):
                    self._also_named(entry, name)
                    self._name(level, entry)
                self._catalogue.settle(entry)
            known = (self._catalogue.find(tenant, chunk_id) for chunk_id in chunk_ids)
            tier.prefetch([one.id for one in known if one is not None and min(one.copies, default=None) == level])

    def _lying(self, tenant: str, chunk_id: str) -> bool:
        entry = self._catalogue.find(tenant, chunk_id)
        return entry is not None and bool(entry.copies)

    def _take_up(self, level: int, chunk_id: str) -> Entry | None:
        tier = self._access.survivors[level]
        assert tier is not None, f"tier {level} outlives no process, and holds no chunk {chunk_id} of an earlier one"
        try:
            chunk = tier.outline(chunk_id)
        except (ChunkCorrupt, ChunkNotFound):
            self._access.set_aside(chunk_id, level)
            return None
        except TransferError:
            self._access.not_read(chunk_id, level, tier.names(chunk_id))
            return None
        self._access.now_read(chunk_id, level)
        entry = self._entry_of(chunk)
        if entry.id != chunk_id:
            self._access.clear_away(chunk_id, level)  # what it became with less detail is at hand
            return None
        if level not in entry.copies:
            self._catalogue.enter(entry, level, tier.cost_bytes(chunk))
        return entry

    def _entry_of(self, chunk: KVChunk) -> Entry:
        entry = self._catalogue.find(chunk.tenant, chunk.id)
        if entry is None:
            entry = self._catalogue.add(chunk.tenant, chunk.epoch, chunk.id)
            entry.found = True
        if not entry.copies:
            entry.epoch = chunk.epoch
            self._catalogue.rename(entry, chunk)
        return entry

    def _name(self, level: int, entry: Entry) -> None:
        tier = self._access.survivors[level]
        for name in () if tier is None else tier.names(entry.id):
            self._also_named(entry, name)

    def _also_named(self, entry: Entry, name: str) -> None:
        known = self._catalogue.find(entry.tenant, name)
        if known is None:
            self._catalogue.also_named(entry, name)
        elif known is not entry and not known.copies and not known.firm:
            self._catalogue.merge(known, entry)


def _in_turn(tier: Survives) -> Iterator[str]:
    ids = list(tier.ids())
    for start in range(0, len(ids), AHEAD):
        batch = ids[start : start + AHEAD]
        tier.expect(batch)
        yield from batch
