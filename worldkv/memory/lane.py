"""One direction of a transfer engine: a queue by deadline, and the fragments in flight. Knows nothing of CUDA.

- The most urgent transfer moves first: the earlier deadline, then the earlier submitted. A more urgent one overtakes at
  the next fragment.
- A transfer whose deadline has passed before its first fragment is `late` and moves nothing.
- A cancelled transfer moves no further fragment; `done` it never is, and whoever waits for it gets a TransferError.
- Source and destination are referred to until the last enqueued fragment has landed, so no tier can reuse them; after
  that they are not, even while the ticket lives.
- The queue is bounded: `submit` waits for room, `offer` is refused.
- submitted = done + late + cancelled + failed + open, at every moment.

A lane that was not started does the same work inline: in `step`, and in whatever waits.

Shapes: L layers, N bytes of one layer, or of a fragment.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from threading import Condition, RLock, Thread
from typing import Literal, Protocol

import torch
from torch import Tensor

from worldkv.errors import TransferError, TransferLate
from worldkv.memory.fragments import Fragment, fragments_of

Direction = Literal["down", "up"]
State = Literal["queued", "moving", "done", "late", "cancelled", "failed"]
OPEN: tuple[State, ...] = ("queued", "moving")

# Keeps a copy engine busy while its thread waits its turn; what is enqueued can't be overtaken.
ENQUEUED_BYTES = 32 * 2**20


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


class Link(Protocol):
    """Copies in one direction, one after the other."""

    def copy(self, destination_N: Tensor, source_N: Tensor, after: tuple[Mark, ...]) -> Mark:
        """Start copying once `after` is done; the mark says when it is over. Raises RuntimeError.

        Both are contiguous and of one shape: a fragment, or a whole payload [L, N] that is one.
        """
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
        both = (self.source_LN, self.destination_LN)
        if any(x.ndim != 2 or x.dtype != torch.uint8 or not x.is_contiguous() or not x.numel() for x in both):
            raise ValueError(f"a copy needs contiguous uint8 payloads [L, N], got {[(x.shape, x.dtype) for x in both]}")
        if both[0].shape != both[1].shape:
            raise ValueError(f"a payload of {tuple(both[0].shape)} cannot be copied over one of {tuple(both[1].shape)}")


@dataclass(frozen=True)
class LaneStats:
    """One direction at one moment."""

    copied_bytes: int
    """Of cancelled and failed transfers too."""
    submitted: int
    done: int
    late: int
    cancelled: int
    failed: int
    refused: int
    """Offers for which there was no room; they count as not submitted."""
    queued: int
    """Transfers with fragments still to be enqueued: what the limit bounds."""
    open: int
    """Transfers that have not ended."""


class Ticket:
    """One transfer, to be waited for or cancelled from any thread."""

    def __init__(self, lane: Lane, copy: Copy, after: tuple[Mark, ...]) -> None:
        self.deadline, self.landed, self.after, self._lane = copy.deadline, copy.landed, after, lane
        self._devices = copy.source_LN.device, copy.destination_LN.device
        layers, self.layer_bytes = copy.source_LN.shape
        host_LN = copy.destination_LN if copy.direction == "down" else copy.source_LN
        self.fragments = fragments_of(layers, self.layer_bytes, host_LN.data_ptr())
        self.targets, self.sources = (_cut(x, self.fragments) for x in (copy.destination_LN, copy.source_LN))
        self.marks: list[Mark] = []
        """One for each fragment that is enqueued."""
        self.state: State = "queued"
        self.bytes_done = 0
        self.fault: BaseException | None = None
        self.flying = 0
        """Fragments that are being enqueued, or are and have not landed."""
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
        return self._lane.cancel(self)

    def wait(self) -> None:
        """Block until all has arrived. Raises TransferError where it will not, TransferLate where it was late."""
        self._lane.wait_for(self, lambda: self.state not in OPEN)
        self._raise_if_lost()

    def wait_layer(self, layer: int) -> None:
        """Let the current stream wait for layers 0..layer; without CUDA they are there when this returns.

        Blocks until their copy is enqueued. Raises TransferError where the transfer will not be done.
        """
        stop = (layer + 1) * self.layer_bytes
        number = next(i for i, fragment in enumerate(self.fragments) if fragment.stop >= stop)
        self._lane.wait_for(self, lambda: len(self.marks) > number or self.state not in OPEN)
        self._raise_if_lost()
        self.marks[number].hold_stream()

    def __str__(self) -> str:
        why = f": {self.fault}" if self.fault else ""
        source, destination = self._devices
        done = f"{self.bytes_done} of {self.fragments[-1].stop} bytes done"
        return f"transfer {source} to {destination} {self.state}, {done}{why}"

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


def _cut(payload_LN: Tensor, fragments: list[Fragment]) -> tuple[Tensor, ...]:
    # Once, not by the lane's thread, and not where one fragment is all: each tensor made may have to wait for Python's
    # lock, and costs more than all else that a short transfer needs.
    if len(fragments) == 1:
        return (payload_LN,)
    return torch.split(payload_LN.view(-1), [fragment.stop - fragment.start for fragment in fragments])


class Lane:
    """Fields change under one lock, but for `_flying`, which belongs to whoever steps.

    Threads are woken seldom, as each time takes Python's lock from the one that feeds the link: who waits for room when
    half of the queue is free, who waits for a transfer when that one has moved.
    """

    def __init__(self, link: Link, limit: int, clock: Callable[[], float]) -> None:
        self._link, self._limit, self._clock = link, limit, clock
        self._lock = RLock()
        self._work, self._room, self._moved = (Condition(self._lock) for _ in range(3))
        self._queue: list[tuple[float, int, Ticket]] = []
        self._flying: deque[tuple[Ticket, Fragment, Mark]] = deque()
        self._flying_bytes = 0
        self._count: Counter[str] = Counter()
        self._thread: Thread | None = None
        self._closed = False

    def start(self, name: str) -> None:
        """Do the work in a thread from now on."""
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Queue it, once there is room. Raises TransferError on a closed lane."""
        if not self.offer(ticket, counted=False):
            self._wait(self._room, lambda: self.offer(ticket, counted=False))

    def offer(self, ticket: Ticket, *, counted: bool = True) -> bool:
        """Queue it if there is room, and say whether. Raises TransferError on a closed lane."""
        with self._lock:
            if self._closed:
                raise TransferError(f"{ticket}: the engine is closed")
            if len(self._queue) >= self._limit:
                self._count["refused"] += counted
                return False
            self._count["submitted"] += 1
            heappush(self._queue, (ticket.deadline, self._count["submitted"], ticket))
            self._work.notify()
            return True

    def cancel(self, ticket: Ticket) -> bool:
        """See `Ticket.cancel`."""
        with self._lock:
            return not ticket.enqueued and self._end(ticket, "cancelled")

    def wait_for(self, ticket: Ticket, ready: Callable[[], bool]) -> None:
        """Block until it holds of the ticket; `ready` is called under the lane's lock."""
        with self._lock:
            if ready():
                return
            ticket.watchers += 1
        try:
            self._wait(self._moved, ready)
        finally:
            with self._lock:
                ticket.watchers -= 1

    def step(self) -> bool:
        """Enqueue one fragment and land what has arrived, or wait for the oldest; False when there is nothing to do."""
        ticket = self._next()
        if ticket is None and not self._flying:
            return False
        if ticket is not None:
            self._enqueue(ticket)
        else:
            self._land(*self._flying[0])
        while self._flying and self._flying[0][2].done():
            self._land(*self._flying[0])
        return True

    def stats(self) -> LaneStats:
        """A frozen copy of the counters."""
        with self._lock:
            count = {name: self._count[name] for name in ("copied_bytes", "submitted", "refused")}
            ended = {name: self._count[name] for name in ("done", "late", "cancelled", "failed")}
            still_open = count["submitted"] - sum(ended.values())
            return LaneStats(**count, **ended, queued=len(self._queue), open=still_open)

    def close(self) -> None:
        """Cancel what is not enqueued whole, land what is in flight, end the thread."""
        with self._lock:
            self._closed = True
            for _, _, ticket in tuple(self._queue):
                self._end(ticket, "cancelled")
            self._work.notify()
            self._room.notify_all()
        if self._thread is None:
            while self.step():
                pass
        else:
            self._thread.join()

    def _wait(self, condition: Condition, ready: Callable[[], bool]) -> None:
        if self._thread is not None:
            with condition:
                condition.wait_for(ready)
            return
        while not ready():
            moved = self.step()
            assert moved or ready(), "waiting for what no step will bring about"

    def _run(self) -> None:
        try:
            while self.step() or not self._closed:
                with self._work:
                    self._work.wait_for(lambda: self._closed or self._queue or self._flying)
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """The thread ends: nobody shall wait for what it leaves behind, which is nothing unless it failed."""
        with self._lock:
            self._closed = True
            for ticket in [entry[2] for entry in self._queue] + [entry[0] for entry in self._flying]:
                self._end(ticket, "failed", RuntimeError("the engine's thread has ended"))
            self._room.notify_all()

    def _next(self) -> Ticket | None:
        """The transfer whose fragment is to be enqueued next, if any may be; drops the late ones before it."""
        with self._lock:
            while self._queue:
                deadline, _, ticket = self._queue[0]
                if ticket.state == "queued" and self._clock() >= deadline:
                    self._end(ticket, "late")
                    continue
                if self._flying_bytes >= ENQUEUED_BYTES:
                    return None
                ticket.state = "moving"
                # Counted before it is: from here on a cancellation must leave it its memory.
                ticket.flying += 1
                return ticket
            return None

    def _enqueue(self, ticket: Ticket) -> None:
        number = len(ticket.marks)
        fragment = ticket.fragments[number]
        try:
            mark = self._link.copy(ticket.targets[number], ticket.sources[number], () if number else ticket.after)
        except RuntimeError as fault:
            with self._lock:
                ticket.flying -= 1
                self._end(ticket, "failed", fault)
                ticket.release()
            return
        self._flying.append((ticket, fragment, mark))
        self._flying_bytes += fragment.stop - fragment.start
        with self._lock:
            if ticket.state == "moving":
                ticket.marks.append(mark)
                if ticket.enqueued:
                    self._dequeue(ticket)
                if ticket.watchers:
                    self._moved.notify_all()

    def _land(self, ticket: Ticket, fragment: Fragment, mark: Mark) -> None:
        """Wait for the oldest fragment in flight and book it."""
        fault: RuntimeError | None = None
        before = ticket.bytes_done
        try:
            mark.wait()
            layers = range(before // ticket.layer_bytes, fragment.stop // ticket.layer_bytes)
            if layers and ticket.state == "moving" and ticket.landed is not None:
                ticket.landed(layers)
        except RuntimeError as raised:
            fault = raised
        self._flying.popleft()
        self._flying_bytes -= fragment.stop - fragment.start
        with self._lock:
            ticket.flying -= 1
            ticket.release()
            if fault is not None:
                self._end(ticket, "failed", fault)
                return
            self._count["copied_bytes"] += fragment.stop - fragment.start
            ticket.bytes_done = fragment.stop
            if ticket.bytes_done == ticket.fragments[-1].stop:
                self._end(ticket, "done")

    def _end(self, ticket: Ticket, state: State, fault: BaseException | None = None) -> bool:
        """Put the transfer into its last state; False where it is in one already."""
        with self._lock:
            if ticket.state not in OPEN:
                return False
            if not ticket.enqueued:
                self._dequeue(ticket)
            # Without its traceback, whose frames refer to the memory that was copied.
            ticket.state, ticket.fault = state, fault and fault.with_traceback(None)
            ticket.release()
            self._count[state] += 1
            if ticket.watchers:
                self._moved.notify_all()
            return True

    def _dequeue(self, ticket: Ticket) -> None:
        if self._queue and self._queue[0][2] is ticket:
            heappop(self._queue)
        else:
            self._queue = [entry for entry in self._queue if entry[2] is not ticket]
            heapify(self._queue)
        if 2 * len(self._queue) <= self._limit:
            self._room.notify_all()
