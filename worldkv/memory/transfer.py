"""Copies between the host and one device that nobody waits for: the one place for CUDA streams and events.

One lane each way (see `lane`), each with a stream of its own and a thread that feeds it; without CUDA, plain copies by
the same threads. Encoded payloads only: quantised before the copy down, and until after the copy up.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worldkv.memory.lane import Lane, LaneStats, Link
from worldkv.memory.ticket import Copy, Direction, Mark, Ticket

# At 100 MiB a chunk two seconds of copying in the queue; more could not be overtaken by what is asked for next.
QUEUE_LIMIT = 64
# Of many copies so many are queued at a time: the first move while tickets for the rest are made.
TOGETHER = 16


@dataclass(frozen=True)
class TransferStats:
    """An engine at one moment."""

    down: LaneStats
    up: LaneStats


class TransferEngine:
    """Transfers of one device, as `open` makes it; until `start` one works inline, in `step` and in whatever waits."""

    def __init__(
        self, down: Link, up: Link, *, queue_limit: int = QUEUE_LIMIT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lanes: dict[Direction, Lane] = {
            "down": Lane(down, queue_limit, clock),
            "up": Lane(up, queue_limit, clock),
        }

    @classmethod
    def open(cls, device: torch.device, *, queue_limit: int = QUEUE_LIMIT) -> Self:
        """An engine with a stream and a thread each way; to be closed before the tiers it copies between."""
        engine = cls(link_of(device), link_of(device), queue_limit=queue_limit)
        engine.start()
        return engine

    def start(self) -> None:
        """Do the work in threads from now on, one each way."""
        for direction, lane in self._lanes.items():
            lane.start(f"worldkv-transfer-{direction}")

    def submit(self, copy: Copy) -> Ticket:
        """Queue the copy, blocking while the queue is full. Raises TransferError on a closed engine."""
        return self.submit_all([copy])[0]

    def submit_all(self, copies: Sequence[Copy]) -> list[Ticket]:
        """Queue the copies, blocking while a queue is full; their tickets, in order.

        Cheaper than one by one: what their sources wait for is looked up once. Raises TransferError on a closed engine.
        """
        made = {device: fence(device) for device in {copy.source_LN.device for copy in copies}}
        tickets: list[Ticket] = []
        for start in range(0, len(copies), TOGETHER):
            part = copies[start : start + TOGETHER]
            tickets += [self._ticket(copy, made[copy.source_LN.device]) for copy in part]
            for direction, lane in self._lanes.items():
                lane.submit([tickets[start + i] for i, copy in enumerate(part) if copy.direction == direction])
        return tickets

    def offer(self, copy: Copy) -> Ticket | None:
        """Queue the copy, or None, counted as refused, where the queue is full. Does not block.

        Raises TransferError on a closed engine.
        """
        ticket = self._ticket(copy, fence(copy.source_LN.device))
        return ticket if self._lanes[copy.direction].offer(ticket) else None

    def step(self, direction: Direction) -> bool:
        """Enqueue or land one haul of an engine that works inline; False when there is nothing to do."""
        return self._lanes[direction].step()

    def stats(self) -> TransferStats:
        """A frozen copy of all counters."""
        return TransferStats(self._lanes["down"].stats(), self._lanes["up"].stats())

    def close(self) -> None:
        """Cancel what is not enqueued whole, wait for what is, end the threads."""
        for lane in self._lanes.values():
            lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ticket(self, copy: Copy, made: Mark | None) -> Ticket:
        return Ticket(self._lanes[copy.direction], copy, copy.after if made is None else (*copy.after, made))


def link_of(device: torch.device) -> Link:
    """Copies over a stream of the device's own, or by whoever calls where it has none."""
    return StreamLink(device) if device.type == "cuda" else PlainLink()


def fence(device: torch.device) -> Mark | None:
    """Done once all that the current stream of the device has enqueued so far is; None where it is already."""
    if device.type != "cuda":
        return None
    return _EventMark(torch.cuda.current_stream(device).record_event(_event()))


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Meanwhile the current stream is one of its own: it waits for nothing that is enqueued but what it is told to.

    Its short kernels go before those of other streams, for somebody waits for them.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_side_stream(device)):
        yield


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One for all: torch keeps freed memory for each stream apart.
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # torch's


class Staging:
    """Host memory for one payload that is between two places; pinned where there is a GPU. Grows to the largest."""

    def __init__(self) -> None:
        self._memory_N = torch.empty(0, dtype=torch.uint8)

    def room(self, payload_LN: Tensor) -> Tensor:
        """Room for such a payload, good until the next one. Fresh memory for each would cost more than a copy."""
        if self._memory_N.nbytes < payload_LN.nbytes:
            pinned = torch.cuda.is_available()
            self._memory_N = torch.empty(payload_LN.nbytes, dtype=torch.uint8, pin_memory=pinned)
        return self._memory_N[: payload_LN.nbytes].view(payload_LN.shape)


class PlainLink:
    """Copies by the calling thread; done when `copy` returns."""

    def copy(self, destinations: Sequence[Tensor], sources: Sequence[Tensor], after: Sequence[Mark]) -> Mark:
        """See `Link.copy`."""
        for mark in after:
            mark.wait()
        for destination_N, source_N in zip(destinations, sources, strict=True):
            destination_N.copy_(source_N)
        return _DONE


class StreamLink:
    """Copies over one side stream; asynchronous as far as the host memory is pinned."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def copy(self, destinations: Sequence[Tensor], sources: Sequence[Tensor], after: Sequence[Mark]) -> Mark:
        """See `Link.copy`."""
        with torch.cuda.stream(self._stream):
            for mark in after:
                mark.hold_stream()
            try:
                # One call for all: Python's lock is let go and taken again once, not once for each.
                torch._foreach_copy_(list(destinations), list(sources), non_blocking=True)
            except RuntimeError:
                self._stream.synchronize()  # some may be under way, into memory that nobody will hold any more
                raise
            return _EventMark(self._stream.record_event(_event()))


@dataclass(frozen=True)
class _EventMark:
    event: torch.cuda.Event

    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]  # torch's

    def wait(self) -> None:
        self.event.synchronize()

    def hold_stream(self) -> None:
        # By its own device: another may be current, and the wait belongs to whoever computes on this one.
        torch.cuda.current_stream(self.event.device).wait_event(self.event)


class _Done:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def hold_stream(self) -> None:
        pass


_DONE = _Done()


def _event() -> torch.cuda.Event:
    # Blocking: a thread that waits must not take a core from the one that computes.
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's
