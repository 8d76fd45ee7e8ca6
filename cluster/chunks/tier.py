"""The node tier as one worker's chunk memory sees it: chunks that all workers share, and this one's part in them.

- Puts are copied out of the caller's hands and written by a thread; others see a chunk once the server has verified it.
- What this process has put or taken up is its claim, and counts in its books; others may evict it all the same. Then
  the next `get` says so.
- A chunk is read where it lies, in the object store's memory: as with any chunk nobody may write into it, for all
  processes of the node would see that. Its digests are checked once per process.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.chunks.client import Client, Loan
from cluster.chunks.labels import Found, Key, Label, pages
from cluster.chunks.outbox import Outbox
from cluster.chunks.server import label_of
from cluster.chunks.views import SharedMemory
from worldkv.errors import CapacityError, ChunkCorrupt, ChunkNotFound, TransferError
from worldkv.memory.chunk import KVChunk

FLUSH_SECONDS = 0.05


@dataclass(frozen=True)
class _Head:
    """All of a chunk but its payload, see `format.Source`."""

    label: str
    size_bytes: int
    head: bytes

    def read_into(self, offset: int, out: memoryview) -> int:
        """See `Source`."""
        part = self.head[offset : offset + len(out)]
        out[: len(part)] = part
        return len(part)


@dataclass
class _Claim:
    label: Label
    node: str


@dataclass(frozen=True)
class _Seen:
    """A copy that was read whole and verified: it is as immutable as the chunk."""

    copy: tuple[str, int]
    """Node and serial."""
    bare: KVChunk
    payload_offset: int

    def over(self, data_N: NDArray[np.uint8]) -> KVChunk:
        """The chunk over these bytes of that copy."""
        encoded = self.bare.encoded
        payload_LN = torch.from_numpy(data_N[self.payload_offset :]).view(encoded.payload_LN.shape)
        return replace(self.bare, encoded=encoded.over(payload_LN))


class NodeTier:
    """See `Tier`, `Survives`, `Shared` and `ReadsAside`; made by `connect.open_node_tier`.

    One thread owns it. Others may `get` meanwhile what the owner does not remove, and the outbox writes.
    """

    verifies = True
    reads_aside = True

    def __init__(self, name: str, capacity_bytes: int, client: Client, outbox: Outbox) -> None:
        self.name, self.capacity_bytes = name, capacity_bytes
        self._client, self._outbox = client, outbox
        self._claims: dict[str, _Claim] = {}
        self._found: dict[str, tuple[str, Found]] = {}
        """Told by the last `find`, and not taken up yet."""
        self._seen: dict[str, _Seen] = {}
        """Which copy of a chunk this process has verified."""
        self._done: deque[tuple[str, int]] = deque()
        """Loans whose bytes nobody here refers to any more."""
        self.used_bytes = 0

    @property
    def failures(self) -> int:
        """Chunks that could not be written, for good."""
        return len(self._outbox.failures)

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, chunk_id: str) -> bool:
        """Whether this process claims the chunk; `get` tells whether it is still there."""
        return chunk_id in self._claims

    def ids(self) -> Iterator[str]:
        """Ids of the chunks that this process claims, in the order in which it came to do so."""
        return iter(self._claims)

    def cost_bytes(self, chunk: KVChunk) -> int:
        """Bytes of the chunk in its format, in whole pages."""
        return pages(chunk.header.total_bytes)

    def put(self, chunk: KVChunk) -> None:
        """Send the chunk off, or take up what `find` told of: then it is but an outline. See `Tier`.

        Waits for the outbox only. Copies the chunk once. Raises CapacityError where this process' part is full.
        """
        if chunk.id in self._claims:
            return
        label = label_of(chunk)
        free = self.capacity_bytes - self.used_bytes
        if label.nbytes > free:
            raise CapacityError(f"tier {self.name}: {label.nbytes} bytes asked, {free} of {self.capacity_bytes} free")
        told = self._found.pop(chunk.id, None)
        if chunk.encoded.device.type == "meta":
            if told is None:
                raise TransferError(f"tier {self.name}: nothing is known of chunk {chunk.id} but its outline")
            node, found = told
            self._claims[chunk.id] = _Claim(found.label, node)
        else:
            self._outbox.put(label, _packed(chunk))
            self._claims[chunk.id] = _Claim(label, self._client.me.node)
        self.used_bytes += label.nbytes

    def get(self, chunk_id: str) -> KVChunk:
        """The chunk where it lies. See `Tier` and `Shared`; ChunkNotFound also where all nodes that had it are dead."""
        claim = self._claim(chunk_id)
        self.give_back()
        data = self._outbox.pending(chunk_id)
        if data is not None:
            return KVChunk.over(data)
        if chunk_id in self._outbox.failures:
            raise ChunkNotFound(
                f"tier {self.name}: chunk {chunk_id} was not written: {self._outbox.failures[chunk_id]}"
            )
        loan = self._client.lend(claim.label.key)
        seen = self._seen.get(chunk_id)
        if seen is not None and seen.copy == (loan.node, loan.serial):
            return seen.over(self._view(loan))
        claim.node = loan.node  # whom to blame
        chunk = KVChunk.over(self._view(loan), f"tier {self.name}, chunk {chunk_id} of node {loan.node}")
        if chunk.id != chunk_id:
            raise ChunkCorrupt(f"tier {self.name}: chunk {chunk_id} expected, {chunk.id} found on node {loan.node}")
        chunk.verify()
        if chunk_id in self._claims:  # else its owner gave it up while another thread still read it
            self._seen[chunk_id] = _Seen((loan.node, loan.serial), chunk.bare(), chunk.header.payload_offset)
        return chunk

    def remove(self, chunk_id: str) -> None:
        """Give up the claim: the chunk goes first when its node needs room, if nobody else claims it. See `Tier`."""
        claim = self._claims.pop(chunk_id, None)
        if claim is None:
            return
        self.used_bytes -= claim.label.nbytes
        self._seen.pop(chunk_id, None)
        if self._outbox.cancel(chunk_id) and self._outbox.failures.pop(chunk_id, None) is None:
            self._client.unclaim(claim.node, claim.label.key)

    def quarantine(self, chunk_id: str) -> None:
        """Let the server that gave it look at the chunk again: if it is damaged there, it goes for everybody."""
        claim = self._claims.get(chunk_id)
        if claim is not None:
            self._client.distrust(claim.node, claim.label.key)
            self.remove(chunk_id)

    def outline(self, chunk_id: str) -> KVChunk:
        """See `Survives`."""
        label = self._claim(chunk_id).label
        _, found = self._client.find(label.tenant, [chunk_id]).get(chunk_id, (None, None))
        if found is None:
            raise ChunkNotFound(f"tier {self.name}: chunk {chunk_id} is on no node any more")
        return self._outline(found)

    def expect(self, chunk_ids: Iterable[str]) -> None:
        """See `Survives`: `find` has told the outlines already."""

    def names(self, chunk_id: str) -> tuple[str, ...]:
        """See `Survives`."""
        claim = self._claims.get(chunk_id)
        return () if claim is None else claim.label.names

    def also_name(self, chunk_id: str, names: Iterable[str]) -> None:
        """See `Survives`."""
        claim = self._claim(chunk_id)
        known = {chunk_id, *claim.label.names}
        fresh = tuple(name for name in dict.fromkeys(names) if name not in known)
        if fresh:
            self._outbox.wait_for(chunk_id)
            self._client.also_name(claim.node, claim.label.key, fresh)
            claim.label = replace(claim.label, names=claim.label.names + fresh)

    def find(self, tenant: str, chunk_ids: Sequence[str]) -> dict[str, KVChunk]:
        """See `Shared`."""
        self.give_back()
        self._found.clear()
        outlines: dict[str, KVChunk] = {}
        for name, (node, found) in self._client.find(tenant, chunk_ids).items():
            self._found[found.label.chunk_id] = (node, found)
            outlines[name] = self._outline(found)
        return outlines

    def prefetch(self, chunk_ids: Iterable[str]) -> None:
        """See `Shared`."""
        self.give_back()
        wanted: dict[str, list[Key]] = {}
        for chunk_id in chunk_ids:
            claim = self._claims.get(chunk_id)
            if claim is not None and self._outbox.pending(chunk_id) is None:
                wanted.setdefault(claim.node, []).append(claim.label.key)
        self._client.prefetch(wanted)

    def drain(self, seconds: float) -> bool:
        """Wait until what was put is written, and visible on this node; whether that came in time."""
        return self._outbox.wait(seconds)

    def flush(self, seconds: float) -> set[str]:
        """Wait until what was put is written and copied as often as configured; the ids of which that is so.

        A checkpoint may name these by id alone. Blocks for that long, and for an answer, at most. Raises nothing: while
        no directory answers it is so of none.
        """
        until = self._client.now() + seconds
        self.drain(seconds)
        written = [i for i in self._claims if self._outbox.pending(i) is None and i not in self._outbox.failures]
        waiting, done = [self._claims[i].label.key for i in written], set[str]()
        while waiting:
            with suppress(TransferError):
                copied = self._client.copied(waiting)
                done |= {chunk_id for (_, chunk_id), so in copied.items() if so}
                waiting = [key for key, so in copied.items() if not so]
            if not waiting or self._client.now() >= until:
                break
            self._client.pause(FLUSH_SECONDS)
        return done

    def check(self) -> list[str]:
        """See `Tier`."""
        claimed = sum(claim.label.nbytes for claim in self._claims.values())
        if claimed == self.used_bytes <= self.capacity_bytes:
            return []
        return [f"tier {self.name}: {claimed} bytes claimed, {self.used_bytes} booked, {self.capacity_bytes} cap"]

    def close(self) -> None:
        """Write what is on its way. What this process claimed stays, for others and until its room is needed."""
        self._outbox.close()
        self._client.close()
        self.give_back()

    def give_back(self) -> None:
        """Tell servers which chunks nobody here reads any more. Does not wait."""
        done: dict[str, list[int]] = {}
        with suppress(IndexError):  # until there are none left; another thread may take some too
            while True:
                node, number = self._done.popleft()
                done.setdefault(node, []).append(number)
        for node, numbers in done.items():
            self._client.give_back(node, numbers)

    def _claim(self, chunk_id: str) -> _Claim:
        if chunk_id not in self._claims:
            raise ChunkNotFound(f"tier {self.name} does not hold chunk {chunk_id}")
        return self._claims[chunk_id]

    def _outline(self, found: Found) -> KVChunk:
        label = f"tier {self.name}, chunk {found.label.chunk_id}"
        return KVChunk.outline(_Head(label, found.size_bytes, found.head))

    def _view(self, loan: Loan) -> NDArray[np.uint8]:
        """The loan's bytes, given back when the last view of them goes."""
        assert loan.data is not None, f"loan {loan.number} of node {loan.node} was never opened"
        memory = SharedMemory(loan.data)
        if loan.node == self._client.me.node:
            weakref.finalize(memory, self._done.append, (loan.node, loan.number)).atexit = False
        return np.asarray(memory)


def _packed(chunk: KVChunk) -> NDArray[np.uint8]:
    """The chunk in its format, in memory of its own."""
    head, payload = chunk.pieces()
    data = np.empty(len(head) + len(payload), np.uint8)
    data[: len(head)] = np.frombuffer(head, np.uint8)
    data[len(head) :] = np.frombuffer(payload, np.uint8)
    return data
