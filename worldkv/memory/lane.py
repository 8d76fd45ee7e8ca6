"""One direction of a transfer engine: a queue by deadline, and the hauls in flight. Knows nothing of CUDA.

- What moves at once is a haul: fragments of the most urgent transfers, of as many as make up FRAGMENT_BYTES, so that
  short chunks share the cost of a call to the link, of its mark, and of the wake-up when it has landed.
- The most urgent transfer moves first: the earlier deadline, then the earlier submitted. A more urgent one overtakes at
  the next haul.
- A transfer whose deadline has passed before its first fragment is `late` and moves nothing.
- A cancelled transfer moves no further fragment; `done` it never is, and whoever waits for it gets a TransferError.
- Source and destination are referred to until the last enqueued fragment has landed, so no tier can reuse them; after
  that they are not, even while the ticket lives.
- The queue is bounded: `submit` waits for room, `offer` is refused.
- submitted = done + late + cancelled + failed + open, at every moment.

A lane that was not started does the same work inline: in `step`, and in whatever waits.

Shapes: N bytes of a fragment.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from threading import Condition, RLock, Thread
from typing import NamedTuple, Protocol

from torch import Tensor

from worldkv.errors import TransferError
from worldkv.memory import fragments
from worldkv.memory.ticket import OPEN, Mark, Part, State, Ticket

# Keeps a copy engine busy while its thread waits its turn; what is enqueued can't be overtaken.
ENQUEUED_BYTES = 32 * 2**20


class Link(Protocol):
    """Copies in one direction, one haul after the other."""

    def copy(self, destinations: Sequence[Tensor], sources: Sequence[Tensor], after: Sequence[Mark]) -> Mark:
        """Start copying each source to its destination once `after` is done; the mark says when all are over.

        All are contiguous, each two of one shape: a fragment, or a whole payload [L, N] that is one. Raises
        RuntimeError; then nothing is being copied any more.
        """
        ...


@dataclass(frozen=True)
class LaneStats:
    """One direction at one moment."""

    copied_bytes: int
    """Of cancelled and failed transfers too."""
    hauls: int
    """Calls to the link that went well."""
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


class _Haul(NamedTuple):
    parts: list[Part]
    nbytes: int
    mark: Mark


class Lane:
    """Fields change under one lock, but for those of what is in flight, which belong to whoever steps.

    Threads are woken seldom, as each time takes Python's lock from the one that feeds the link: who waits for room when
    half of the queue is free, who waits for a transfer when that one has moved.
    """

    def __init__(self, link: Link, limit: int, clock: Callable[[], float]) -> None:
        self._link, self._limit, self._clock = link, limit, clock
        self._lock = RLock()
        self._work, self._room, self._moved = (Condition(self._lock) for _ in range(3))
        self._queue: list[tuple[float, int, Ticket]] = []
        self._loading: list[Part] = []
        """Being enqueued."""
        self._flying: deque[_Haul] = deque()
        self._flying_bytes = 0
        self._count: Counter[str] = Counter()
        self._thread: Thread | None = None
        self._closed = False

    def start(self, name: str) -> None:
        """Do the work in a thread from now on."""
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue them in this order, each once there is room. Raises TransferError on a closed lane."""
        while tickets:
            tickets = tickets[self._put(tickets) :]
            if tickets:
                self._wait(self._room, lambda: self._closed or len(self._queue) < self._limit)

    def offer(self, ticket: Ticket) -> bool:
        """Queue it if there is room, and say whether. Raises TransferError on a closed lane."""
        with self._lock:
            taken = self._put((ticket,)) == 1
            self._count["refused"] += not taken
            return taken

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
        """Enqueue one haul and land what has arrived, or wait for the oldest; False when there is nothing to do."""
        self._loading = self._gather()
        if not self._loading and not self._flying:
            return False
        if self._loading:
            self._enqueue()
        else:
            self._land(self._flying[0])
        while self._flying and self._flying[0].mark.done():
            self._land(self._flying[0])
        return True

    def stats(self) -> LaneStats:
        """A frozen copy of the counters."""
        with self._lock:
            count = {name: self._count[name] for name in ("copied_bytes", "hauls", "submitted", "refused")}
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

    def _put(self, tickets: Sequence[Ticket]) -> int:
        """Queue the first ones, as many as there is room for, and say how many."""
        with self._lock:
            if self._closed:
                raise TransferError(f"{tickets[0]}: the engine is closed")
            fitting = tickets[: max(0, self._limit - len(self._queue))]
            for ticket in fitting:
                self._count["submitted"] += 1
                heappush(self._queue, (ticket.deadline, self._count["submitted"], ticket))
            if fitting:
                self._work.notify()
            return len(fitting)

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
            left = [part.ticket for haul in self._flying for part in haul.parts]
            left += [part.ticket for part in self._loading] + [entry[2] for entry in self._queue]
            for ticket in left:
                self._end(ticket, "failed", RuntimeError("the engine's thread has ended"))
            self._room.notify_all()

    def _gather(self) -> list[Part]:
        """What is to be enqueued next, most urgent first, if anything may be; drops what is late before it."""
        parts: list[Part] = []
        room_bytes = fragments.FRAGMENT_BYTES
        with self._lock:
            while self._queue:
                deadline, _, ticket = self._queue[0]
                if ticket.state == "queued" and self._clock() >= deadline:
                    self._end(ticket, "late")
                    continue
                if self._flying_bytes >= ENQUEUED_BYTES:
                    break
                part = ticket.take(room_bytes, at_least=0 if parts else 1)
                if part is None:
                    break
                parts.append(part)
                room_bytes -= part.nbytes
                ticket.state = "moving"
                # Counted before it is: from here on a cancellation must leave it its memory.
                ticket.flying += 1
                if part.stop == len(ticket.fragments):
                    self._dequeue(ticket)
        return parts

    def _enqueue(self) -> None:
        parts = self._loading
        targets = [piece for ticket, first, stop in parts for piece in ticket.targets[first:stop]]
        sources = [piece for ticket, first, stop in parts for piece in ticket.sources[first:stop]]
        after = {id(mark): mark for ticket, first, _ in parts if not first for mark in ticket.after}
        try:
            mark = self._link.copy(targets, sources, tuple(after.values()))
        except RuntimeError as fault:
            del targets, sources
            with self._lock:
                for ticket, _, _ in parts:
                    ticket.flying -= 1
                    self._end(ticket, "failed", fault)
                    ticket.release()
                self._loading = []
            return
        haul = _Haul(parts, sum(part.nbytes for part in parts), mark)
        self._flying.append(haul)
        self._flying_bytes += haul.nbytes
        with self._lock:
            self._loading = []
            self._count["hauls"] += 1
            for ticket, first, stop in parts:
                if ticket.state == "moving":
                    ticket.marks += [mark] * (stop - first)
            if any(part.ticket.watchers for part in parts):
                self._moved.notify_all()

    def _land(self, haul: _Haul) -> None:
        """Wait for the oldest haul in flight and book it."""
        faults: list[RuntimeError | None] = []
        try:
            haul.mark.wait()
        except RuntimeError as raised:
            faults = [raised] * len(haul.parts)
        faults = faults or [_tell(part) for part in haul.parts]
        self._flying.popleft()
        self._flying_bytes -= haul.nbytes
        with self._lock:
            for part, fault in zip(haul.parts, faults, strict=True):
                self._book(part, fault)

    def _book(self, part: Part, fault: RuntimeError | None) -> None:
        ticket = part.ticket
        ticket.flying -= 1
        ticket.release()
        if fault is not None:
            self._end(ticket, "failed", fault)
            return
        self._count["copied_bytes"] += part.nbytes
        ticket.bytes_done = ticket.fragments[part.stop - 1].stop
        if part.stop == len(ticket.fragments):
            self._end(ticket, "done")

    def _end(self, ticket: Ticket, state: State, fault: BaseException | None = None) -> bool:
        """Put the transfer into its last state; False where it is in one already."""
        with self._lock:
            if ticket.state not in OPEN:
                return False
            if ticket.taken < len(ticket.fragments):
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


def _tell(part: Part) -> RuntimeError | None:
    """Let who listens know of the layers that have arrived with it; what that raised."""
    ticket = part.ticket
    stop = ticket.fragments[part.stop - 1].stop
    layers = range(ticket.bytes_done // ticket.layer_bytes, stop // ticket.layer_bytes)
    try:
        if layers and ticket.state == "moving" and ticket.landed is not None:
            ticket.landed(layers)
    except RuntimeError as raised:
        return raised
    return None
