"""A worker: one model and one chunk memory on one GPU or CPU slot, rolling out one batch of sessions at a time.

- Batches follow each other; the sessions of one advance together, chunk by chunk. Between chunks the worker can be
  asked to stop, and every few chunks it writes the batch down.
- What it finishes lies on durable storage before it says so. A worker keeps nothing that cannot be made again.
- `snapshot` and `stop` are called from another thread than the rest, while a batch is under way.
- A batch does not share the memory with another: what room is left decides what is found, and so the bytes.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod

import ray
import torch

import worldkv
from cluster.checkpoint import is_exact
from cluster.chunks.connect import open_node_tier
from cluster.chunks.settings import ChunkSettings
from cluster.ledger import Ledger
from cluster.nodes import DOMAIN_LABEL
from cluster.parcel import Finished, pack_checkpoint
from cluster.places import of_slot
from cluster.planning import Facts
from cluster.recording import Recorder
from cluster.storage import patiently
from worldkv.config import MemoryConfig, RunConfig
from worldkv.errors import JobError, OutputError, WorldKVError
from worldkv.memory.policy import parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.models.rooms.model import RoomsModel
from worldkv.numerics import make_repeatable
from worldkv.results import WorldTruth
from worldkv.runs import generate
from worldkv.runs import worlds as run_worlds
from worldkv.runs.batch import Batch, BatchRollout, Outline, outline
from worldkv.runs.memory import open_memory, pin_faults
from worldkv.runs.memory_check import chunk_bytes
from worldkv.runs.meter import Meter
from worldkv.runs.settled import settle
from worldkv.snapshot import restore, snapshot
from worldkv.stats import MemoryStats, WorkerStats

PIXEL_BYTES = 3


@dataclass(frozen=True)
class Order:
    """What a worker is to know of its job."""

    config: RunConfig
    """With absolute paths."""
    ledger_url: str
    job: str
    threads: int
    """Of torch, on the CPU."""
    checkpoint_chunks: int = 16
    """A batch is written down after so many chunks each; 0: never."""
    patience_seconds: float = 120.0
    """For how long storage may refuse a finished batch."""
    trace: Recorder | None = None
    """Records what the sessions do; None: nobody asked for it."""


@dataclass(frozen=True)
class Opened:
    """How a worker found things."""

    ahead: Outline
    versions: dict[str, str]
    """Of what has to be the same on all nodes."""
    node: str
    node_id: str
    """As Ray calls the node; '' outside a cluster."""
    memory: MemoryStats
    """Before anything was rolled out."""
    facts: Facts
    """What holds for all batches."""
    domain: str
    """What fails together with the node beyond itself, such as a rack: its label DOMAIN_LABEL, '' where it has none."""


@dataclass(frozen=True)
class Rolled:
    """What became of a batch."""

    number: int
    restarts: int
    """How many workers its slot had before."""
    whole: bool
    """False where the worker was asked to stop, or to suspend it."""
    at_fullest: MemoryStats
    """All lookups since the worker started, and each tier as full as it was at the end of some batch."""
    left: MemoryStats
    """When no session holds any chunk."""
    warnings: tuple[str, ...]


def versions() -> dict[str, str]:
    """Of what has to be the same on all nodes."""
    return {"Python": platform.python_version(), "worldkv": worldkv.__version__, "torch": str(torch.__version__)}


class Worker:
    """Opened once, then given batches. See the module."""

    def __init__(self, slot: int, restarts: int) -> None:
        self.slot = slot
        self._stats = WorkerStats(
            worker=str(slot), node=socket.gethostname(), tenant="", process=os.getpid(), restarts=restarts
        )
        self._stopping = threading.Event()
        self._suspended: int | None = None
        """Number of the batch that is to end early."""
        self._drawn: list[WorldTruth] = []
        self._fullest: MemoryStats | None = None
        self.meter = Meter()

    def open(self, order: Order) -> Opened:
        """Load the weights and open the memory. Raises as `generate` does before it touches a folder."""
        make_repeatable()
        torch.set_num_threads(order.threads)
        config = order.config.model_copy(update={"memory": of_slot(order.config.memory, self.slot)})
        self._stats = replace(self._stats, tenant=config.memory.tenant, doing="loading the model")
        self.order, self.config = order, config
        if order.trace is not None:
            self.meter = Meter(listener=order.trace)
        self.ledger = Ledger(order.ledger_url, order.job)
        self.model: RoomsModel = generate.load_model(config)
        self.ahead = outline(config, self.model)
        self.memory = self.open_memory(config.memory)
        settle()
        empty = self.memory.stats()
        self._stats = replace(self._stats, doing="idle", model=self.model.name, work=self.meter.stats(empty))
        there = ray.get_runtime_context() if ray.is_initialized() else None
        node_id, labels = ("", {}) if there is None else (there.get_node_id(), there.get_node_labels())
        on_gpu = self.model.device.type == "cuda" and there is not None
        self._stats = replace(self._stats, gpus=tuple(int(i) for i in ray.get_gpu_ids()) if on_gpu else ())
        where = versions(), self._stats.node, node_id
        return Opened(self.ahead, *where, empty, self._facts(), str(labels.get(DOMAIN_LABEL, "")))

    def roll(self, batch: Batch) -> Rolled:
        """Roll a batch out, from its checkpoint where it has one that is of use, and keep it in the ledger.

        Raises OutputError where storage refuses it for longer than the order allows, JobError where it has no such job.
        """
        self._check_storage()
        warnings: list[str] = []
        with closing(self._begin(batch)) as under_way:
            while not under_way.finished:
                if self._stopping.is_set() or self._suspended == batch.number:
                    self._write_down(under_way)
                    return self._rolled(batch, warnings, whole=False)
                self._advance(under_way, warnings)
            self._fullest = self.memory.stats().at_fullest(self._fullest)
            warnings += [*pin_faults(self.memory), *under_way.check_integrity()]
            self._stats = replace(self._stats, doing=f"saving {batch}")
            trace = "" if self.order.trace is None else self.order.trace.lines(under_way)
            finished = Finished(self.model.epoch, tuple(under_way.episodes()), under_way.took, trace)
        patiently(
            lambda: self.ledger.put_finished(batch.number, finished),
            self.order.patience_seconds,
            failed=self._count_refusal,
        )
        self._stats = replace(self._stats, batches=self._stats.batches + 1)
        return self._rolled(batch, warnings, whole=True)

    def stop(self) -> None:
        """End the batch under way at its next chunk, written down; nothing more is rolled out."""
        self._stopping.set()

    def suspend(self, number: int) -> None:
        """End this batch at its next chunk, written down, if it is under way; others may follow it."""
        self._suspended = number

    def snapshot(self) -> WorkerStats:
        """How it stands; answers at once."""
        return self._stats

    def close(self) -> None:
        """Give back what the memory holds outside the process."""
        self.memory.close()

    def open_memory(self, config: MemoryConfig) -> ChunkMemory:
        """What all sessions of this worker share; its tier `node` is shared by all workers of the cluster."""
        shared = ChunkSettings.of(config)
        made = {} if shared is None else {"node": open_node_tier(shared)}
        return open_memory(config, self.model, made, listener=self.meter.listener)

    def draw(self, seed: int) -> WorldTruth:
        """One world."""
        return run_worlds.draw(self.config, self.model, seed)

    def _check_storage(self) -> None:
        seconds = self.order.patience_seconds
        if patiently(self.ledger.record, seconds, failed=self._count_refusal) is None:
            raise JobError(
                f"job {self.order.job}: node {self._stats.node} finds nothing of it in {self.order.ledger_url}; name a "
                f"place that all nodes share: --jobs URL"
            )

    def _begin(self, batch: Batch) -> BatchRollout:
        sessions = len(batch.seeds)
        self._stats = replace(
            self._stats, batch=batch.number, doing=str(batch), sessions=sessions, chunk=0, chunks=self.ahead.chunks
        )
        if self.order.trace is not None:
            self.order.trace.forget(batch.keys)
        if tuple(world.seed for world in self._drawn) != batch.seeds:
            self._drawn = [self.draw(seed) for seed in batch.seeds]
        return self._restored(batch) or self._rollout(batch).begin(self.memory)

    def _rollout(self, batch: Batch) -> BatchRollout:
        return BatchRollout(self.config, self.model, batch, self._drawn, self.meter)

    def _restored(self, batch: Batch) -> BatchRollout | None:
        """The batch from its checkpoint; None where it has none that fits."""
        try:
            found = (
                self.ledger.checkpoint(batch.number) if self._may_checkpoint(batch.policy, len(batch.seeds)) else None
            )
        except OutputError as fault:
            self._count_refusal(fault)
            return None
        if found is None or found.epoch != self.model.epoch or len(found.sessions) != len(batch.seeds):
            return None
        under_way = self._rollout(batch)
        try:
            for data in found.sessions:
                under_way.sessions.append(restore(data, self.model, self.memory))
        except WorldKVError:
            # Of another format or device: the batch starts at its first chunk, which is as good and only later.
            under_way.close()
            return None
        under_way.records += [list(chunk) for chunk in found.records]
        self._stats = replace(self._stats, restores=self._stats.restores + 1, chunk=len(under_way.records))
        return under_way

    def _advance(self, under_way: BatchRollout, warnings: list[str]) -> None:
        started = time.perf_counter()
        under_way.step()
        self._stats = replace(
            self._stats,
            chunk=len(under_way.records),
            chunk_seconds=time.perf_counter() - started,
            work=self.meter.stats(self.memory.stats()),
        )
        warnings += self.memory.idle(time.perf_counter())
        every = self.order.checkpoint_chunks
        if every and len(under_way.records) % every == 0 and not under_way.finished:
            self._write_down(under_way)

    def _may_checkpoint(self, policy: str, sessions: int) -> bool:
        chunks = self.ahead.chunks * sessions
        exact = is_exact(self.config.memory, self.model.geometry, parse_policy(policy), chunks)
        return exact and self.order.checkpoint_chunks > 0

    def _facts(self) -> Facts:
        config, model = self.config, self.model
        parsed = {text: parse_policy(text) for text in config.policies}
        size = {text: policy.retrieved_chunks * chunk_bytes(model.geometry, policy) for text, policy in parsed.items()}
        frames = self.ahead.chunks * model.geometry.chunk_latent_frames * model.video_frames_per_latent
        return Facts(
            config.memory.tenant,
            window_bytes={text: nbytes * config.batch_sessions for text, nbytes in size.items()},
            resumable=tuple(text for text in config.policies if self._may_checkpoint(text, config.batch_sessions)),
            world_bytes=frames * prod(model.latent_shape[1:]) * PIXEL_BYTES,
        )

    def _write_down(self, under_way: BatchRollout) -> None:
        """A checkpoint that storage refuses is left out: it only saves time."""
        batch = under_way.batch
        if not self._may_checkpoint(batch.policy, len(batch.seeds)) or not under_way.records:
            return
        data = pack_checkpoint(self.model.epoch, [snapshot(one) for one in under_way.sessions], under_way.records)
        try:
            self.ledger.put_checkpoint(batch.number, data)
            self._stats = replace(self._stats, checkpoints=self._stats.checkpoints + 1)
        except OutputError as fault:
            self._count_refusal(fault)

    def _count_refusal(self, fault: OutputError) -> None:
        self._stats = replace(self._stats, storage_failures=self._stats.storage_failures + 1, doing=str(fault))

    def _rolled(self, batch: Batch, warnings: list[str], *, whole: bool) -> Rolled:
        left, self._suspended = self.memory.stats(), None
        self._stats = replace(self._stats, batch=None, doing="idle", sessions=0, chunk=0, work=self.meter.stats(left))
        at_fullest = left.at_fullest(self._fullest)
        return Rolled(batch.number, self._stats.restarts, whole, at_fullest, left, tuple(dict.fromkeys(warnings)))
