"""The workers of one job as its driver sees them: started, given batches, watched, replaced.

- A worker is an actor that the driver owns: when the driver dies, Ray ends its workers too.
- One that dies is replaced by a new actor in the same slot, wherever there is room. Ray's own restart would bring back
  the same empty actor, and could not be told of one that hangs.
- Whether a worker hangs is asked of it: `snapshot` runs in a thread of its own and answers at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from cluster.connection import living_nodes
from cluster.planning import Seat
from cluster.worker import Opened, Order, Rolled, Worker
from worldkv.runs.batch import Batch
from worldkv.stats import WorkerStats

# While weights are read a worker may be deaf for longer than while it rolls out.
OPENING_FACTOR = 10
NODE_LABEL = "ray.io/node-id"
# By then Ray has found out that a node is dead, if it is (15 s by default, less in a cluster of `worldkv cluster up`).
DOUBT_SECONDS = 20.0
# Of its cores a worker leaves a part to the small actors beside it, which would else find no room on its node.
CPU_SHARE = 0.75


@dataclass(frozen=True)
class Wanted:
    """What each worker takes of a node, and how many there are."""

    workers: int
    cpus: int
    gpus: int
    hang_seconds: float
    """A worker that has not answered for so long is ended."""


@dataclass(frozen=True)
class Event:
    """What happened to one worker."""

    slot: int


@dataclass(frozen=True)
class Ready(Event):
    """It can be given batches."""

    opened: Opened


@dataclass(frozen=True)
class Done(Event):
    """It ended its batch."""

    rolled: Rolled


@dataclass(frozen=True)
class Failed(Event):
    """It raised; the worker lives on."""

    batch: Batch | None
    """None: it could not be opened."""
    fault: BaseException


@dataclass(frozen=True)
class Lost(Event):
    """It died, and a new one was started in its slot."""

    batch: Batch | None
    """What it was at."""
    reason: str
    blameless: bool
    """The whole node went, so that the batch cannot be the cause."""


@dataclass
class _Hand:
    """One slot's present worker."""

    slot: int
    actor: Any
    restarts: int
    ping: Any
    pinged: float
    call: Any = None
    batch: Batch | None = None
    opened: Opened | None = None
    alive: bool = False
    """It answered once."""
    stats: WorkerStats | None = None
    leaving: bool = False
    """It was asked to leave its node."""
    doubted: float | None = None
    """Since when it cannot be reached, though nobody says that it is dead."""


@dataclass
class Pool:
    """See the module. `start` makes the actors; `close` ends them."""

    order: Order
    wanted: Wanted
    worker_class: type[Worker] = Worker
    _hands: list[_Hand] = field(default_factory=list)
    _left: set[str] = field(default_factory=set)
    """Ids of nodes that get no worker."""

    def start(self) -> None:
        """Returns at once; each worker becomes ready when there is room for it."""
        self._hands = [self._hire(slot, 0) for slot in range(self.wanted.workers)]

    def busy(self) -> dict[int, Batch]:
        """What each slot is at."""
        return {hand.slot: hand.batch for hand in self._hands if hand.batch is not None}

    def seats(self) -> list[Seat]:
        """All workers that are open."""
        return [
            Seat(hand.slot, hand.opened.node_id, hand.opened.domain, hand.batch, hand.leaving, hand.stats)
            for hand in self._hands
            if hand.opened is not None and (hand.call is None or hand.batch is not None)
        ]

    def suspend(self, slot: int) -> None:
        """Let the batch of a worker end at its next chunk, written down; the worker goes on with others."""
        hand = self._hands[slot]
        if hand.batch is not None:
            self._control(hand, "suspend", hand.batch.number)

    def give(self, slot: int, batch: Batch) -> None:
        """Let an idle worker roll a batch out."""
        hand = self._hands[slot]
        hand.batch, hand.call = batch, hand.actor.roll.remote(batch)

    def stats(self) -> list[WorkerStats]:
        """The newest word of each worker that gave one."""
        now = time.monotonic()
        told = [(hand.stats, now - hand.pinged) for hand in self._hands if hand.stats is not None]
        return [replace(stats, age_seconds=age) for stats, age in told]

    def events(self, seconds: float) -> list[Event]:
        """What happened since the last call; waits for so long at most, less when something does."""
        calls = [hand.call for hand in self._hands if hand.call is not None and hand.doubted is None]
        if calls:
            ray.wait(calls, timeout=seconds)
        else:
            time.sleep(seconds)
        found = [self._listen(hand) or self._outcome(hand) for hand in list(self._hands)]
        return [event for event in found if event is not None]

    def leave(self, node_ids: set[str]) -> None:
        """No worker shall be on these nodes: those at work write down their batches and come back as not whole."""
        self._left = node_ids
        for hand in self._hands:
            if hand.opened is not None and hand.opened.node_id in node_ids and not hand.leaving:
                if hand.batch is None:
                    self.replace(hand.slot)
                else:
                    hand.leaving = True
                    self._control(hand, "stop")

    def leaving(self, slot: int) -> bool:
        """Whether the worker of the slot was asked to leave its node."""
        return self._hands[slot].leaving

    def replace(self, slot: int) -> None:
        """A new worker for the slot, wherever there is room."""
        hand = self._hands[slot]
        ray.kill(hand.actor)
        self._hands[slot] = self._hire(slot, hand.restarts + 1)

    def stop(self, seconds: float) -> None:
        """Let every worker write down what it is at; those that take longer are not waited for."""
        at_work = [hand for hand in self._hands if hand.batch is not None]
        for hand in at_work:
            self._control(hand, "stop")
        if at_work:
            ray.wait([hand.call for hand in at_work], num_returns=len(at_work), timeout=seconds)

    def close(self) -> None:
        """End all workers; those that are idle give back first what they hold outside the process."""
        closing = [hand.actor.close.remote() for hand in self._hands if hand.opened is not None and hand.call is None]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=self.wanted.hang_seconds)
        for hand in self._hands:
            ray.kill(hand.actor)
        self._hands = []

    def _hire(self, slot: int, restarts: int) -> _Hand:
        # Ray documents the argument; its type stubs do not know it.
        kind = ray.remote(concurrency_groups={"control": 1})(self.worker_class)  # type: ignore[call-overload]
        cpus = self.wanted.cpus * CPU_SHARE
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": self.wanted.gpus, "max_restarts": 0}
        if self._left:
            options["label_selector"] = {NODE_LABEL: f"!in({','.join(sorted(self._left))})"}
        actor = kind.options(**options).remote(slot, restarts)
        hand = _Hand(slot, actor, restarts, None, time.monotonic())
        hand.ping = self._control(hand, "snapshot")
        hand.call = actor.open.remote(self.order)
        return hand

    def _control(self, hand: _Hand, method: str, *arguments: object) -> Any:
        return getattr(hand.actor, method).options(concurrency_group="control").remote(*arguments)

    def _listen(self, hand: _Hand) -> Event | None:
        """Take the answer to the last ping and ask again; Lost where none came for too long."""
        answered, _ = ray.wait([hand.ping], timeout=0)
        if answered:
            try:
                hand.stats = ray.get(hand.ping)
            except RayError:
                return None  # it is dead, and its call says why
            hand.alive, hand.pinged = True, time.monotonic()
            hand.ping = self._control(hand, "snapshot")
            return None
        patience = self.wanted.hang_seconds * (1 if hand.opened is not None else OPENING_FACTOR)
        silent = time.monotonic() - hand.pinged
        if hand.alive and hand.doubted is None and silent > patience:
            return self._lose(hand, f"gave no answer for {silent:.0f} s")
        return None

    def _outcome(self, hand: _Hand) -> Event | None:
        if hand.call is None:
            return self._idle_death(hand)
        done, _ = ray.wait([hand.call], timeout=0)
        if not done:
            return None
        call, batch = hand.call, hand.batch
        try:
            result = ray.get(call, timeout=self.wanted.hang_seconds)
        except RayTaskError as fault:
            hand.call, hand.batch = None, None
            return Failed(hand.slot, batch, fault.cause or fault)
        except ActorUnavailableError as fault:
            return self._judge(hand, _first_line(fault))
        except (RayActorError, GetTimeoutError) as fault:
            return self._lose(hand, _first_line(fault))
        hand.call, hand.batch = None, None
        if isinstance(result, Opened):
            hand.opened = result
            return Ready(hand.slot, result)
        return Done(hand.slot, result)

    def _idle_death(self, hand: _Hand) -> Event | None:
        answered, _ = ray.wait([hand.ping], timeout=0)
        try:
            if answered:
                ray.get(hand.ping)
        except RayActorError as fault:
            return self._lose(hand, _first_line(fault))
        return None

    def _judge(self, hand: _Hand, reason: str) -> Lost | None:
        """Ray lost sight of the worker, mostly because its node died, which takes Ray a while to say."""
        if hand.doubted is None:
            hand.doubted = time.monotonic()
        gone = hand.opened is not None and hand.opened.node_id not in _living()
        return self._lose(hand, reason) if gone or time.monotonic() - hand.doubted > DOUBT_SECONDS else None

    def _lose(self, hand: _Hand, reason: str) -> Lost:
        blameless = hand.opened is not None and hand.opened.node_id not in _living()
        self.replace(hand.slot)
        return Lost(hand.slot, hand.batch, reason, blameless)


def _living() -> set[str]:
    return {node["NodeID"] for node in living_nodes()}


def _first_line(fault: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0] if lines else type(fault).__name__
