"""How simulated sessions come to workers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from scheduler.simulation.sessions import Live

if TYPE_CHECKING:
    from scheduler.simulation.engine import World


class Placing(Protocol):
    """Told of arrivals and ends; calls `World.place`."""

    def arrive(self, world: World, number: int, now: float) -> None:
        """A session asks for workers."""
        ...

    def ended(self, world: World, live: Live, now: float) -> None:
        """A session made its last chunk and gave up its workers."""
        ...

    def suspended(self, world: World, live: Live, now: float) -> None:
        """A session gave up its workers before its end, as it was told to."""
        ...


class FirstFree:
    """First come, first served, on the first worker with a free slot: for runs that are not about placement."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, float]] = deque()

    def arrive(self, world: World, number: int, now: float) -> None:
        """See `Placing`."""
        self._waiting.append((number, now))
        self._serve(world, now)

    def ended(self, world: World, live: Live, now: float) -> None:
        """See `Placing`."""
        self._serve(world, now)

    def suspended(self, world: World, live: Live, now: float) -> None:
        """See `Placing`."""
        raise AssertionError("nobody is suspended here")

    def _serve(self, world: World, now: float) -> None:
        for worker, sessions in enumerate(world.on_worker):
            while self._waiting and len(sessions) < world.hardware.slots:
                number, since = self._waiting.popleft()
                tenant = world.traces[number].tenant
                world.figures.queue_seconds.setdefault(tenant, []).append(now - since)
                world.place(number, (worker,), now)
