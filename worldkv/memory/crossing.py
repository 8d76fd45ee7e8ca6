"""Chunks across the link: encoded on the device, copied down, sealed on the host; copied up, verified, ready there.

- Digests are computed by other threads, from the host's copy, layer by layer as it lands or while it leaves.
- A chunk enters a tier whole and verified, or not at all; what is late, cancelled or corrupt leaves nothing behind.

Shapes: L layers, F latent frames, T tokens, H heads, D head dim, N bytes of one layer.
"""

from __future__ import annotations

import math
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldkv.errors import ChunkCorrupt
from worldkv.memory.chunk import KVChunk
from worldkv.memory.codec import Codec
from worldkv.memory.encoded import Encoded
from worldkv.memory.format import digests_of
from worldkv.memory.fragments import layer_runs
from worldkv.memory.ticket import Copy, Ticket
from worldkv.memory.tiers.slab import Reservation, SlabTier
from worldkv.memory.transfer import TransferEngine

Digests = list[tuple[range, Future[tuple[bytes, ...]]]]

# One for each direction.
HASHERS = 2


@dataclass(frozen=True, eq=False)
class Label:
    """All of a chunk but its payload and what is computed from that; see `KVChunk`."""

    tenant: str
    epoch: str
    index: int
    c2w_F44: NDArray[np.float32]
    token_ids_T3: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class Crossing:
    """A device tier, the host tier behind it, and the link between them; for the thread that owns the tiers."""

    engine: TransferEngine
    device: SlabTier
    host: SlabTier
    hashers: Executor
    """Threads that compute digests: xxhash lets go of Python's lock for layers of 64 KiB and more."""

    @classmethod
    def open(cls, on: torch.device, device: SlabTier, host: SlabTier, *, hashers: int = HASHERS) -> Self:
        """The link between a tier in the memory of `on` and one in the host's, with threads of its own."""
        return cls(TransferEngine.open(on), device, host, ThreadPoolExecutor(hashers, "worldkv-digests"))

    def close(self) -> None:
        """End transfers and threads; before the tiers are closed."""
        self.engine.close()
        self.hashers.shutdown()

    def down(self, codec: Codec, kv: tuple[Tensor, Tensor], label: Label, *, deadline: float = math.inf) -> Descent:
        """Encode K and V [L, T, H, D] where they are and start the copy down.

        Waits for the device once, as `Codec.encode` does, and while the engine's queue is full. Raises CapacityError
        where the host tier has no room; ModelError where they cannot be encoded.
        """
        return self._descend(codec.encode(*kv), label, deadline)

    def down_again(self, chunk_id: str, *, deadline: float = math.inf) -> Descent:
        """Start copying a chunk of the device tier down; it stays there too, and its digests are checked on the host.

        Waits while the engine's queue is full. Raises ChunkNotFound, and CapacityError where the host has no room.
        """
        chunk = self.device.get(chunk_id)
        return self._descend(chunk.encoded, chunk, deadline)

    def up(self, chunk_id: str, *, deadline: float = math.inf) -> Ascent:
        """Start copying a chunk of the host tier up; it stays there too.

        Waits while the engine's queue is full. Raises ChunkNotFound, and CapacityError where the device has no room.
        """
        chunk = self.host.get(chunk_id)
        payload_LN = chunk.encoded.payload_LN
        room = self.device.reserve(*payload_LN.shape)
        ticket = self.engine.submit(Copy(payload_LN, room.payload_LN, "up", deadline, room.after))
        digests = [(run, self._hash(payload_LN, run)) for run in layer_runs(*payload_LN.shape)]
        return Ascent(self.device, chunk, room, digests, ticket)

    def _descend(self, encoded: Encoded, label: Label | KVChunk, deadline: float) -> Descent:
        room = self.host.reserve(*encoded.payload_LN.shape)
        digests: Digests = []

        def landed(layers: range) -> None:
            digests.append((layers, self._hash(room.payload_LN, layers)))

        copy = Copy(encoded.payload_LN, room.payload_LN, "down", deadline, room.after, landed)
        return Descent(self.host, label, encoded, room, digests, self.engine.submit(copy))

    def _hash(self, payload_LN: Tensor, layers: range) -> Future[tuple[bytes, ...]]:
        # Taken out of a list, as an executor refers to what it was given for a while after the result is there.
        parts = [payload_LN[layers.start : layers.stop]]
        return self.hashers.submit(lambda: digests_of(parts.pop()))


@dataclass(frozen=True, eq=False)
class Descent:
    """A chunk on its way to the host."""

    tier: SlabTier
    label: Label | KVChunk
    """What it is, or the chunk that it must turn out to be."""
    encoded: Encoded
    """On the device."""
    room: Reservation
    digests: Digests
    ticket: Ticket

    def chunk(self) -> KVChunk:
        """The sealed chunk, now in the host tier. Blocks for copy and digests.

        Raises TransferError where it is late, cancelled or failed, ChunkCorrupt where it was sealed before and has
        changed; then nothing of it is published.
        """
        self.ticket.wait()
        found = tuple(digest for _, part in self.digests for digest in part.result())
        label, encoded = self.label, self.encoded.over(self.room.payload_LN)
        poses = np.ascontiguousarray(label.c2w_F44, np.float32)
        draft = KVChunk(label.tenant, label.epoch, label.index, poses, label.token_ids_T3, encoded, found, "")
        chunk = replace(draft, checksum=draft.header.checksum)
        if isinstance(label, KVChunk) and label.checksum != chunk.checksum:
            raise ChunkCorrupt(f"chunk {label.id} on its way to tier {self.tier.name}: checksum {chunk.checksum} found")
        if chunk.id not in self.tier:
            self.tier.publish(self.room, chunk)
        return self.tier.get(chunk.id)


@dataclass(frozen=True, eq=False)
class Ascent:
    """A chunk on its way to the device."""

    tier: SlabTier
    source: KVChunk
    """In the host tier."""
    room: Reservation
    digests: Digests
    ticket: Ticket

    def layer(self, layer: int) -> Encoded:
        """One verified layer, for the current stream to read while later ones still move.

        Blocks until its copy is enqueued and its digest known. Raises TransferError, ChunkCorrupt.
        """
        self._verify(layer, layer + 1)
        self.ticket.wait_layer(layer)
        return self.source.encoded.over(self.room.payload_LN).layer_range(layer, layer + 1)

    def chunk(self) -> KVChunk:
        """The chunk, now in the device tier, for the current stream to read.

        Blocks until all is enqueued and its digests are known, not until it has arrived. Raises TransferError,
        ChunkCorrupt; then nothing is published.
        """
        if self.source.id not in self.tier:
            layers = self.source.encoded.shape[0]
            self._verify(0, layers)
            self.ticket.wait_layer(layers - 1)
            self.tier.publish(self.room, self.source)
        return self.tier.get(self.source.id)

    def _verify(self, start: int, stop: int) -> None:
        for run, part in self.digests:
            for layer in range(max(start, run.start), min(stop, run.stop)):
                expected, found = self.source.layer_digests[layer], part.result()[layer - run.start]
                if expected != found:
                    self.ticket.cancel()
                    raise ChunkCorrupt(
                        f"chunk {self.source.id} on its way to tier {self.tier.name}, layer {layer}: "
                        f"{expected.hex()} expected, {found.hex()} found"
                    )
