"""One rank of a gang: an actor with its part of the model and a memory of its heads' chunks.

All ranks make the same calls in the same order, and decide alike: what one cannot do, none does.

- Rank 0 keeps each chunk's pictures as soon as they are made. Every few chunks all ranks write their sessions down.
- `snapshot` and `stop` are called from another thread than the rest, while a world is played.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import ray
import torch
from torch.distributed import Store  # type: ignore[attr-defined]  # exported without saying so

from cluster.checkpoint import is_exact
from cluster.chunks.connect import open_node_tier
from cluster.chunks.settings import ChunkSettings
from cluster.gangs.keeping import Keeping
from cluster.places import of_slot
from cluster.sharding import Seat, keep_to, leave, listen, open_rank, reach
from cluster.storage import patiently
from cluster.worker import versions
from worldkv.errors import OutputError, WorldKVError
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.headroom import Headroom, host_headroom
from worldkv.models.ranks import agreed
from worldkv.models.wan.model import WanModel
from worldkv.numerics import make_repeatable
from worldkv.rollout import ChunkRecord, rollout
from worldkv.runs import play
from worldkv.runs.memory import open_memory, pin_faults
from worldkv.runs.memory_check import Probe
from worldkv.runs.meter import Meter
from worldkv.runs.play_config import PlayConfig
from worldkv.session import Session
from worldkv.snapshot import restore, snapshot
from worldkv.stats import WorkerStats

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class PlayOrder:
    """What a rank is to know of its job."""

    config: PlayConfig
    """With absolute paths."""
    ledger_url: str
    job: str
    threads: int
    """Of torch, on the CPU."""
    checkpoint_chunks: int = 16
    """Sessions are written down after so many chunks each; 0: never."""
    patience_seconds: float = 120.0
    """For how long storage may refuse pictures."""
    timeout_seconds: float = 300.0
    """The longest that ranks wait for each other; loading must fit."""


@dataclass(frozen=True)
class RankOpened:
    """How a rank found things."""

    versions: dict[str, str]
    """Of what has to be the same on all nodes."""
    node: str
    node_id: str
    """As Ray calls the node; '' outside a cluster."""


@dataclass(frozen=True)
class RankPlayed:
    """What became of the world on one rank."""

    chunks: int
    """Made in all, those before the checkpoint included."""
    whole: bool
    """False where it was asked to stop."""
    warnings: tuple[str, ...]


class Rank:
    """Opened once, then plays its world. See the module."""

    def __init__(self, rank: int, restarts: int) -> None:
        self.rank = rank
        self._stats = WorkerStats(
            worker=str(rank), node=socket.gethostname(), tenant="", process=os.getpid(), restarts=restarts
        )
        self._stopping = threading.Event()
        self._meeting: Store | None = None
        self.meter = Meter()

    def listen(self, order: PlayOrder) -> str:
        """Rank 0: let the others find this process; the address of a `Seat`. Raises ModelError."""
        host = self._host(order)
        store = listen(host, order.config.model.ranks, order.timeout_seconds)
        self._meeting = store
        return f"tcp://{host}:{store.port}"

    def open(self, order: PlayOrder, seat: Seat) -> RankOpened:
        """Read the inputs, meet the others, load this rank's weights, open its memory.

        Raises what `play.prepare`, `play.check_memory`, `open_rank` and `open_memory` raise.
        """
        make_repeatable()
        torch.set_num_threads(order.threads)
        wanted = order.config
        self.config = wanted.model_copy(update={"memory": of_slot(wanted.memory, self.rank, "rank")})
        self._stats = replace(self._stats, tenant=self.config.memory.tenant, doing="loading the model")
        self.order, self.keeping = order, Keeping(order.ledger_url, order.job)
        self.prepared = play.prepare(self.config)
        device = play.default_device()
        play.check_memory(self.config, self.prepared, device, self._probe())
        play.tell(self.prepared, self.config, device, lambda *_: None)
        self.model = self._model(seat, device)
        self.memory = self._memory()
        work = self.meter.stats(self.memory.stats())
        self._stats = replace(self._stats, doing="idle", model=self.model.name, chunks=self.prepared.chunks, work=work)
        return RankOpened(versions(), self._stats.node, _node_id())

    def play(self) -> RankPlayed:
        """To the end of the trajectory, from the newest checkpoint where all ranks have it.

        Raises OutputError where storage refuses pictures for longer than the order allows, ModelError where another
        rank is gone.
        """
        warnings: list[str] = []
        with closing(self._restored() or play.begin(self.model, self.memory, self.prepared, self.config)) as session:
            self._stats = replace(self._stats, batch=0, doing="playing", sessions=1, chunk=session.chunk)
            whole, started = True, time.perf_counter()
            for (record,) in rollout(self.model, [session], levels=self.model.schedule, clock=self.meter.clock()):
                self._made(record, started)
                warnings += self.memory.idle(time.perf_counter())
                if record.chunk + 1 < self.prepared.chunks:
                    whole = self._all(not self._stopping.is_set())
                    if not whole or self._due(session):
                        self._write_down(session)
                    if not whole:
                        break
                started = time.perf_counter()
            warnings += pin_faults(self.memory)
            chunks = session.chunk
        self._stats = replace(self._stats, batch=None, doing="idle", sessions=0)
        return RankPlayed(chunks, whole, tuple(dict.fromkeys(warnings)))

    def stop(self) -> None:
        """End after the chunk under way, written down, as soon as all ranks know."""
        self._stopping.set()

    def snapshot(self) -> WorkerStats:
        """How it stands; answers at once."""
        return self._stats

    def close(self) -> None:
        """Leave the others, and give back what the memory holds outside the process."""
        leave()
        self.memory.close()

    def _host(self, order: PlayOrder) -> str:
        """Where this rank is reached: on one node, by nobody outside it."""
        across = order.config.model.across_nodes
        return ray.util.get_node_ip_address() if across else LOOPBACK  # type: ignore[no-untyped-call]  # Ray's

    def _model(self, seat: Seat, device: torch.device) -> WanModel:
        load = partial(play.load, self.config.model, device)
        if seat.size == 1:
            return load()
        keep_to(self._host(self.order))
        return open_rank(seat, device, load, self._meeting or reach(seat))

    def _memory(self) -> ChunkMemory:
        shared = ChunkSettings.of(self.config.memory)
        made = {} if shared is None else {"node": open_node_tier(shared)}
        return open_memory(self.config.memory, self.model, made, listener=self.meter.listener)

    def _probe(self) -> Probe:
        """What of the host's memory this rank may have beside its fellows."""
        together = 1 if self.config.model.across_nodes else self.config.model.ranks

        def part() -> Headroom | None:
            whole = host_headroom()
            return None if whole is None else Headroom(whole.nbytes // together, whole.limit)

        return Probe(host=part)

    def _all(self, here: bool) -> bool:
        """Whether it is so on all ranks; each has to ask."""
        return agreed(self.model.ranks, [here], self.model.device)[0]

    def _made(self, record: ChunkRecord, started: float) -> None:
        ended = time.perf_counter()
        if self.rank == 0:
            patiently(lambda: self.keeping.put_shown(record), self.order.patience_seconds, failed=self._count_refusal)
        nothing = np.empty((0, 0, 0, 3), np.uint8)  # nobody knows what the world really looks like
        self.meter.batch([record], [self.prepared.inputs.trajectory.name], [nothing], started, ended)
        work = self.meter.stats(self.memory.stats())
        self._stats = replace(self._stats, chunk=record.chunk + 1, chunk_seconds=ended - started, work=work)

    @property
    def _may_checkpoint(self) -> bool:
        exact = is_exact(self.config.memory, self.model.geometry, self.prepared.policy, self.prepared.chunks)
        return exact and self.order.checkpoint_chunks > 0

    def _due(self, session: Session) -> bool:
        return self._may_checkpoint and session.chunk % self.order.checkpoint_chunks == 0

    def _write_down(self, session: Session) -> None:
        """A checkpoint that one rank cannot write is none: it only saves time."""
        if not self._may_checkpoint:
            return
        wrote = True
        try:
            self.keeping.put_session(session.chunk, self.rank, snapshot(session))
        except OutputError as fault:
            self._count_refusal(fault)
            wrote = False
        if not self._all(wrote):
            return
        self._stats = replace(self._stats, checkpoints=self._stats.checkpoints + 1)
        if self.rank == 0:
            try:
                self.keeping.settle(session.chunk)
            except OutputError as fault:
                self._count_refusal(fault)

    def _restored(self) -> Session | None:
        """The session from the newest checkpoint; None where one rank has none that fits, or a picture is missing."""
        session = self._read_session() if self._may_checkpoint else None
        at = torch.tensor([-1 if session is None else session.chunk], device=self.model.device)
        everywhere = self.model.ranks.gather(at[None], 0).flatten()
        if session is not None and bool((everywhere == at).all()):
            self._stats = replace(self._stats, restores=self._stats.restores + 1)
            return session
        if session is not None:
            session.close()
        return None

    def _read_session(self) -> Session | None:
        try:
            chunk = self.keeping.settled()
            data = None if chunk is None else self.keeping.session(chunk, self.rank)
            if chunk is None or data is None:
                return None
            if self.rank == 0 and any(self.keeping.shown(one) is None for one in range(chunk)):
                return None
            return restore(data, self.model, self.memory)
        except OutputError as fault:
            self._count_refusal(fault)
        except WorldKVError:
            pass  # of another format or device, or damaged: the world starts at its first chunk, which is only later
        return None

    def _count_refusal(self, fault: OutputError) -> None:
        self._stats = replace(self._stats, storage_failures=self._stats.storage_failures + 1, doing=str(fault))


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
