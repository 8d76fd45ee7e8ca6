"""A tier whose chunks lie in one preallocated slab, the host's or a device's.

- A chunk handed out is a view of the slab, never a copy. Its bytes stay as they are for as long as any view of them
  lives: a chunk that was removed meanwhile lingers, and its bytes count as used until its last reader lets go.
- free + held + arriving + lingering = capacity, and `check` says so.
- A chunk is here only once it is complete: what is arriving lies in a `Reservation`, to be published or dropped.
- Room that is free but scattered is gathered by sliding chunks that nobody reads.
- One thread at a time; only views may be let go of by others.

Shapes: L layers, N bytes of one layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from worldkv.errors import CapacityError, ChunkNotFound, TransferError
from worldkv.memory.chunk import KVChunk
from worldkv.memory.fragments import fragments_of
from worldkv.memory.ticket import Mark
from worldkv.memory.tiers.extents import Extent, Extents

# The size of a page; less than 1 % of any chunk worth keeping.
GRAIN_BYTES = 4096


class Slab(Protocol):
    """A preallocated run of bytes."""

    @property
    def nbytes(self) -> int: ...

    def span(self, extent: Extent) -> object:
        """A new owner of these bytes; it can be referred to weakly."""
        ...

    def tensor(self, span: object) -> Tensor:
        """uint8 over the span's bytes; the span lives for as long as any view of the tensor does."""
        ...

    def slide(self, old: Extent, new: Extent) -> None:
        """Copy bytes to a lower place, which they may overlap."""
        ...

    def fence(self) -> Mark | None:
        """Done once the work enqueued so far is, as far as it could read or write the slab; None: it is done."""
        ...


@dataclass(frozen=True)
class Reservation:
    """Room for one chunk that is on its way; dropped unless it is published."""

    payload_LN: Tensor
    """To be filled, whole."""
    after: tuple[Mark, ...]
    """What must be done before anything but the current stream writes there: its last readers may still be at work."""
    extent: Extent


@dataclass
class _Held:
    chunk: KVChunk
    """Its payload is of the meta device: shape without bytes."""
    extent: Extent
    reader: Callable[[], object | None]
    """The span its views share, while there are any."""


@dataclass
class _Books:
    extents: Extents
    held: dict[str, _Held] = field(default_factory=dict)
    loose: list[tuple[Callable[[], object | None], Extent]] = field(default_factory=list)
    """Reserved or removed: free once nobody refers to the span."""
    fences: list[tuple[Extent, Mark]] = field(default_factory=list)
    """Freed, and perhaps still being read by enqueued work."""


class SlabTier:
    """See `Tier`. `used_bytes` counts whole grains, and chunks that were removed while they are being read."""

    verifies = False

    def __init__(self, name: str, slab: Slab) -> None:
        self.name, self._slab = name, slab
        self._books = _Books(Extents(slab.nbytes, GRAIN_BYTES))

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the slab, in whole grains."""
        return self._books.extents.capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of all but free extents."""
        self._sweep()
        return self.capacity_bytes - self._books.extents.free_bytes

    def __len__(self) -> int:
        return len(self._books.held)

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._books.held

    def ids(self) -> Iterator[str]:
        """Ids of the chunks that are here, in order of arrival."""
        return iter(tuple(self._books.held))

    def cost_bytes(self, chunk: KVChunk) -> int:
        """The payload in whole grains; poses and token ids lie in the process' heap and are not counted."""
        return self._books.extents.rounded(chunk.encoded.nbytes)

    def reserve(self, layers: int, layer_bytes: int) -> Reservation:
        """Room for a payload of this shape; may slide chunks. Raises CapacityError where there is none."""
        self._sweep()
        books, nbytes = self._books, layers * layer_bytes
        extent = books.extents.take(nbytes)
        if extent is None:
            self._gather(nbytes)
            extent = books.extents.take(nbytes)
        if extent is None:
            raise CapacityError(self._full(nbytes))
        span = self._slab.span(extent)
        payload_LN = self._slab.tensor(span)[:nbytes].view(layers, layer_bytes)
        books.loose.append((weakref.ref(span), extent))
        after = tuple(mark for freed, mark in books.fences if freed.overlaps(extent))
        return Reservation(payload_LN, after, extent)

    def publish(self, reservation: Reservation, chunk: KVChunk) -> None:
        """Take in the chunk whose payload lies, complete, in the reservation; one that is here already stays.

        Raises ValueError for a reservation that was published before.
        """
        place = next((i for i, (_, extent) in enumerate(self._books.loose) if extent == reservation.extent), None)
        if place is None:
            raise ValueError(f"tier {self.name}: {reservation.extent} is not reserved")
        if chunk.id in self:
            return
        reader, extent = self._books.loose.pop(place)
        self._books.held[chunk.id] = _Held(chunk.bare(), extent, reader)

    def put(self, chunk: KVChunk) -> None:
        """See `Tier.put`; a copy on the current stream, or by this thread."""
        if chunk.id in self:
            return
        reservation = self.reserve(*chunk.encoded.payload_LN.shape)
        for mark in reservation.after:
            mark.hold_stream()
        try:
            _copy(chunk.encoded.payload_LN, reservation.payload_LN)
        except RuntimeError as fault:
            raise TransferError(
                f"chunk {chunk.id} from {chunk.encoded.device} to tier {self.name}: 0 of {chunk.encoded.nbytes} "
                f"bytes known to be done: {fault}"
            ) from fault
        self.publish(reservation, chunk)

    def get(self, chunk_id: str) -> KVChunk:
        """The chunk as a view of the slab. Does not block. Raises ChunkNotFound."""
        if chunk_id not in self:
            raise ChunkNotFound(f"tier {self.name} does not hold chunk {chunk_id}")
        held = self._books.held[chunk_id]
        span = held.reader()
        if span is None:
            span = self._slab.span(held.extent)
            held.reader = weakref.ref(span)
        like = held.chunk.encoded.payload_LN
        payload_LN = self._slab.tensor(span)[: like.nbytes].view(like.shape)
        return replace(held.chunk, encoded=held.chunk.encoded.over(payload_LN))

    def lent(self, chunk_id: str) -> bool:
        """See `Lends.lent`."""
        held = self._books.held.get(chunk_id)
        return held is not None and held.reader() is not None

    def remove(self, chunk_id: str) -> None:
        """Forget the chunk; its bytes are free at once, or as soon as nobody reads them."""
        held = self._books.held.pop(chunk_id, None)
        if held is not None:
            self._books.loose.append((held.reader, held.extent))
            self._sweep()

    def check(self) -> list[str]:
        """See `Tier.check`: free + held + arriving + lingering = capacity, and nothing overlaps."""
        books = self._books
        owned = sorted([held.extent for held in books.held.values()] + [extent for _, extent in books.loose])
        faults = [f"tier {self.name}: {fault}" for fault in books.extents.check()]
        overlaps = [(a, b) for a, b in pairwise(owned) if a.overlaps(b)]
        faults += [f"tier {self.name}: {a} and {b} overlap" for a, b in overlaps]
        total = sum(extent.nbytes for extent in owned) + books.extents.free_bytes
        if total != self.capacity_bytes:
            faults.append(f"tier {self.name}: {total} bytes free, held or loose, capacity {self.capacity_bytes}")
        wrong = [i for i, h in books.held.items() if h.extent.nbytes != self.cost_bytes(h.chunk)]
        return faults + [f"tier {self.name}: chunk {i} lies in an extent of another size" for i in wrong]

    def close(self) -> None:
        """Forget all chunks; the slab goes with its last reader."""
        self._books.held.clear()

    def _sweep(self) -> None:
        """Free what nobody refers to any more."""
        books = self._books
        idle = [extent for reader, extent in books.loose if reader() is None]
        if not idle:
            return
        books.loose = [entry for entry in books.loose if entry[1] not in idle]
        for extent in idle:
            books.extents.give_back(extent)
            self._fence(extent)

    def _fence(self, extent: Extent) -> None:
        self._books.fences = [(freed, mark) for freed, mark in self._books.fences if not mark.done()]
        mark = self._slab.fence()
        if mark is not None:
            self._books.fences.append((extent, mark))

    def _gather(self, nbytes: int) -> None:
        """Slide chunks that nobody reads, so that `nbytes` lie free in one piece if they can."""
        books = self._books
        at_rest = {held.extent: held for held in books.held.values() if held.reader() is None}
        for move in books.extents.plan_moves(nbytes, at_rest.__contains__) or []:
            self._slab.slide(*move)
            books.extents.apply(move)
            at_rest[move.old].extent = move.new
            # Whoever writes next where the bytes lay waits for them to be read.
            self._fence(Extent(move.new.start, move.old.stop))

    def _full(self, nbytes: int) -> str:
        extents = self._books.extents
        loose = sum(extent.nbytes for _, extent in self._books.loose)
        return (
            f"tier {self.name}: {nbytes} bytes asked, {extents.free_bytes} bytes free (at most "
            f"{extents.largest_free_bytes} in one piece), {loose} bytes arriving or still read, "
            f"capacity {self.capacity_bytes}"
        )


class HostSlab:
    """Host memory, as any writable buffer of bytes gives it."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self._buffer.nbytes

    def span(self, extent: Extent) -> object:
        """See `Slab.span`."""
        return self._buffer[extent.start : extent.stop]

    def tensor(self, span: object) -> Tensor:
        """See `Slab.tensor`."""
        return torch.frombuffer(span, dtype=torch.uint8)

    def slide(self, old: Extent, new: Extent) -> None:
        """See `Slab.slide`."""
        slide(torch.frombuffer(self._buffer, dtype=torch.uint8), old, new)

    def fence(self) -> None:
        """Whoever copies from or to host memory holds a view until that is done."""
        return None


# Pieces through which a slide copies, so that it needs little memory beside the slab.
SLIDE_BYTES = 64 * 2**20


def slide(memory_N: Tensor, old: Extent, new: Extent) -> None:
    """Copy bytes to a lower place in the same memory; the two may overlap."""
    for done in range(0, old.nbytes, SLIDE_BYTES):
        part = min(SLIDE_BYTES, old.nbytes - done)
        piece_N = memory_N[old.start + done : old.start + done + part]
        memory_N[new.start + done : new.start + done + part] = piece_N.clone()


def _copy(source_LN: Tensor, target_LN: Tensor) -> None:
    if source_LN.device.type == target_LN.device.type:
        target_LN.copy_(source_LN)
        return
    # The driver refuses a copy from one pinned piece of the host's slab into the next.
    host_LN = target_LN if target_LN.device.type == "cpu" else source_LN
    source_N, target_N = source_LN.reshape(-1), target_LN.view(-1)
    layers, layer_bytes = source_LN.shape
    for start, stop in fragments_of(layers, layer_bytes, host_LN.data_ptr()):
        target_N[start:stop].copy_(source_N[start:stop])
