"""What policy reads: frozen pictures of one worker's chunk memory and of the cluster, and what makes one sound.

- A snapshot is data: whoever gathers it keeps no reference by which it could change later.
- Seconds are on one clock, that of `now_seconds`; bytes are what is stored, after compression.
- Tier 0 is nearest. Link i carries from tier i + 1 to tier i.
- `check_memory` and `check_cluster` refuse what contradicts itself and say what contradicts what.

Shapes: N chunks of a session, F video frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worldkv.errors import SnapshotError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LatePolicy = Literal["wait", "reduced", "without"]
"""What a session does about a chunk that cannot be there in time: wait for it, take a copy with less detail that is
nearer (and wait only where there is none), or go on without it."""


Ranking = Literal["pose", "yaw"]
"""The rankings of retrieval that can be forecast."""


@dataclass(frozen=True)
class TierView:
    """One tier of a worker's memory."""

    name: str
    capacity_bytes: int
    used_bytes: int
    """What lies here, and room that is promised to transfers under way."""
    kept_free_bytes: int = 0
    """Room that will be needed before the next plan, as by chunks that leave windows; there need not be so much yet."""
    used_by: Mapping[str, int] = field(default_factory=dict)
    """Tenant -> bytes of it; tenants not named use none. Sums to `used_bytes` or less: others' bytes may be unknown."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Tenant -> bytes it may use; tenants not named may use all."""
    reserved: Mapping[str, int] = field(default_factory=dict)
    """Tenant -> bytes below which no other tenant's need takes its chunks away."""


@dataclass(frozen=True)
class LinkView:
    """The way from one tier to the next nearer one; transfers go one after the other."""

    bytes_per_second: float
    latency_seconds: float = 0.0
    free_seconds: float = 0.0
    """When all that was begun on it will be through; may lie in the past."""


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The past chunks of a session, oldest first, sink and recent ones included. Arrays of equal length N."""

    chunk_N: Ints
    """Index within the rollout, ascending."""
    pose_N44: Floats
    """Mean pose of each."""
    nbytes_N: Ints
    tier_N: Ints
    """Nearest tier that holds the chunk; -1 where none does (it still lies in the window, or is gone)."""
    committed_N: Bools
    """Pinned, leased or promised to the window under way: policy leaves these where they are."""
    arrives_N: Floats
    """When a transfer of the chunk to tier 0 that was begun will be through; infinite where none was begun."""
    reduced_tier_N: Ints | None = None
    """Nearest tier that holds a copy with less detail, -1 for none; None: there are no such copies."""
    reduced_nbytes_N: Ints | None = None
    """Bytes of that copy."""

    def __len__(self) -> int:
        return len(self.chunk_N)


@dataclass(frozen=True)
class Recall:
    """How a session retrieves; the fields of `MemoryPolicy` that a forecast of it needs."""

    retrieved_chunks: int = 4
    sink_chunks: int = 1
    recent_chunks: int = 2
    ranking: Ranking = "pose"


@dataclass(frozen=True, eq=False)
class SessionView:
    """One live session on the worker."""

    session: str
    tenant: str
    chunk: int
    """Index of the chunk whose window is assembled next."""
    assembles_seconds: float
    """When that is."""
    chunk_seconds: float
    """Between one assembly and the next."""
    table: ChunkTable
    recent_F44: Floats
    """Poses of the last video frames before those of `chunk`; at least one."""
    frames_per_chunk: int
    latent_stride: int = 1
    """Every so manieth video frame of a chunk, from its first, is the pose of a latent frame."""
    script_F44: Floats | None = None
    """Exact poses from the first frame of `chunk` on, as far as they are known; None for live actions."""
    recall: Recall = Recall()
    late_policy: LatePolicy = "wait"


@dataclass(frozen=True)
class MemoryView:
    """One worker's memory and the sessions that use it."""

    now_seconds: float
    tiers: tuple[TierView, ...]
    links: tuple[LinkView, ...]
    """One fewer than tiers."""
    sessions: tuple[SessionView, ...]
    staging_bytes: int
    """Most bytes that may be under way at once."""
    staged_bytes: int = 0
    """Under way now."""


@dataclass(frozen=True)
class Resources:
    """What a session takes of a worker, or a worker has: sessions at once, and memory of the device and the host."""

    slots: int = 1
    device_bytes: int = 0
    host_bytes: int = 0


@dataclass(frozen=True)
class WorkerView:
    """One GPU's worker."""

    worker: str
    node: str
    total: Resources
    alive: bool = True
    draining: bool = False
    """Takes no new sessions; those it has should leave."""
    domain: str = ""
    """Failure domain beyond the node, such as a rack; empty: the node itself."""


@dataclass(frozen=True)
class RunningView:
    """A placed session; a sharded one holds several workers of one node."""

    session: str
    tenant: str
    workers: tuple[str, ...]
    needs: Resources
    """On each of the workers."""
    job: str = ""
    started_seconds: float = 0.0
    remaining_seconds: float = 0.0
    """Until it ends at its present pace; what a move has to pay for itself within."""
    chunk_bytes: int = 0
    """Bytes that a move takes along: those of its chunks that lie on the worker alone."""


@dataclass(frozen=True)
class PendingView:
    """A session that waits for workers."""

    session: str
    tenant: str
    needs: Resources
    """On each worker."""
    gang: int = 1
    """Workers of one node that it needs at once."""
    priority: int = 0
    """Among the sessions of its tenant, higher first."""
    waits_since_seconds: float = 0.0
    job: str = ""
    near: Mapping[str, int] = field(default_factory=dict)
    """Worker or node -> bytes of the session's chunks that lie there."""


@dataclass(frozen=True)
class TenantView:
    """What a tenant is entitled to."""

    weight: float = 1.0
    """Its part of the cluster, relative to the others' weights, while they want theirs."""
    reserved_slots: int = 0
    """Workers' slots that are its own before anybody's share is looked at."""
    limit_slots: int | None = None
    """Most slots it may hold; None: all."""


@dataclass(frozen=True)
class ClusterView:
    """Workers, who runs where, who waits."""

    now_seconds: float
    workers: tuple[WorkerView, ...]
    running: tuple[RunningView, ...] = ()
    pending: tuple[PendingView, ...] = ()
    tenants: Mapping[str, TenantView] = field(default_factory=dict)
    """Tenants not named have the default."""


def check_memory(view: MemoryView) -> None:
    """Raise SnapshotError where the memory's snapshot contradicts itself."""
    if len(view.links) != max(0, len(view.tiers) - 1):
        raise SnapshotError(f"{len(view.tiers)} tiers need {max(0, len(view.tiers) - 1)} links, got {len(view.links)}")
    if min(view.staging_bytes, view.staged_bytes) < 0:
        raise SnapshotError(f"staging_bytes={view.staging_bytes}, staged_bytes={view.staged_bytes}: neither may be < 0")
    for tier in view.tiers:
        _check_tier(tier)
    for number, link in enumerate(view.links):
        if not (0 <= link.bytes_per_second < np.inf and 0 <= link.latency_seconds < np.inf):
            raise SnapshotError(f"link {number}: {link} needs a rate and a latency that are finite and not negative")
    seen: set[str] = set()
    for session in view.sessions:
        if session.session in seen:
            raise SnapshotError(f"session {session.session} is listed twice on one worker")
        seen.add(session.session)
        _check_session(session, len(view.tiers))


def check_cluster(view: ClusterView) -> None:
    """Raise SnapshotError where the cluster's snapshot contradicts itself."""
    workers = {worker.worker: worker for worker in view.workers}
    if len(workers) != len(view.workers):
        raise SnapshotError(f"worker {_first_double(w.worker for w in view.workers)} is listed twice")
    used: dict[str, list[int]] = {}
    where: dict[str, tuple[str, ...]] = {}
    for running in view.running:
        if running.session in where:
            raise SnapshotError(
                f"session {running.session} runs on {', '.join(where[running.session])} and on "
                f"{', '.join(running.workers)}: a session has one place"
            )
        where[running.session] = running.workers
        _check_place(running, workers)
        for name in running.workers:
            taken = used.setdefault(name, [0, 0, 0])
            taken[0] += running.needs.slots
            taken[1] += running.needs.device_bytes
            taken[2] += running.needs.host_bytes
    for name, taken in used.items():
        total = workers[name].total
        has = (total.slots, total.device_bytes, total.host_bytes)
        for what, asked, there in zip(("slots", "device bytes", "host bytes"), taken, has, strict=True):
            if asked > there:
                raise SnapshotError(f"worker {name}: its sessions take {asked} {what}, it has {there}")
    _check_pending(view, where)


def _check_tier(tier: TierView) -> None:
    if not 0 <= tier.used_bytes <= tier.capacity_bytes:
        raise SnapshotError(f"tier {tier.name}: uses {tier.used_bytes} bytes of a capacity of {tier.capacity_bytes}")
    if sum(tier.used_by.values()) > tier.used_bytes or min(tier.used_by.values(), default=0) < 0:
        raise SnapshotError(f"tier {tier.name}: tenants use {dict(tier.used_by)} bytes, all together {tier.used_bytes}")


def _check_session(session: SessionView, tiers: int) -> None:
    table, name = session.table, f"session {session.session}"
    lengths = {len(table.pose_N44), len(table.nbytes_N), len(table.tier_N), len(table.committed_N)}
    if lengths | {len(table.arrives_N)} != {len(table)}:
        raise SnapshotError(f"{name}: columns of its chunks have {len(table)} and {sorted(lengths)} rows")
    if len(table):
        if table.chunk_N[-1] >= session.chunk:
            raise SnapshotError(f"{name}: chunk {table.chunk_N[-1]} is stored, but chunk {session.chunk} is made next")
        if (table.chunk_N[1:] <= table.chunk_N[:-1]).any():
            raise SnapshotError(f"{name}: chunks are not in ascending order: {table.chunk_N.tolist()}")
        if table.tier_N.max() >= tiers:
            row = int(table.tier_N.argmax())
            raise SnapshotError(
                f"{name}: chunk {table.chunk_N[row]} lies in tier {table.tier_N[row]}, there are {tiers} tiers"
            )
        if table.nbytes_N.min() < 0:
            raise SnapshotError(f"{name}: chunk {table.chunk_N[table.nbytes_N.argmin()]} has negative bytes")
    if len(session.recent_F44) == 0:
        raise SnapshotError(f"{name}: no recent pose is given, so nothing says where its camera is")
    if not (session.chunk_seconds > 0 and session.frames_per_chunk > 0 and session.latent_stride > 0):
        raise SnapshotError(
            f"{name}: chunk_seconds={session.chunk_seconds}, frames_per_chunk={session.frames_per_chunk}, "
            f"latent_stride={session.latent_stride} must all be above 0"
        )


def _check_place(running: RunningView, workers: Mapping[str, WorkerView]) -> None:
    nodes = set()
    for name in running.workers:
        worker = workers.get(name)
        if worker is None:
            raise SnapshotError(f"session {running.session} runs on worker {name}, which is not in the cluster")
        if not worker.alive:
            raise SnapshotError(
                f"session {running.session} runs on worker {name}, which is dead: report the session lost or pending"
            )
        nodes.add(worker.node)
    if len(nodes) != 1 or len(set(running.workers)) != len(running.workers):
        raise SnapshotError(
            f"session {running.session} runs on workers {', '.join(running.workers)} of {len(nodes)} nodes: "
            "a session needs distinct workers of one node"
        )


def _check_pending(view: ClusterView, where: Mapping[str, tuple[str, ...]]) -> None:
    names = {pending.session for pending in view.pending}
    if len(names) != len(view.pending):
        raise SnapshotError(f"session {_first_double(p.session for p in view.pending)} waits twice")
    if both := names & set(where):
        name = min(both)
        raise SnapshotError(f"session {name} waits and runs on {', '.join(where[name])}")
    for pending in view.pending:
        if pending.gang < 1 or pending.needs.slots < 1:
            raise SnapshotError(
                f"session {pending.session}: gang={pending.gang}, slots={pending.needs.slots}: both must be 1 or more"
            )
    for tenant, entitled in view.tenants.items():
        if not 0 < entitled.weight < np.inf or entitled.reserved_slots < 0:
            raise SnapshotError(
                f"tenant {tenant}: {entitled} needs a finite weight above 0 and no negative reservation"
            )


def _first_double(names: Iterable[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)
