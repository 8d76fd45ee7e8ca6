"""Links of the simulated cluster: each carries one piece after another, in the order asked for but for urgent ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.simulation.hardware import LinkSpec

Schedule = Callable[[float, Callable[[float], None]], None]
"""Call something at a time."""


@dataclass(eq=False)
class Move:
    """One chunk on its way over one or more links."""

    session: int
    """Number of the session among those simulated."""
    chunk: int
    worker: int
    """Whose device, or whose tier, it is for."""
    nbytes: int
    way: list[Line]
    """Links still to pass, the next one first."""
    to_tier: int
    landed: Callable[[Move, float], None]
    """Told when the chunk has arrived."""
    urgent: bool = False
    """A window waits for it."""
    begun: bool = False
    cancelled: bool = False


@dataclass(eq=False)
class Line:
    """One link."""

    spec: LinkSpec
    schedule: Schedule
    timed: Callable[[int, float], None] = lambda nbytes, seconds: None
    """Told the bytes and seconds of each piece carried."""
    queue: deque[Move] = field(default_factory=deque)
    carries: Move | None = None
    free_at: float = 0.0
    """When what it carries now will be through."""
    queued_seconds: float = 0.0
    """Of all that waits."""
    busy_seconds: float = 0.0

    def seconds(self, nbytes: int) -> float:
        """To carry so many bytes."""
        return self.spec.latency_seconds + nbytes / self.spec.bytes_per_second

    def free_from(self, now: float) -> float:
        """When something asked for now would begin."""
        return max(now, self.free_at) + self.queued_seconds

    def submit(self, move: Move, now: float) -> None:
        """Carry the move as soon as it is its turn; urgent ones before all that wait."""
        if move.urgent:
            self.queue.appendleft(move)
        else:
            self.queue.append(move)
        self.queued_seconds += self.seconds(move.nbytes)
        self._next(now)

    def withdraw(self, move: Move) -> bool:
        """Take back what waits here; False where it is not waiting here."""
        if move not in self.queue:
            return False
        self.queue.remove(move)
        self.queued_seconds -= self.seconds(move.nbytes)
        return True

    def hurry(self, move: Move) -> None:
        """What waits here goes first."""
        if move in self.queue:
            self.queue.remove(move)
            self.queue.appendleft(move)

    def _next(self, now: float) -> None:
        if self.carries is not None or not self.queue:
            return
        move = self.queue.popleft()
        seconds = self.seconds(move.nbytes)
        self.queued_seconds = self.queued_seconds - seconds if self.queue else 0.0
        self.busy_seconds += seconds
        self.carries, move.begun, self.free_at = move, True, now + seconds
        self.schedule(self.free_at, self._through)

    def _through(self, now: float) -> None:
        move, self.carries = self.carries, None
        assert move is not None
        self.timed(move.nbytes, self.seconds(move.nbytes))
        move.way.pop(0)
        if move.way and not move.cancelled:
            move.way[0].submit(move, now)
        else:
            move.landed(move, now)
        self._next(now)
