"""One node's chunk server: owns the chunks that lie there, lends them to readers, and tells the directories.

- A chunk is visible once its bytes are here, whole, verified and the server's own; a writer's are never kept.
- Used bytes never pass the capacity; what leaves is dropped, and whoever asks for it later is told that it was evicted.
- The same server over a `KeptShelf` is where chunks are written through: its shelf outlives it.

Threads may call at the same time. Plain Python; `actors` makes an actor of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.chunks.books import Holding, ServerBooks
from cluster.chunks.labels import Found, Gone, Key, Label, Life, Order, Process, Report, pages
from cluster.chunks.views import view_of
from worldkv.errors import CapacityError, ChunkCorrupt, ChunkError, TransferError
from worldkv.memory.chunk import KVChunk
from worldkv.memory.format import Buffer, ChunkReader

Handle = Any
"""Bytes on their way between processes: a boxed ObjectRef with Ray."""
Bytes = NDArray[np.uint8]
Lent = tuple[int, int, Handle] | Gone | None
"""Number of the loan, serial of the chunk, and its bytes; or why it is gone; None where it never was here."""

# Directories that missed more than so many changes are told everything.
CHANGES = 4096


class Objects(Protocol):
    """How bytes get from process to process."""

    def share(self, data: Bytes) -> Handle:
        """A copy of the bytes that this process owns and that others can open."""
        ...

    def open(self, handle: Handle) -> Bytes:
        """The bytes, for reading only; brought to this node if need be. Blocks. Raises TransferError."""
        ...

    def open_all(self, handles: Sequence[Handle]) -> list[Bytes]:
        """`open` of each, in less time than one after the other."""
        ...

    def fetch_ahead(self, handles: Iterable[Handle]) -> None:
        """Begin to bring the bytes to this node. Does not block."""
        ...


class Shelf(Protocol):
    """Where one server's chunks lie."""

    def keep(self, label: Label, data: Bytes) -> Handle:
        """Copy the bytes here. Blocks. Raises CapacityError, TransferError."""
        ...

    def read(self, handle: Handle) -> Handle:
        """For whoever opens it. Raises ChunkCorrupt, ChunkNotFound, TransferError."""
        ...

    def head(self, handle: Handle) -> tuple[bytes, int]:
        """All but the payload, and the size with it. Raises as `read`."""
        ...

    def drop(self, handle: Handle) -> None:
        """Free the bytes once nobody reads them. Raises TransferError."""
        ...

    def also_name(self, handle: Handle, names: Iterable[str]) -> None:
        """Keep further ids of the chunk, where the shelf outlives the server. Raises TransferError."""
        ...

    def found(self) -> Iterable[tuple[Label, Handle]]:
        """What an earlier life left."""
        ...


class ObjectShelf:
    """A shelf in the object store; ends with its server."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def keep(self, label: Label, data: Bytes) -> Handle:
        """See `Shelf`."""
        return self._objects.share(data)

    def read(self, handle: Handle) -> Handle:
        """See `Shelf`."""
        return handle

    def head(self, handle: Handle) -> tuple[bytes, int]:
        """See `Shelf`."""
        data = self._objects.open(handle)
        return ChunkReader.open(Buffer(data.data)).header.head, data.nbytes

    def drop(self, handle: Handle) -> None:
        """The bytes go with the last reference, which the server gives up."""

    def also_name(self, handle: Handle, names: Iterable[str]) -> None:
        """Nothing outlives the server."""

    def found(self) -> Iterable[tuple[Label, Handle]]:
        """Nothing."""
        return ()


class ChunkServer:
    """See the module. `start` takes up what the shelf holds; then writers, readers and directories may come."""

    def __init__(
        self, life: Life, books: ServerBooks, shelf: Shelf, objects: Objects, clock: Callable[[], float]
    ) -> None:
        self.life = life
        self._books, self._shelf, self._objects, self._clock = books, shelf, objects, clock
        self._handles: dict[int, Handle] = {}
        self._changes: deque[tuple[int, Label | tuple[Key, Gone] | Order]] = deque(maxlen=CHANGES)
        self._number = 0
        self._evicted: dict[Key, None] = {}
        self._evictions = 0
        self._lock = threading.RLock()

    def start(self) -> None:
        """Take up what an earlier life left. Blocks for reading its headers."""
        for label, handle in self._shelf.found():
            with self._lock:
                self._enter(self._books.enter(label), handle)

    # Writers

    def offer(self, label: Label, writer: Process) -> bool:
        """Reserve room for a chunk that the writer has; False where it is here already, and then it is claimed.

        Raises CapacityError where there is no room to be had, TransferError where another is just bringing it.
        """
        with self._lock:
            holding = self._books.find(*label.key)
            if holding is not None:
                holding.claims.add(writer)
                self._name(holding, label.names)
                return False
            if self._books.on_its_way(label.key):
                raise TransferError(f"chunk {label.chunk_id} is on its way to node {self.life.node} already")
            for victim in self._books.reserve(label, writer):
                self._left(victim, Gone.EVICTED)
        return True

    def store(self, label: Label, handle: Handle, writer: Process) -> None:
        """Copy the offered chunk's bytes; when this returns it is visible here. Blocks.

        Raises TransferError where they cannot be read or room for them was not reserved, ChunkCorrupt where they are
        not what the label says, CapacityError; then nothing of it remains.
        """
        with self._lock:
            if not self._books.on_its_way(label.key):
                raise TransferError(f"chunk {label.chunk_id}: no room reserved on node {self.life.node}")
        kept: list[Handle] = []
        try:
            data = self._objects.open(handle)
            _check(data, label)
            kept.append(self._shelf.keep(label, data))
        finally:
            with self._lock:
                if kept and self._books.on_its_way(label.key):
                    self._enter(self._books.arrived(label.key), kept[0])
                else:
                    self._books.abandoned(label.key)

    def abandon(self, key: Key) -> None:
        """The offered chunk will not come."""
        with self._lock:
            self._books.abandoned(key)

    def take(self, label: Label, handle: Handle, source: Process) -> None:
        """Keep a copy of a chunk that another server has. Raises as `offer` and `store` do."""
        if self.offer(label, source):
            self.store(label, handle, source)

    def unclaim(self, key: Key, process: Process) -> None:
        """The process does not count on the chunk any more; where nobody else does, it is the first to go."""
        with self._lock:
            self._books.unclaim(key, process)

    def also_name(self, key: Key, names: Iterable[str]) -> None:
        """Further ids under which the chunk is asked for. Raises TransferError."""
        with self._lock:
            holding = self._books.find(*key)
            if holding is not None:
                self._name(holding, names)

    # Readers

    def find(self, tenant: str, names: Iterable[str], reader: Process) -> dict[str, Found]:
        """By the ids asked for, those of the tenant's chunks that are here; the reader claims them."""
        found: dict[str, Found] = {}
        for name in names:
            with self._lock:
                holding = self._books.find(tenant, name)
                handle = None if holding is None else self._handles[holding.serial]
            if holding is None:
                continue
            try:
                head, size_bytes = self._shelf.head(handle)
            except ChunkError:
                self._drop(holding.label.key, Gone.LOST)
                continue
            with self._lock:
                holding.claims.add(reader)
            found[name] = Found(holding.label, head, size_bytes)
        return found

    def lend(self, key: Key, reader: Process) -> Lent:
        """Let somebody read the chunk until the loan is given back. Raises TransferError."""
        with self._lock:
            holding = self._books.find(*key)
            if holding is None:
                return Gone.EVICTED if key in self._evicted else None
            number, handle = self._books.lend(holding, reader, self._clock()), self._handles[holding.serial]
        try:
            return number, holding.serial, self._shelf.read(handle)
        except ChunkError:
            self.give_back([number])
            self._drop(key, Gone.LOST)
            return Gone.LOST
        except TransferError:
            self.give_back([number])
            raise

    def lend_all(self, keys: Iterable[Key], reader: Process) -> list[Lent]:
        """`lend` of each of these; what cannot be read now is None."""
        lent: list[Lent] = []
        for key in keys:
            try:
                lent.append(self.lend(key, reader))
            except TransferError:
                lent.append(None)
        return lent

    def give_back(self, numbers: Iterable[int]) -> None:
        """The readers of these loans are done."""
        with self._lock:
            for number in numbers:
                self._books.give_back(number)

    def distrust(self, key: Key) -> None:
        """A reader found the chunk damaged: it goes, for everybody, if that is so. Reads all of it."""
        with self._lock:
            holding = self._books.find(*key)
            handle = None if holding is None else self._handles[holding.serial]
        if holding is None:
            return
        try:
            _check(self._objects.open(self._shelf.read(handle)), holding.label)
        except ChunkError:
            self._drop(key, Gone.LOST)

    # Directories

    def report(self, heard: int | None) -> Report:
        """What changed since the report of this number; everything where that is too long ago, or None."""
        with self._lock:
            free = self._books.capacity_bytes - self._books.used_bytes
            oldest = self._changes[0][0] if self._changes else self._number + 1
            if heard is None or not oldest - 1 <= heard <= self._number:
                labels = tuple(one.label for one in self._books.held.values())
                return Report(self.life, None, self._number, free, labels)
            recent = [change for number, change in self._changes if number > heard]
            # Only how it ended counts: what came and went is neither.
            keys = dict.fromkeys(_key(change) for change in recent if not isinstance(change, Order))
            held = [one.label for key in keys if (one := self._books.held.get(key)) is not None]
            left = {change[0]: change for change in recent if isinstance(change, tuple)}
            return Report(
                self.life,
                heard,
                self._number,
                free,
                tuple(held),
                tuple(change for key, change in left.items() if key not in self._books.held),
                tuple(change for change in recent if isinstance(change, Order)),
            )

    def copy(self, order: Order, others: Callable[[str], ChunkServer], me: Process) -> None:
        """Carry out an order, and tell the directories where that is not to be asked for again. Blocks.

        Raises TransferError where it may be tried again.
        """
        loan = self.lend(order.key, me)
        if loan is None or isinstance(loan, Gone):
            return
        number, _, handle = loan
        try:
            with self._lock:
                holding = self._books.find(*order.key)
            if holding is not None:
                others(order.target).take(holding.label, handle, me)
        except (CapacityError, ChunkCorrupt):
            self._note(order)
        finally:
            self.give_back([number])

    def sweep(self, alive: Callable[[Process], bool]) -> None:
        """End what dead processes of this node have reserved, borrowed and claimed."""
        with self._lock:
            self._books.sweep(self.life.node, alive, self._clock())

    def figures(self) -> dict[str, int]:
        """Bytes and chunks, for whoever watches."""
        with self._lock:
            books = self._books
            return {
                "chunks": len(books.held),
                "used_bytes": books.used_bytes,
                "capacity_bytes": books.capacity_bytes,
                "lent_bytes": books.lent_bytes,
                "evicted": self._evictions,
            }

    def faults(self) -> list[str]:
        """Where the books do not add up."""
        with self._lock:
            faults = self._books.faults()
            if {one.serial for one in self._books.held.values()} != self._handles.keys():
                faults.append("books and shelf differ")
            return [f"chunk server of node {self.life.node}: {fault}" for fault in faults]

    def _enter(self, holding: Holding, handle: Handle) -> None:
        self._handles[holding.serial] = handle
        self._evicted.pop(holding.label.key, None)
        self._note(holding.label)

    def _drop(self, key: Key, reason: Gone) -> None:
        with self._lock:
            holding = self._books.drop(key)
            if holding is not None:
                self._left(holding, reason)

    def _left(self, holding: Holding, reason: Gone) -> None:
        """The books do not hold it any more: neither does the shelf."""
        self._shelf.drop(self._handles.pop(holding.serial))
        if reason is Gone.EVICTED:
            self._evictions += 1
            for name in (holding.label.chunk_id, *holding.label.names):
                self._evicted[holding.label.tenant, name] = None
        while len(self._evicted) > CHANGES:
            del self._evicted[next(iter(self._evicted))]
        self._note((holding.label.key, reason))

    def _name(self, holding: Holding, names: Iterable[str]) -> None:
        if self._books.also_name(holding, names):
            self._shelf.also_name(self._handles[holding.serial], holding.label.names)
            self._note(holding.label)

    def _note(self, change: Label | tuple[Key, Gone] | Order) -> None:
        with self._lock:
            self._number += 1
            self._changes.append((self._number, change))


def _key(change: Label | tuple[Key, Gone]) -> Key:
    return change.key if isinstance(change, Label) else change[0]


def label_of(chunk: KVChunk, names: tuple[str, ...] = ()) -> Label:
    """The chunk's label."""
    return Label(chunk.tenant, chunk.epoch, chunk.id, pages(chunk.header.total_bytes), names)


def _check(data: Bytes, label: Label) -> None:
    """Raise ChunkCorrupt unless these are the label's bytes, every one of them."""
    chunk = KVChunk.over(view_of(data), f"chunk {label.chunk_id}")
    chunk.verify()
    if label_of(chunk, label.names) != label:
        raise ChunkCorrupt(f"{label} expected, {label_of(chunk)} found")
