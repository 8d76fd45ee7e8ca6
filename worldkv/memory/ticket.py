"""One transfer as whoever asked for it sees it: what is to be copied, how far it is, how to wait for it or stop it.

Shapes: L layers, N bytes of one layer, or of a fragment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from worldkv.errors import TransferError, TransferLate
from worldkv.memory.fragments import Fragment, fragments_of

Direction = Literal["down", "up"]
State = Literal["queued", "moving", "done", "late", "cancelled", "failed"]
OPEN: tuple[State, ...] = ("queued", "moving")


class Mark(Protocol):
    """A point in the work enqueued on a device."""

    def done(self) -> bool:
        """Whether all work before it is done. Does not block."""
        ...

    def wait(self) -> None:
        """Block this thread until then."""
        ...

    def hold_stream(self) -> None:
        """Let later work of the current stream wait until then. Does not block this thread."""
        ...


class Carrier(Protocol):
    """What a ticket asks of the lane that carries it."""

    def cancel(self, ticket: Ticket) -> bool:
        """See `Ticket.cancel`."""
        ...

    def wait_for(self, ticket: Ticket, ready: Callable[[], bool]) -> None:
        """Block until it holds of the ticket."""
        ...


@dataclass(frozen=True, eq=False)
class Copy:
    """What is to be copied: a contiguous uint8 payload, over another of its shape."""

    source_LN: Tensor
    destination_LN: Tensor
    direction: Direction
    deadline: float = math.inf
    """In the engine's clock: not worth starting any more from then on."""
    after: tuple[Mark, ...] = ()
    """What must be done before the first byte is written; work enqueued on the source's device is waited for anyway."""
    landed: Callable[[range], None] | None = None
    """Told which layers have arrived, by the lane's thread; must not block. A RuntimeError fails the transfer."""

    def __post_init__(self) -> None:
        source, destination = self.source_LN, self.destination_LN
        if not (_is_payload(source) and _is_payload(destination)):
            found = [(x.shape, x.dtype) for x in (source, destination)]
            raise ValueError(f"a copy needs contiguous uint8 payloads [L, N], got {found}")
        if source.shape != destination.shape:
            raise ValueError(
                f"a payload of {tuple(source.shape)} cannot be copied over one of {tuple(destination.shape)}"
            )


class Part(NamedTuple):
    """Fragments first..stop-1 of a ticket."""

    ticket: Ticket
    first: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        fragments = self.ticket.fragments
        return fragments[self.stop - 1].stop - fragments[self.first].start


class Ticket:
    """One transfer, to be waited for or cancelled from any thread. Its fields are its lane's."""

    __slots__ = (
        "_carrier",
        "_devices",
        "after",
        "bytes_done",
        "deadline",
        "fault",
        "flying",
        "fragments",
        "landed",
        "layer_bytes",
        "marks",
        "sources",
        "state",
        "taken",
        "targets",
        "watchers",
    )

    def __init__(self, carrier: Carrier, copy: Copy, after: tuple[Mark, ...]) -> None:
        source_LN, target_LN = copy.source_LN, copy.destination_LN
        self.deadline, self.landed, self.after, self._carrier = copy.deadline, copy.landed, after, carrier
        self._devices = source_LN.device, target_LN.device
        layers, self.layer_bytes = source_LN.shape
        host_LN = target_LN if copy.direction == "down" else source_LN
        self.fragments = fragments_of(layers, self.layer_bytes, host_LN.data_ptr())
        self.targets, self.sources = _cut(target_LN, self.fragments), _cut(source_LN, self.fragments)
        self.marks: list[Mark] = []
        """One for each fragment that is enqueued."""
        self.taken = 0
        """Fragments that are enqueued, or are being."""
        self.state: State = "queued"
        self.bytes_done = 0
        self.fault: BaseException | None = None
        self.flying = 0
        """Parts that are being enqueued, or are and have not landed."""
        self.watchers = 0
        """Threads that wait for it."""

    @property
    def enqueued(self) -> bool:
        """Whether nothing remains to be started: from now on it will be done unless the device fails."""
        return len(self.marks) == len(self.fragments)

    @property
    def ended(self) -> bool:
        """Whether `wait` would not wait."""
        return self.state not in OPEN

    def cancel(self) -> bool:
        """Start nothing more; False where the transfer has ended, or is enqueued whole and so will be done."""
        return self._carrier.cancel(self)

    def wait(self) -> None:
        """Block until all has arrived. Raises TransferError where it will not, TransferLate where it was late."""
        if self.state in OPEN:
            self._carrier.wait_for(self, lambda: self.state not in OPEN)
        self._raise_if_lost()

    def wait_layer(self, layer: int) -> None:
        """Let the current stream wait for layers 0..layer; without CUDA they are there when this returns.

        Blocks until their copy is enqueued. Raises TransferError where the transfer will not be done.
        """
        stop = (layer + 1) * self.layer_bytes
        number = next(i for i, fragment in enumerate(self.fragments) if fragment.stop >= stop)
        self._carrier.wait_for(self, lambda: len(self.marks) > number or self.state not in OPEN)
        self._raise_if_lost()
        self.marks[number].hold_stream()

    def __str__(self) -> str:
        why = f": {self.fault}" if self.fault else ""
        source, destination = self._devices
        done = f"{self.bytes_done} of {self.fragments[-1].stop} bytes done"
        return f"transfer {source} to {destination} {self.state}, {done}{why}"

    def take(self, room_bytes: int, *, at_least: int) -> Part | None:
        """Its next fragments that make up no more than `room_bytes`, or `at_least` so many; None where that is none."""
        fragments, first = self.fragments, self.taken
        start, stop = fragments[first].start, first + at_least
        while stop < len(fragments) and fragments[stop].stop - start <= room_bytes:
            stop += 1
        if stop == first:
            return None
        self.taken = stop
        return Part(self, first, stop)

    def release(self) -> None:
        """Refer to no memory any more, once it has ended and nothing is in flight."""
        if self.state not in OPEN and not self.flying:
            self.targets = self.sources = self.after = ()
            self.landed = None

    def _raise_if_lost(self) -> None:
        if self.state == "late":
            raise TransferLate(str(self))
        if self.state in ("cancelled", "failed"):
            raise TransferError(str(self)) from self.fault


def _is_payload(x: Tensor) -> bool:
    return x.ndim == 2 and x.dtype == torch.uint8 and x.is_contiguous() and x.numel() > 0


def _cut(payload_LN: Tensor, fragments: list[Fragment]) -> tuple[Tensor, ...]:
    # Once, not by the lane's thread, and not where one fragment is all: each tensor made may have to wait for Python's
    # lock, and costs more than all else that a short transfer needs.
    if len(fragments) == 1:
        return (payload_LN,)
    return torch.split(payload_LN.view(-1), [fragment.stop - fragment.start for fragment in fragments])
