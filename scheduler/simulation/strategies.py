"""Ways to bring chunks to the device: the scheduler's plan, and what it is measured against.

- `none`: nothing is fetched before a window waits for it; who makes room is decided as the plan would.
- `lru`: the same; the least recently used makes room.
- `next`: as `lru`, and after a chunk was retrieved the one made after it is fetched too.
- `planned`: `scheduler.prefetch`, which knows no more than a real scheduler.
- `clairvoyant`: knows all windows to come; what is used last makes room (Belady). No strategy can do better by much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from scheduler.prefetch import Settings, plan_prefetch
from scheduler.simulation.engine import Strategy, World
from scheduler.simulation.shelves import Key, Shelf
from scheduler.snapshot import LinkView, MemoryView, TierView

CLAIRVOYANT_WINDOWS = 16
"""More windows ahead change nothing: by then everything that fits is there."""


class Reactive:
    """Nothing ahead of time; the least recently used makes room."""

    def ahead(self, world: World, session: int, now: float) -> None:
        """Nothing."""

    def order(self, world: World) -> Callable[[Shelf], Iterator[Key]]:
        """By last use."""
        return Shelf.victims


class NextChunk(Reactive):
    """What was made after a retrieved chunk is likely to be retrieved after it."""

    def ahead(self, world: World, session: int, now: float) -> None:
        """Fetch the successors of what the window under way retrieved."""
        live = world.lives[session]
        for chunk in live.wanted[live.chunk]:
            if chunk + 1 < live.chunk and live.tier_C[chunk + 1] > 0 and chunk + 1 not in live.moves:
                world.fetch(session, chunk + 1, now, urgent=False)


class Planned:
    """The scheduler's own code, on a snapshot of the worker."""

    def __init__(self, settings: Settings | None = None, *, transfers: bool = True) -> None:
        self.settings, self.transfers = settings, transfers
        self.plan_seconds: list[float] = []

    def ahead(self, world: World, session: int, now: float) -> None:
        """Carry out the plan for the sessions of the worker; it takes the place of the last one."""
        worker = world.lives[session].worker
        sessions = sorted(world.on_worker[worker])
        predictors = {}
        for number in sessions:
            world.withdraw(number, now)
            if not world.lives[number].scripted:
                predictors[world.lives[number].trace.session] = (world.lives[number].habits,)
        started = world.stopwatch()
        plan = plan_prefetch(memory_view(world, worker, sessions, now), predictors, self.settings)
        self.plan_seconds.append(world.stopwatch() - started)
        world.shelves.shelf(0, worker).leaving = [
            (world.numbers[name], chunk) for name, chunk in reversed(plan.leaving)
        ]
        if self.transfers:
            world.carry_out(plan, worker, now)

    def order(self, world: World) -> Callable[[Shelf], Iterator[Key]]:
        """As the last plan says, then by last use."""
        return Shelf.victims


class Clairvoyant:
    """Knows what every window to come retrieves."""

    def ahead(self, world: World, session: int, now: float) -> None:
        """Fetch what the next windows want, the next one's first, as long as that is used before what makes room."""
        live = world.lives[session]
        for chunk in range(live.chunk + 1, min(live.chunk + 1 + CLAIRVOYANT_WINDOWS, live.trace.chunks)):
            for past in live.wanted[chunk]:
                if live.tier_C[past] > 0 and past not in live.moves:
                    world.fetch(session, past, now, urgent=False, order=self._later_than(world, chunk))

    def order(self, world: World) -> Callable[[Shelf], Iterator[Key]]:
        """What is used last goes first."""
        return self._later_than(world, -1)

    def _later_than(self, world: World, chunk: int) -> Callable[[Shelf], Iterator[Key]]:
        def order(shelf: Shelf) -> Iterator[Key]:
            uses = sorted(((world.lives[key[0]].next_use(key[1]), key) for key in shelf.lying), reverse=True)
            return (key for use, key in uses if use > chunk)

        return order


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "none": lambda: Planned(transfers=False),
    "lru": Reactive,
    "next": NextChunk,
    "planned": Planned,
    "clairvoyant": Clairvoyant,
}
"""By the name that the command line uses."""


def memory_view(world: World, worker: int, sessions: Sequence[int], now: float) -> MemoryView:
    """The worker's memory as a real one would tell it, when one of its sessions begins to make a chunk."""
    lives, hardware = [world.lives[number] for number in sessions], world.hardware
    # The chunks that leave windows when those under way are done need room on the device too.
    kept_bytes = sum(live.trace.chunk_bytes for live in lives)
    tiers = []
    for number, tier in enumerate(hardware.tiers):
        shelf = world.shelves.shelf(number, worker)
        capacity = int(min(tier.capacity_bytes, 2.0**62))
        tiers.append(TierView(tier.name, capacity, shelf.used_bytes, 0 if number else kept_bytes))
    free = [world.line(number, worker).free_from(now) for number in range(len(hardware.links))]
    if world.costs is not None:
        links = world.costs.views(free)
    else:
        links = tuple(
            LinkView(link.bytes_per_second, link.latency_seconds, at)
            for link, at in zip(hardware.links, free, strict=True)
        )
    return MemoryView(now, tuple(tiers), links, tuple(live.view() for live in lives), hardware.staging_bytes)
