"""A tier in the memory of one device: the GPU's, or the host's.

Chunks are held least recently used first; the caller decides what leaves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch

from worldkv.errors import CapacityError, ChunkNotFound
from worldkv.memory.chunk import KVChunk


class ResidentTier:
    """Chunks of one device within `capacity_bytes`; used bytes never pass it."""

    def __init__(self, name: str, device: torch.device, capacity_bytes: int) -> None:
        self.name, self.device, self.capacity_bytes = name, device, capacity_bytes
        self.used_bytes = 0
        self._chunks: OrderedDict[str, KVChunk] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._chunks

    def ids(self) -> Iterator[str]:
        """Chunk ids, least recently used first."""
        return iter(self._chunks)

    def put(self, chunk: KVChunk) -> None:
        """Copy the chunk here as most recently used. Raises CapacityError when it does not fit."""
        if chunk.id in self._chunks:
            self._chunks.move_to_end(chunk.id)
            return
        free = self.capacity_bytes - self.used_bytes
        if chunk.nbytes > free:
            raise CapacityError(f"tier {self.name}: {chunk.nbytes} bytes asked, {free} bytes free")
        self._chunks[chunk.id] = chunk.to(self.device)
        self.used_bytes += chunk.nbytes

    def get(self, chunk_id: str) -> KVChunk:
        """The chunk, now most recently used. Raises ChunkNotFound."""
        chunk = self.peek(chunk_id)
        self._chunks.move_to_end(chunk_id)
        return chunk

    def peek(self, chunk_id: str) -> KVChunk:
        """The chunk, no more recently used than before. Raises ChunkNotFound."""
        if chunk_id not in self._chunks:
            raise ChunkNotFound(f"tier {self.name} does not hold chunk {chunk_id}")
        return self._chunks[chunk_id]

    def pop(self, chunk_id: str) -> KVChunk:
        """Take the chunk out. Raises ChunkNotFound."""
        chunk = self.peek(chunk_id)
        del self._chunks[chunk_id]
        self.used_bytes -= chunk.nbytes
        return chunk
