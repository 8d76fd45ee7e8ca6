"""Chunks across the link: encoded on the device, copied down, sealed on the host; copied up, verified, ready there.

- Where the device can compute digests it does: of what goes down before it leaves, of what comes up once it is there.
  The host's copy is read for nothing but the copy; what was damaged there, or on its way there, is found when it goes
  on to any other tier, before anything is decoded from it.
- Elsewhere other threads compute them from the host's copy, layer by layer as it lands or while it leaves.
- A chunk enters a tier whole and verified, or not at all; what is late, cancelled or corrupt leaves nothing behind.

Shapes: L layers, F latent frames, T tokens, H heads, D head dim, N bytes of one layer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldkv.errors import ChunkCorrupt
from worldkv.memory.chunk import KVChunk
from worldkv.memory.codec import Codec
from worldkv.memory.digests import computed_on, digests_of
from worldkv.memory.encoded import Encoded
from worldkv.memory.fragments import layer_runs
from worldkv.memory.ticket import Copy, Ticket
from worldkv.memory.tiers.slab import Reservation, SlabTier
from worldkv.memory.transfer import TransferEngine, fence, side_stream

Digests = tuple[bytes, ...]
Found = Callable[[range], Digests]
"""Waits for the digests of these layers."""

# As many as were measured (benchmarks/transfer_h100_202611.md); at most half of the cores.
MOST_HASHERS = 8


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
    device_digests: bool = False
    """Whether the device computes those of what crosses, instead of them."""

    @classmethod
    def open(cls, on: torch.device, device: SlabTier, host: SlabTier) -> Self:
        """The link between a tier in the memory of `on` and one in the host's, with threads of its own."""
        threads = max(2, min(MOST_HASHERS, (os.cpu_count() or 1) // 2))
        hashers = ThreadPoolExecutor(threads, "worldkv-digests")
        return cls(TransferEngine.open(on), device, host, hashers, on.type == "cuda" and computed_on(on))

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
        """Start copying a chunk of the device tier down; it stays there too, and must be what it was.

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
        if self.device_digests:
            found = _there(room.payload_LN, lambda layers: ticket.wait_layer(layers.stop - 1))
        else:
            found = _of_runs([(run, self._hash(payload_LN, run)) for run in layer_runs(*payload_LN.shape)])
        return Ascent(self.device, chunk, room, found, ticket)

    def aside(self, chunk: KVChunk, room_LN: Tensor) -> KVChunk:
        """A copy of a chunk in the host's memory over other such memory, made and verified by all hashers at once.

        Blocks. Raises ChunkCorrupt.
        """
        payload_LN = chunk.encoded.payload_LN
        parts = [(run, self._hash(payload_LN, run, room_LN)) for run in layer_runs(*payload_LN.shape)]
        # All of them before any is judged: the room is free for another chunk once this one has failed.
        layers = range(len(payload_LN))
        _compare(chunk, layers, _of_runs(parts)(layers), "on its way out of its tier")
        return replace(chunk, encoded=chunk.encoded.over(room_LN))

    def _descend(self, encoded: Encoded, label: Label | KVChunk, deadline: float) -> Descent:
        room = self.host.reserve(*encoded.payload_LN.shape)
        copy = Copy(encoded.payload_LN, room.payload_LN, "down", deadline, room.after)
        if self.device_digests:
            made = fence(encoded.device)
            found = _there(encoded.payload_LN, lambda layers: None if made is None else made.hold_stream())
            return Descent(self.host, label, encoded, room, found, self.engine.submit(copy))
        parts: list[tuple[range, Callable[[], Digests]]] = []
        ticket = self.engine.submit(
            replace(copy, landed=lambda layers: parts.append((layers, self._hash(room.payload_LN, layers))))
        )

        def landed(layers: range) -> Digests:
            ticket.wait()
            return _of_runs(parts)(layers)

        return Descent(self.host, label, encoded, room, landed, ticket)

    def _hash(self, payload_LN: Tensor, layers: range, room_LN: Tensor | None = None) -> Callable[[], Digests]:
        """Digests of the layers; with `room_LN` of their copy, which is then made there first."""
        # Taken out of a list, as an executor refers to what it was given for a while after the result is there.
        parts = [x[layers.start : layers.stop] for x in (payload_LN, room_LN) if x is not None]
        return self.hashers.submit(_digests_of_the_last, parts).result


def _digests_of_the_last(parts: list[Tensor]) -> Digests:
    last_LN = parts.pop()
    if parts:
        np.copyto(last_LN.numpy(), parts.pop().numpy())  # torch would share each part among threads of its own
    return digests_of(last_LN)


def _of_runs(parts: list[tuple[range, Callable[[], Digests]]]) -> Found:
    """Of runs of layers, in order, whose digests other threads compute."""

    def found(layers: range) -> Digests:
        wanted = [(run, part()) for run, part in parts if run.start < layers.stop and layers.start < run.stop]
        return tuple(
            digest for run, digests in wanted for layer, digest in zip(run, digests, strict=True) if layer in layers
        )

    return found


def _there(payload_LN: Tensor, ready: Callable[[range], None]) -> Found:
    """Of a payload, computed where it lies by whoever asks; `ready` makes the current stream wait for the layers."""

    def found(layers: range) -> Digests:
        with side_stream(payload_LN.device):
            ready(layers)
            return digests_of(payload_LN[layers.start : layers.stop])

    return found


def _compare(chunk: KVChunk, layers: range, found: Digests, where: str) -> None:
    for layer, digest in zip(layers, found, strict=True):
        expected = chunk.layer_digests[layer]
        if expected != digest:
            raise ChunkCorrupt(
                f"chunk {chunk.id} {where}, layer {layer}: {expected.hex()} expected, {digest.hex()} found"
            )


@dataclass(frozen=True, eq=False)
class Descent:
    """A chunk on its way to the host."""

    tier: SlabTier
    label: Label | KVChunk
    """What it is, or the chunk that it must turn out to be."""
    encoded: Encoded
    """On the device."""
    room: Reservation
    found: Found
    ticket: Ticket

    def chunk(self) -> KVChunk:
        """The sealed chunk, now in the host tier. Blocks for copy and digests.

        Raises TransferError where it is late, cancelled or failed, ChunkCorrupt where it was sealed before and has
        changed; then nothing of it is published.
        """
        found = self.found(range(self.encoded.shape[0]))
        self.ticket.wait()
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
    found: Found
    ticket: Ticket

    def layer(self, layer: int) -> Encoded:
        """One verified layer, for the current stream to read while later ones still move.

        Blocks until its copy is enqueued and its digest known. Raises TransferError, ChunkCorrupt.
        """
        self._verify(range(layer, layer + 1))
        self.ticket.wait_layer(layer)
        return self.source.encoded.over(self.room.payload_LN).layer_range(layer, layer + 1)

    def chunk(self) -> KVChunk:
        """The chunk, now in the device tier, for the current stream to read.

        Blocks until all is enqueued and its digests are known, not until it has arrived, unless it is there that they
        are computed. Raises TransferError, ChunkCorrupt; then nothing is published.
        """
        if self.source.id not in self.tier:
            layers = self.source.encoded.shape[0]
            self._verify(range(layers))
            self.ticket.wait_layer(layers - 1)
            self.tier.publish(self.room, self.source)
        return self.tier.get(self.source.id)

    def _verify(self, layers: range) -> None:
        try:
            _compare(self.source, layers, self.found(layers), f"on its way to tier {self.tier.name}")
        except ChunkCorrupt:
            self.ticket.cancel()
            raise
