"""A chunk server's shelf in a durable tier: what is written through, and outlives nodes and the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from cluster.chunks.labels import Label
from cluster.chunks.server import Bytes, Handle, Objects, label_of
from cluster.chunks.views import view_of
from worldkv.errors import ChunkError, TransferError
from worldkv.memory.chunk import KVChunk
from worldkv.memory.tier import Quarantines, Survives

# Headers asked for at once when a server starts.
AHEAD = 64


class KeptShelf:
    """See `server.Shelf`; a handle is the chunk's id. The tier is this server's alone."""

    def __init__(self, tier: Survives, objects: Objects) -> None:
        self._tier, self._objects = tier, objects
        self._stuck: set[str] = set()

    def keep(self, label: Label, data: Bytes) -> Handle:
        """Durable when this returns. See `Shelf`."""
        self._retry()
        self._tier.put(KVChunk.over(view_of(data)))
        self._stuck.discard(label.chunk_id)
        self.also_name(label.chunk_id, label.names)
        return label.chunk_id

    def read(self, handle: Handle) -> Handle:
        """Read and verified; as an object of its own, which goes with its reader. See `Shelf`."""
        return self._objects.share(np.frombuffer(self._sound(handle, self._tier.get).to_bytes(), np.uint8))

    def head(self, handle: Handle) -> tuple[bytes, int]:
        """See `Shelf`."""
        header = self._sound(handle, self._tier.outline).header
        return header.head, header.total_bytes

    def drop(self, handle: Handle) -> None:
        """Delete the chunk; tried again later where that fails."""
        self._stuck.add(handle)
        self._retry()

    def also_name(self, handle: Handle, names: Iterable[str]) -> None:
        """See `Shelf`."""
        self._tier.also_name(handle, names)

    def found(self) -> Iterable[tuple[Label, Handle]]:
        """See `Shelf`. What is damaged is set aside, and what cannot be read now stays unknown."""
        ids = list(self._tier.ids())
        for start in range(0, len(ids), AHEAD):
            batch = ids[start : start + AHEAD]
            self._tier.expect(batch)
            for chunk_id in batch:
                try:
                    chunk = self._sound(chunk_id, self._tier.outline)
                except (ChunkError, TransferError):
                    continue
                yield label_of(chunk, self._tier.names(chunk_id)), chunk_id

    def _sound(self, chunk_id: str, read: Callable[[str], KVChunk]) -> KVChunk:
        """What is read, or, where it is damaged, set aside before the fault is told."""
        try:
            return read(chunk_id)
        except ChunkError:
            if isinstance(self._tier, Quarantines):
                self._tier.quarantine(chunk_id)
            raise

    def _retry(self) -> None:
        for chunk_id in list(self._stuck):
            try:
                self._tier.remove(chunk_id)
            except TransferError:
                return
            self._stuck.discard(chunk_id)
