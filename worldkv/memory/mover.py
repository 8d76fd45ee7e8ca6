"""How chunks get from tier to tier: over the link where there is one, otherwise by a plain copy; always verified."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from worldkv.memory.chunk import KVChunk
from worldkv.memory.crossing import Ascent, Crossing
from worldkv.memory.tier import ReadsAside, Tier
from worldkv.memory.transfer import Staging

CPU = torch.device("cpu")


class Arrival(Protocol):
    """A chunk on its way from one tier to another."""

    in_place: bool
    """Whether the other tier holds it once it is here, or is still to be given it."""

    def done(self) -> bool:
        """Whether `chunk` would not wait for bytes."""
        ...

    def chunk(self) -> KVChunk:
        """The chunk, verified. Blocks until it is here. Raises as `Mover.copy` does; then the target is as it was."""
        ...

    def cancel(self) -> None:
        """Nobody will ask for it; what was begun may still end."""
        ...


class Mover(Protocol):
    """What the chunk memory asks of whoever copies chunks for it."""

    def copy(self, chunk_id: str, source: Tier, target: Tier, deadline: float) -> None:
        """Copy the chunk of one tier into another, which has room; it stays in the first too.

        Blocks until it is there, and refers to no bytes afterwards. Raises ChunkCorrupt where it is not what it was,
        TransferLate, TransferError, ChunkNotFound, CapacityError; then the target is as it was.
        """
        ...

    def start(self, chunk_id: str, source: Tier, target: Tier) -> Arrival | None:
        """Begin to bring the chunk of one tier to another, which has room; None where a copy here and now does as well.

        It must stay in the first until the arrival was asked for it or cancelled. Raises as `copy` does.
        """
        ...

    def take(self, chunk_id: str, source: Tier) -> KVChunk:
        """The chunk over memory of the mover's, verified, good until the next call; it stays in the tier too.

        Raises as `Tier.get` does.
        """
        ...

    def late(self, deadline: float) -> bool:
        """Whether the deadline has passed, by the mover's clock."""
        ...

    def close(self) -> None:
        """End what is under way; before the tiers are closed."""
        ...


class VerifyingMover:
    """Copies between the two tiers of a `Crossing` over its link, between all others by the calling thread."""

    def __init__(
        self,
        crossing: Crossing | None = None,
        clock: Callable[[], float] = time.monotonic,
        readers: Executor | None = None,
    ) -> None:
        """`clock`: the one of the crossing's engine. `readers`: threads that read early what `start` is told of."""
        self._crossing, self._clock, self._readers, self._staging = crossing, clock, readers, Staging()

    def copy(self, chunk_id: str, source: Tier, target: Tier, deadline: float) -> None:
        """See `Mover.copy`."""
        link = self._crossing
        if link is not None and source is link.device and target is link.host:
            link.down_again(chunk_id, deadline=deadline).chunk()
        elif link is not None and source is link.host and target is link.device:
            ascent = link.up(chunk_id, deadline=deadline)
            ascent.chunk()
            # Until it has arrived the host's bytes are read, and what is moved there next would find no room.
            ascent.ticket.wait()
        else:
            chunk = source.get(chunk_id).to(CPU)  # where digests are computed
            chunk.verify()
            target.put(chunk)

    def start(self, chunk_id: str, source: Tier, target: Tier) -> Arrival | None:
        """See `Mover.start`."""
        link = self._crossing
        if link is not None and source is link.host and target is link.device:
            return _Rising(link.up(chunk_id))
        if self._readers is not None and isinstance(source, ReadsAside):
            return _Reading(self._readers.submit(_read, chunk_id, source))
        return None

    def take(self, chunk_id: str, source: Tier) -> KVChunk:
        """See `Mover.take`."""
        chunk, link = source.get(chunk_id), self._crossing
        room_LN = self._staging.room(chunk.encoded.payload_LN)
        if link is not None and source is link.host:
            return link.aside(chunk, room_LN)
        room_LN.copy_(chunk.encoded.payload_LN)
        chunk = replace(chunk, encoded=chunk.encoded.over(room_LN))
        chunk.verify()
        return chunk

    def late(self, deadline: float) -> bool:
        """See `Mover.late`."""
        return self._clock() >= deadline

    def close(self) -> None:
        """Close the crossing and end the readers, after what they read now."""
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
        if self._crossing is not None:
            self._crossing.close()


def _read(chunk_id: str, source: Tier) -> KVChunk:
    chunk = source.get(chunk_id)
    if not source.verifies:
        chunk.verify()
    return chunk


@dataclass(frozen=True)
class _Reading:
    """By a thread, into memory of its own."""

    reading: Future[KVChunk]
    in_place = False

    def done(self) -> bool:
        return self.reading.done()

    def chunk(self) -> KVChunk:
        return self.reading.result()

    def cancel(self) -> None:
        self.reading.cancel()


@dataclass(frozen=True)
class _Rising:
    """Over the link."""

    ascent: Ascent
    in_place = True

    def done(self) -> bool:
        return self.ascent.ticket.ended

    def chunk(self) -> KVChunk:
        chunk = self.ascent.chunk()
        # Until it has arrived the host's bytes are read, and what is moved there next would find no room.
        self.ascent.ticket.wait()
        return chunk

    def cancel(self) -> None:
        self.ascent.ticket.cancel()
