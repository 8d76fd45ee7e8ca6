"""A tier in the memory of one device: the GPU's, or the host's."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from worldkv.errors import CapacityError, ChunkNotFound
from worldkv.memory.chunk import KVChunk


class ResidentTier:
    """A `memory.tier.Tier` of one device; used bytes never pass `capacity_bytes`."""

    def __init__(self, name: str, device: torch.device, capacity_bytes: int, *, verifies: bool = False) -> None:
        """`verifies`: check each chunk as it is read, where that is cheap next to what the reader does with it."""
        self.name, self.device, self.capacity_bytes, self.verifies = name, device, capacity_bytes, verifies
        self.used_bytes = 0
        self._chunks: dict[str, KVChunk] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._chunks

    def ids(self) -> Iterator[str]:
        """Chunk ids in the order in which they came."""
        return iter(self._chunks)

    def cost_bytes(self, chunk: KVChunk) -> int:
        """See `Tier`."""
        return chunk.nbytes

    def put(self, chunk: KVChunk) -> None:
        """See `Tier`. Raises CapacityError when it does not fit."""
        if chunk.id in self._chunks:
            return
        free = self.capacity_bytes - self.used_bytes
        if chunk.nbytes > free:
            raise CapacityError(f"tier {self.name}: {chunk.nbytes} bytes asked, {free} bytes free")
        try:
            self._chunks[chunk.id] = chunk.copy_to(self.device)
        except torch.OutOfMemoryError as fault:
            raise CapacityError(
                f"tier {self.name}: {chunk.nbytes} bytes asked, {free} of capacity_bytes = {self.capacity_bytes} "
                f"free, but {self.device} has no memory left; lower capacity_bytes: {fault}"
            ) from fault
        self.used_bytes += chunk.nbytes

    def get(self, chunk_id: str) -> KVChunk:
        """See `Tier`. Raises ChunkNotFound, and ChunkCorrupt where the tier verifies."""
        if chunk_id not in self._chunks:
            raise ChunkNotFound(f"tier {self.name} does not hold chunk {chunk_id}")
        chunk = self._chunks[chunk_id]
        if self.verifies:
            chunk.verify()
        return chunk

    def remove(self, chunk_id: str) -> None:
        """See `Tier`."""
        chunk = self._chunks.pop(chunk_id, None)
        if chunk is not None:
            self.used_bytes -= chunk.nbytes

    def check(self) -> list[str]:
        """See `Tier`."""
        held = sum(chunk.nbytes for chunk in self._chunks.values())
        if held == self.used_bytes <= self.capacity_bytes:
            return []
        return [f"tier {self.name}: {held} bytes held, {self.used_bytes} booked, {self.capacity_bytes} cap"]

    def close(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self.used_bytes = 0
