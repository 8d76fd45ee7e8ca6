"""One life of a gang: room for all ranks at once, the ranks themselves, and how they end.

    room (placement group) -> actors -> rank 0 listens -> all open, which is when they meet -> all play -> all end

A gang is as alive as its weakest rank: when one dies, hangs or raises, all are ended. Whoever wants another life starts
another gang. The driver owns the actors and the group: when it dies, Ray ends them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.connection import Resources, check_head, living_nodes
from cluster.gangs.rank import PlayOrder, Rank, RankOpened, RankPlayed
from cluster.pool import CPU_SHARE, DOUBT_SECONDS, NODE_LABEL, OPENING_FACTOR
from cluster.sharding import Seat
from worldkv.errors import ClusterError, ConfigError, ModelError
from worldkv.runs.play_config import PlayedModel
from worldkv.stats import WorkerStats

POLL_SECONDS = 0.2
# When one rank fails the others say so of it within moments, and the cause must not be taken for its effect.
GRACE_SECONDS = 5.0
STOP_SECONDS = 20.0

Tick = Callable[[str, Sequence[WorkerStats]], bool]
"""(what is going on, how the ranks stand) -> whether to stop. Called several times a second."""


@dataclass(frozen=True)
class Seats:
    """What the ranks of a gang take, each the same."""

    ranks: int
    cpus: float
    gpus: int
    threads: int
    across_nodes: bool
    hang_seconds: float = 20.0
    """A rank that has not answered for so long is ended, and the gang with it."""

    @classmethod
    def of(cls, model: PlayedModel, there: Resources, *, wait: bool) -> Seats:
        """As a cluster has room for them. Raises ConfigError where it has not, unless room is to be waited for."""
        ranks, gpus = model.ranks, there.gpus if model.across_nodes else there.most_gpus
        if there.gpus and gpus < ranks and not wait:
            where = f"{there.nodes} nodes have {there.gpus}" if model.across_nodes else f"no node has more than {gpus}"
            raise ConfigError(
                f"model.ranks = {ranks}: each takes a GPU, and {where}; ask for fewer, --wait for more"
                + ("" if model.across_nodes or there.gpus < ranks else ", or set model.across_nodes")
            )
        beside = max(ranks, there.most_gpus)
        share = CPU_SHARE * there.most_cpus / beside
        return cls(ranks, share, int(there.gpus > 0), max(1, there.most_cpus // beside), model.across_nodes)


@dataclass(frozen=True)
class Played:
    """All ranks came to an end."""

    chunks: int
    whole: bool
    """False where they were asked to stop."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Lost:
    """A rank died or hung."""

    reason: str
    blameless: bool
    """Its whole node went."""


@dataclass(frozen=True)
class Failed:
    """A rank raised."""

    fault: BaseException
    opening: bool
    """Before the first chunk: another try would end likewise."""


class _Ended(Exception):
    """This life is over."""

    def __init__(self, how: Played | Lost | Failed) -> None:
        super().__init__(str(how))
        self.how = how


@dataclass
class _Seated:
    """One rank."""

    rank: int
    actor: Any
    ping: Any
    pinged: float
    alive: bool = False
    """It answered once."""
    stats: WorkerStats | None = None


@dataclass
class Gang:
    """See the module; `run` once."""

    order: PlayOrder
    seats: Seats
    restarts: int = 0
    """How many lives there were before."""
    left: Collection[str] = ()
    """Ids of nodes that get no rank."""
    rank_class: type[Rank] = Rank
    opened: list[RankOpened] = field(default_factory=list)
    """How the ranks found things, once all are open."""
    _ranks: list[_Seated] = field(default_factory=list)
    _calls: list[Any] = field(default_factory=list)
    """What the ranks are at."""

    def run(self, tick: Tick) -> Played | Lost | Failed:
        """From nothing to the end of the world, or of the gang. Blocks; nothing is left when it returns.

        A KeyboardInterrupt lets the ranks write down what they are at, and goes on its way.
        """
        group = self._ask_for_room()
        try:
            self._await_room(group, tick)
            self._seat(group)
            address = ""
            if self.seats.ranks > 1:
                (address,) = self._all([self._ranks[0].actor.listen.remote(self.order)], "meeting", tick)
            self.opened = self._all([self._open(one, address) for one in self._ranks], "loading the model", tick)
            played = self._all([one.actor.play.remote() for one in self._ranks], "playing", tick)
            self._give_back()
            return _together(played)
        except _Ended as ended:
            return ended.how
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            with suppress(ClusterError):  # without a head nothing is left
                check_head()
                for one in self._ranks:
                    ray.kill(one.actor)
                remove_placement_group(group)

    def _ask_for_room(self) -> PlacementGroup:
        bundle = {"CPU": self.seats.cpus, **({"GPU": self.seats.gpus} if self.seats.gpus else {})}
        elsewhere = {NODE_LABEL: f"!in({','.join(sorted(self.left))})"} if self.left else {}
        size = self.seats.ranks
        group: PlacementGroup = placement_group(
            [bundle] * size,
            strategy="PACK" if self.seats.across_nodes else "STRICT_PACK",
            bundle_label_selector=[elsewhere] * size,
        )
        return group

    def _await_room(self, group: PlacementGroup, tick: Tick) -> None:
        where = "any nodes" if self.seats.across_nodes else "one node"
        while not group.wait(POLL_SECONDS):
            if tick(f"waiting for room for {self.seats.ranks} ranks on {where}", ()):
                raise _Ended(Played(0, False, ()))

    def _seat(self, group: PlacementGroup) -> None:
        # Ray documents the argument; its type stubs do not know it.
        kind = ray.remote(concurrency_groups={"control": 1})(self.rank_class)  # type: ignore[call-overload]
        for rank in range(self.seats.ranks):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            options = {"num_cpus": self.seats.cpus, "num_gpus": self.seats.gpus, "max_restarts": 0}
            actor = kind.options(scheduling_strategy=place, **options).remote(rank, self.restarts)
            self._ranks.append(_Seated(rank, actor, _control(actor, "snapshot"), time.monotonic()))

    def _open(self, one: _Seated, address: str) -> Any:
        return one.actor.open.remote(self.order, Seat(one.rank, self.seats.ranks, address, self.order.timeout_seconds))

    def _all(self, calls: list[Any], doing: str, tick: Tick) -> list[Any]:
        """What every call returns. Raises _Ended as soon as a rank dies, hangs or raises, or `tick` wants no more."""
        self._calls, playing, stopping = calls, bool(self.opened), False
        while True:
            done, waiting = ray.wait(calls, num_returns=len(calls), timeout=POLL_SECONDS)
            if any(_fault(call) is not None for call in done):
                raise _Ended(self._verdict(calls))
            if not waiting:
                return [ray.get(call) for call in calls]
            self._listen()
            if tick(doing, [one.stats for one in self._ranks if one.stats is not None]) and not stopping:
                if not playing:
                    raise _Ended(Played(0, False, ()))
                self._ask_to_stop()
                stopping = True

    def _listen(self) -> None:
        """Take the ranks' answers and ask again; one that is silent for too long ends the gang."""
        for one in self._ranks:
            answered, _ = ray.wait([one.ping], timeout=0)
            if answered:
                if _fault(one.ping) is None:  # else it is dead, and its call says why
                    one.stats, one.alive, one.pinged = ray.get(one.ping), True, time.monotonic()
                    one.ping = _control(one.actor, "snapshot")
                continue
            silent = time.monotonic() - one.pinged
            patience = self.seats.hang_seconds * (1 if self.opened else OPENING_FACTOR)
            if one.alive and silent > patience:
                raise _Ended(Lost(f"rank {one.rank} gave no answer for {silent:.0f} s", self._node_is_gone()))

    def _verdict(self, calls: list[Any]) -> Lost | Failed:
        """Why the gang ends: a death before what others say of it, and what they raise before that one is gone."""
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=GRACE_SECONDS)
        faults = {rank: fault for rank, call in enumerate(calls) if call in done and (fault := _fault(call))}
        for rank, fault in faults.items():
            if not isinstance(fault, RayTaskError):
                doubt = DOUBT_SECONDS if isinstance(fault, ActorUnavailableError) else 0.0
                return Lost(f"rank {rank}: {_first_line(fault)}", self._node_is_gone(doubt))
        causes = [fault.cause if isinstance(fault, RayTaskError) else fault for fault in faults.values()]
        own = [cause for cause in causes if not isinstance(cause, ModelError)]
        return Failed((own or causes)[0], opening=not self.opened)

    def _node_is_gone(self, seconds: float = 0.0) -> bool:
        """Whether a node with a rank on it died; Ray may take so long to find out."""
        until = time.monotonic() + seconds
        while True:
            living = {node["NodeID"] for node in living_nodes()}
            if any(one.node_id not in living for one in self.opened):
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_SECONDS)

    def _ask_to_stop(self) -> None:
        for one in self._ranks:
            _control(one.actor, "stop")

    def _stop(self) -> None:
        """Let the ranks write down what they are at; those that take longer are not waited for."""
        if self.opened:
            self._ask_to_stop()
            ray.wait(self._calls, num_returns=len(self._calls), timeout=STOP_SECONDS)

    def _give_back(self) -> None:
        """What ranks hold outside their processes, such as folders of tiers."""
        closing = [one.actor.close.remote() for one in self._ranks]
        ray.wait(closing, num_returns=len(closing), timeout=self.seats.hang_seconds)


def _together(played: Sequence[RankPlayed]) -> Played:
    warnings = dict.fromkeys(warning for one in played for warning in one.warnings)
    return Played(played[0].chunks, all(one.whole for one in played), tuple(warnings))


def _control(actor: Any, method: str) -> Any:
    return getattr(actor, method).options(concurrency_group="control").remote()


def _fault(call: Any) -> BaseException | None:
    """Why an answer that is there is none."""
    try:
        ray.get(call)
    except RayError as fault:
        return fault
    return None


def _first_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0] if lines else type(fault).__name__
