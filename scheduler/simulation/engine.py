"""The simulated cluster: sessions make chunks, windows wait for what is not there, links carry what was asked for.

Of a session: placed -> window due -> (waits) -> chunk under way, meanwhile moves for later windows -> chunk done, the
oldest recent one admitted to the device -> window due ... Writes to colder tiers cost no time: links are full-duplex,
and what is read has the right of way.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from scheduler.costs import CostModel, Measured
from scheduler.habits import Counts
from scheduler.prefetch import PrefetchPlan
from scheduler.simulation.figures import Figures
from scheduler.simulation.hardware import Hardware
from scheduler.simulation.links import Line, Move
from scheduler.simulation.sessions import Live, make_live
from scheduler.simulation.shelves import Key, Shelf, Shelves
from scheduler.trace import SessionTrace

Order = Callable[[Shelf], Iterator[Key]]


class Strategy(Protocol):
    """What is done while a chunk is made."""

    def ahead(self, world: World, session: int, now: float) -> None:
        """Begin moves for the windows to come."""
        ...

    def order(self, world: World) -> Callable[[Shelf], Iterator[Key]]:
        """Who makes room on the device."""
        ...


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


class World:
    """One run. `run` ends when every session has made its last chunk."""

    def __init__(
        self,
        traces: Sequence[SessionTrace],
        hardware: Hardware,
        strategy: Strategy,
        *,
        placing: Placing | None = None,
        costs: CostModel | None = None,
        stopwatch: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`costs`: what plans believe of links before the first transfer was timed; None: the truth, from the start.

        `stopwatch`: wall-clock seconds, for what plans cost; nothing else depends on it.
        """
        self.traces, self.hardware, self.strategy, self.stopwatch = traces, hardware, strategy, stopwatch
        self.numbers = {trace.session: number for number, trace in enumerate(traces)}
        self.lives: dict[int, Live] = {}
        """Placed and not finished, or suspended."""
        self.on_worker: list[set[int]] = [set() for _ in range(hardware.workers)]
        self.figures = Figures()
        self.shelves = Shelves(hardware, self._pinned, self._demoted)
        self.costs = costs
        self._lines = [
            [Line(spec, self.at, partial(self._timed, link)) for _ in range(hardware.instances(spec.scope))]
            for link, spec in enumerate(hardware.links)
        ]
        self._tenants: dict[str, Counts] = {}
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = itertools.count()
        self.placing = placing or FirstFree()

    def run(self) -> Figures:
        """To the end; what came of it."""
        for number, trace in enumerate(self.traces):
            self.at(trace.arrives_seconds, partial(self.placing.arrive, self, number))
        now = 0.0
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
            self.figures.events += 1
        self.figures.end_seconds = now
        return self.figures

    def at(self, when: float, happen: Callable[[float], None]) -> None:
        """Let something happen at a time; at equal times in the order asked for."""
        heapq.heappush(self._events, (when, next(self._count), happen))

    def line(self, link: int, worker: int) -> Line:
        """The instance of a link that a worker uses."""
        return self._lines[link][self.hardware.instance(self.hardware.links[link].scope, worker)]

    def place(self, number: int, workers: tuple[int, ...], now: float) -> None:
        """The session runs here from now on."""
        live = self.lives.get(number)
        if live is None:
            trace = self.traces[number]
            live = self.lives[number] = make_live(number, trace, self._tenants.setdefault(trace.tenant, Counts()))
        live.worker, live.gang, live.placed_seconds, live.suspend = workers[0], workers, now, False
        for worker in workers:
            self.on_worker[worker].add(number)
        live.due_seconds = now
        self._window_due(live, now)

    def fetch(self, number: int, chunk: int, now: float, *, urgent: bool, order: Order | None = None) -> bool:
        """Bring a chunk to the device; False where no room can be made for it, which an urgent one does without."""
        live = self.lives[number]
        nbytes = int(live.nbytes_C[chunk])
        promised = self.shelves.promise(0, live.worker, nbytes, order or self.strategy.order(self))
        if not promised and not urgent:
            return False
        tier = int(live.tier_C[chunk])
        way = [self.line(link, live.worker) for link in range(tier - 1, -1, -1)]
        landed = partial(self._landed, promised=promised)
        self._send(live, Move(number, chunk, live.worker, nbytes, way, 0, landed, urgent=urgent), now)
        return True

    def carry_out(self, plan: PrefetchPlan, worker: int, now: float) -> None:
        """Begin what a plan says, in its order."""
        self.figures.plans += 1
        self.figures.late += len(plan.late)
        self.figures.skipped.update(plan.skipped)
        self.figures.ignored.update(plan.ignored)
        for gone in plan.cancelled:
            self._cancel(self.lives[self.numbers[gone.session]], gone.chunk)
        for out in plan.displaced:
            key = (self.numbers[out.session], out.chunk)
            if key in self.shelves.shelf(out.tier, worker).lying and not self._pinned(key):
                self.shelves.demote(key, out.tier, worker)
        for transfer in plan.transfers:
            number = self.numbers[transfer.session]
            if transfer.to_tier == 0:
                self.fetch(number, transfer.chunk, now, urgent=False)
            else:
                self._stage(self.lives[number], transfer.chunk, transfer.to_tier, now)

    def withdraw(self, number: int, now: float) -> None:
        """Take back the moves of a session that have not begun."""
        live = self.lives[number]
        for chunk, move in list(live.moves.items()):
            if not move.begun and not move.urgent and move.way[0].withdraw(move):
                self._undo(live, chunk, move)

    def chunk_seconds(self, live: Live) -> float:
        """What the next chunk takes: the sessions on a worker share it."""
        return live.trace.chunk_seconds * max(1, len(self.on_worker[live.worker]))

    def remaining_seconds(self, number: int) -> float:
        """Until a placed session ends at its present pace."""
        live = self.lives[number]
        return (live.trace.chunks - live.chunk) * self.chunk_seconds(live)

    def _timed(self, link: int, nbytes: int, seconds: float) -> None:
        if self.costs is not None:
            self.costs = self.costs.after_transfer(link, Measured(nbytes, seconds))

    def _send(self, live: Live, move: Move, now: float) -> None:
        live.moves[move.chunk] = move
        live.arrives_C[move.chunk] = move.way[0].free_from(now) + sum(line.seconds(move.nbytes) for line in move.way)
        if move.urgent:
            self.figures.demanded_bytes += move.nbytes
        move.way[0].submit(move, now)

    def _stage(self, live: Live, chunk: int, tier: int, now: float) -> None:
        """Bring a chunk nearer, not to the device."""
        nbytes = int(live.nbytes_C[chunk])
        if self.shelves.promise(tier, live.worker, nbytes):
            way = [self.line(link, live.worker) for link in range(int(live.tier_C[chunk]) - 1, tier - 1, -1)]
            self._send(live, Move(live.number, chunk, live.worker, nbytes, way, tier, self._landed), now)

    def _undo(self, live: Live, chunk: int, move: Move) -> None:
        del live.moves[chunk]
        live.arrives_C[chunk] = float("inf")
        self.shelves.shelf(move.to_tier, live.worker).used_bytes -= move.nbytes

    def _cancel(self, live: Live, chunk: int) -> None:
        move = live.moves.get(chunk)
        if move is not None and not move.urgent:
            move.cancelled = True
            self.figures.prefetched["cancelled"] += 1

    def _landed(self, move: Move, now: float, promised: bool = True) -> None:
        target = self.shelves.shelf(move.to_tier, move.worker)
        if not move.urgent:
            kind = "staged" if move.to_tier else "chunks"
            self.figures.prefetched[kind] += 1
            self.figures.prefetched["staged_bytes" if move.to_tier else "bytes"] += move.nbytes
        live = self.lives.get(move.session)
        if live is None or move.cancelled:
            target.used_bytes -= move.nbytes if promised else 0
        else:
            key = (move.session, move.chunk)
            if promised:
                self.shelves.shelf(int(live.tier_C[move.chunk]), move.worker).take(key)
                target.add(key, move.nbytes, live.trace.tenant)
                live.tier_C[move.chunk] = move.to_tier
                if not move.urgent:
                    (live.staged if move.to_tier else live.prefetched).add(move.chunk)
        if live is None or live.moves.get(move.chunk) is not move:
            return
        del live.moves[move.chunk]
        live.arrives_C[move.chunk] = float("inf")
        if move.chunk in live.waits_for:
            live.waits_for.discard(move.chunk)
            if not live.waits_for:
                self._assembled(live, now)

    def _window_due(self, live: Live, now: float) -> None:
        if live.suspend:
            self._leave(live, now)
            self._clear_away(live, len(self.hardware.tiers) - 1)
            self.placing.suspended(self, live, now)
            return
        live.due_seconds = now
        figures = self.figures
        for chunk in live.wanted[live.chunk]:
            tier, move = int(live.tier_C[chunk]), live.moves.get(chunk)
            figures.lookups += 1
            figures.hits[self.hardware.tiers[tier].name] += 1
            live.committed_C[chunk] = True
            if tier == 0:
                self.shelves.shelf(0, live.worker).touch((live.number, chunk))
                self._used(live, chunk)
                continue
            live.waits_for.add(chunk)
            if move is not None and move.to_tier == 0 and not move.cancelled:
                figures.coming += 1
                if move.way:
                    move.way[0].hurry(move)
            elif move is None:
                self.fetch(live.number, chunk, now, urgent=True)
            else:  # on its way to somewhere else, or cut off: from there on
                move.cancelled = True
                self.fetch(live.number, chunk, now, urgent=True)
        if not live.waits_for:
            self._assembled(live, now)

    def _used(self, live: Live, chunk: int) -> None:
        for chunks, kind in ((live.prefetched, "used"), (live.staged, "staged_used")):
            if chunk in chunks:
                chunks.discard(chunk)
                self.figures.prefetched[kind] += 1
                self.figures.prefetched[f"{kind}_bytes"] += int(live.nbytes_C[chunk])

    def _assembled(self, live: Live, now: float) -> None:
        """The window is complete: the next chunk is under way."""
        stall, seconds = now - live.due_seconds, self.chunk_seconds(live)
        self.figures.stall_ratios.append(stall / seconds)
        self.figures.stall_seconds += stall
        self.figures.compute_seconds += seconds
        for chunk in live.wanted[live.chunk]:
            live.committed_C[chunk] = False
            if live.tier_C[chunk] == 0:
                self._used(live, chunk)
        if not live.scripted:
            live.learn()
        live.due_seconds = now + seconds
        self.at(live.due_seconds, partial(self._done, live))
        if live.chunk + 1 < live.trace.chunks:
            self.strategy.ahead(self, live.number, now)

    def _done(self, live: Live, now: float) -> None:
        oldest = live.chunk - live.trace.recall.recent_chunks
        self.figures.chunks[live.trace.tenant] += 1
        if oldest >= live.trace.recall.sink_chunks:
            self._admit(live, oldest)
        live.chunk += 1
        if live.chunk == live.trace.chunks:
            self._leave(live, now)
            self._clear_away(live, None)
            del self.lives[live.number]
            self.placing.ended(self, live, now)
        else:
            self._window_due(live, now)

    def _admit(self, live: Live, chunk: int) -> None:
        key, nbytes, tier = (live.number, chunk), int(live.nbytes_C[chunk]), 0
        while not self.shelves.promise(tier, live.worker, nbytes, None if tier else self.strategy.order(self)):
            tier += 1
        self.shelves.shelf(tier, live.worker).add(key, nbytes, live.trace.tenant)
        live.tier_C[chunk] = tier

    def _leave(self, live: Live, now: float) -> None:
        """Give up the workers; moves that have begun come to nothing."""
        self.withdraw(live.number, now)
        for move in live.moves.values():
            move.cancelled = True
        live.moves.clear()
        live.arrives_C[:] = float("inf")
        for worker in live.gang:
            self.on_worker[worker].discard(live.number)
        held = (now - live.placed_seconds) * len(live.gang)
        self.figures.slot_seconds[live.trace.tenant] += held

    def _clear_away(self, live: Live, to_tier: int | None) -> None:
        """Take all its chunks out of the tiers of its worker, and into the cluster's own if they are still needed."""
        for chunk in (live.tier_C >= 0).nonzero()[0].tolist():
            tier = int(live.tier_C[chunk])
            if tier == to_tier:
                continue
            lay = self.shelves.shelf(tier, live.worker).take((live.number, chunk))
            if to_tier is not None:
                shelf = self.shelves.shelf(to_tier, live.worker)
                shelf.used_bytes += lay.nbytes
                shelf.add((live.number, chunk), lay.nbytes, lay.tenant)
                self._demoted((live.number, chunk), to_tier)

    def _pinned(self, key: Key) -> bool:
        live = self.lives[key[0]]
        return bool(live.committed_C[key[1]]) or key[1] in live.moves  # what is read for a move stays

    def _demoted(self, key: Key, tier: int) -> None:
        live = self.lives[key[0]]
        # What was staged and is sent back where it came from was moved in vain.
        if tier > 1:
            live.staged.discard(key[1])
        live.tier_C[key[1]] = tier
        live.prefetched.discard(key[1])


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
