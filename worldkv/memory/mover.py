"""How chunks get from tier to tier: over the link where there is one, otherwise by a plain copy; always verified."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from worldkv.memory.chunk import KVChunk
from worldkv.memory.crossing import Crossing
from worldkv.memory.tier import Tier
from worldkv.memory.transfer import Staging

CPU = torch.device("cpu")


class Mover(Protocol):
    """What the chunk memory asks of whoever copies chunks for it."""

    def copy(self, chunk_id: str, source: Tier, target: Tier, deadline: float) -> None:
        """Copy the chunk of one tier into another, which has room; it stays in the first too.

        Blocks until it is there, and refers to no bytes afterwards. Raises ChunkCorrupt where it is not what it was,
        TransferLate, TransferError, ChunkNotFound, CapacityError; then the target is as it was.
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

    def __init__(self, crossing: Crossing | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: the one of the crossing's engine."""
        self._crossing, self._clock, self._staging = crossing, clock, Staging()

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

    def take(self, chunk_id: str, source: Tier) -> KVChunk:
        """See `Mover.take`."""
        chunk = source.get(chunk_id)
        chunk = replace(chunk, encoded=chunk.encoded.over(self._staging.hold(chunk.encoded.payload_LN)))
        chunk.verify()
        return chunk

    def late(self, deadline: float) -> bool:
        """See `Mover.late`."""
        return self._clock() >= deadline

    def close(self) -> None:
        """Close the crossing."""
        if self._crossing is not None:
            self._crossing.close()
