"""How simulated sessions come to workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from scheduler.placement import PlacementSettings, plan_placement
from scheduler.rebalancing import plan_moves
from scheduler.simulation.engine import World
from scheduler.simulation.hardware import Hardware
from scheduler.simulation.sessions import Live
from scheduler.snapshot import (
    ClusterView,
    PendingView,
    Resources,
    RunningView,
    TenantView,
    WorkerView,
    pending_table,
    running_table,
)


class Rounds:
    """The scheduler's own placement, once every so many seconds while somebody waits."""

    def __init__(
        self,
        hardware: Hardware,
        tenants: Mapping[str, TenantView] | None = None,
        settings: PlacementSettings | None = None,
    ) -> None:
        self._tenants, self._settings = dict(tenants or {}), settings
        room = Resources(hardware.slots)
        self.workers = tuple(
            WorkerView(f"worker-{number}", f"node-{number // hardware.workers_per_node}", room)
            for number in range(hardware.workers)
        )
        self._pending: dict[int, PendingView] = {}
        self._running: dict[int, RunningView] = {}
        self._moving: dict[int, int] = {}
        """Session -> worker where it goes on once it has given up its own."""
        self._planned = False
        self.round_seconds: list[float] = []
        """Wall-clock seconds of each round's plan."""

    def arrive(self, world: World, number: int, now: float) -> None:
        """See `Placing`."""
        trace = world.traces[number]
        self._pending[number] = PendingView(trace.session, trace.tenant, Resources(1), trace.gang, trace.priority, now)
        self._next_round(world, now)

    def ended(self, world: World, live: Live, now: float) -> None:
        """See `Placing`."""
        del self._running[live.number]
        if self._pending:
            self._next_round(world, now)

    def suspended(self, world: World, live: Live, now: float) -> None:
        """See `Placing`."""
        running = self._running.pop(live.number)
        target = self._moving.pop(live.number, None)
        if target is not None and len(world.on_worker[target]) < world.hardware.slots:
            world.figures.moved += 1
            self._start(world, live.number, (target,), now)
            return
        world.figures.suspended += 1
        trace = live.trace
        self._pending[live.number] = PendingView(
            running.session, running.tenant, Resources(1), trace.gang, trace.priority, now
        )
        self._next_round(world, now)

    def _next_round(self, world: World, now: float) -> None:
        if not self._planned:
            self._planned = True
            step = world.hardware.round_seconds
            world.at((now // step + 1) * step, lambda when: self._round(world, when))

    def _round(self, world: World, now: float) -> None:
        self._planned = False
        boundary_R = np.array([world.lives[number].due_seconds for number in self._running], np.float64)
        view = ClusterView(
            now,
            self.workers,
            replace(running_table(self._running.values()), boundary_R=boundary_R),
            pending_table(self._pending.values()),
            self._tenants,
        )
        started = world.stopwatch()
        plan = plan_placement(view, self._settings)
        self.round_seconds.append(world.stopwatch() - started)
        world.figures.rounds += 1
        for name, workers in plan.placed:
            number = world.numbers[name]
            since = self._pending.pop(number).waits_since_seconds
            world.figures.queue_seconds.setdefault(world.traces[number].tenant, []).append(now - since)
            self._start(world, number, tuple(int(worker.partition("-")[2]) for worker in workers), now)
        for name in plan.suspended:
            self._tell_to_leave(world, world.numbers[name])
        if world.hardware.slots > 1:
            self._rebalance(world, now)
        if self._pending:
            self._next_round(world, now)

    def _rebalance(self, world: World, now: float) -> None:
        running = running_table(
            replace(one, remaining_seconds=world.remaining_seconds(number)) for number, one in self._running.items()
        )
        for move in plan_moves(ClusterView(now, self.workers, running, tenants=self._tenants)):
            number = world.numbers[move.session]
            self._moving[number] = int(move.to_worker.partition("-")[2])
            self._tell_to_leave(world, number)

    def _tell_to_leave(self, world: World, number: int) -> None:
        world.lives[number].suspend = True
        self._running[number] = replace(self._running[number], leaving=True)

    def _start(self, world: World, number: int, workers: tuple[int, ...], now: float) -> None:
        trace = world.traces[number]
        names = tuple(self.workers[worker].worker for worker in workers)
        self._running[number] = RunningView(
            trace.session, trace.tenant, names, Resources(1), now, trace.chunks * trace.chunk_seconds
        )
        world.place(number, workers, now)
