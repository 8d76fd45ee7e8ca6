"""What policy reads: frozen pictures of one worker's chunk memory and of the cluster, and what makes one sound.

- A snapshot is data: whoever gathers it keeps no reference by which it could change later.
- Seconds are on one clock, that of `now_seconds`; bytes are what is stored, after compression.
- Tier 0 is nearest. Link i carries from tier i + 1 to tier i.
- `scheduler.contradictions` refuses what contradicts itself.

Shapes: N chunks of a session, F video frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worldkv.camera import Frustum

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LatePolicy = Literal["wait", "reduced", "without"]
"""What a session does about a chunk that cannot be there in time: wait for it, take a copy with less detail that is
nearer (and wait only where there is none), or go on without it."""


Ranking = Literal["pose", "yaw", "overlap"]
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
    frustum: Frustum | None = None
    """What the camera sees, for `overlap`, which cannot be forecast without it."""


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
    recall: Recall = field(default_factory=Recall)
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
    speed: float = 1.0
    """Chunks that it makes while an ordinary worker makes one."""


@dataclass(frozen=True)
class RunningView:
    """A placed session; a sharded one holds several workers of one node."""

    session: str
    tenant: str
    workers: tuple[str, ...]
    needs: Resources
    """On each of the workers."""
    started_seconds: float = 0.0
    remaining_seconds: float = 0.0
    """Until it ends at its present pace; what a move has to pay for itself within."""
    chunk_bytes: int = 0
    """Bytes that a move takes along: those of its chunks that lie on the worker alone."""
    leaving: bool = False
    """Told to give up its workers at its next chunk boundary; it still has them."""
    may_leave: bool = True
    """Whether it could go on elsewhere from where it is: one that could not is neither moved nor gives way."""
    boundary_seconds: float = 0.0
    """When its next chunk is done, as far as that is known: then it could leave."""


@dataclass(frozen=True, eq=False)
class RunningTable:
    """All placed sessions, with what is asked of all of them at once in columns; `running_table` makes one.

    R rows, one for each session; n of (session, worker).
    """

    views: tuple[RunningView, ...] = ()
    worker_n: tuple[str, ...] = ()
    row_n: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Whose worker it is."""
    needs_R3: Ints = field(default_factory=lambda: np.empty((0, 3), np.int64))
    """Slots, bytes of the device, bytes of the host: on each worker."""
    gang_R: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Workers."""
    tenants: tuple[str, ...] = ()
    tenant_R: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Place in `tenants`."""
    leaving_R: Bools = field(default_factory=lambda: np.empty(0, bool))
    started_R: Floats = field(default_factory=lambda: np.empty(0))
    """Seconds."""
    boundary_R: Floats = field(default_factory=lambda: np.empty(0))
    """Seconds."""


def running_table(running: Iterable[RunningView]) -> RunningTable:
    """The columns of these sessions, in their order."""
    views = tuple(running)
    tenants = tuple(sorted({one.tenant for one in views}))
    number_of = {tenant: number for number, tenant in enumerate(tenants)}
    gang_R = np.array([len(one.workers) for one in views], np.int64)
    needs = [(one.needs.slots, one.needs.device_bytes, one.needs.host_bytes) for one in views]
    return RunningTable(
        views=views,
        worker_n=tuple(name for one in views for name in one.workers),
        row_n=np.repeat(np.arange(len(views)), gang_R),
        needs_R3=np.array(needs, np.int64).reshape(-1, 3),
        gang_R=gang_R,
        tenants=tenants,
        tenant_R=np.array([number_of[one.tenant] for one in views], np.int64),
        leaving_R=np.array([one.leaving for one in views], bool),
        started_R=np.array([one.started_seconds for one in views], np.float64),
        boundary_R=np.array([one.boundary_seconds for one in views], np.float64),
    )


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
    near: Mapping[str, int] = field(default_factory=dict)
    """Worker or node -> bytes of the session's chunks that lie there."""


@dataclass(frozen=True, eq=False)
class PendingTable:
    """All sessions that wait, in columns: there may be a hundred thousand. `pending_table` makes one of views."""

    session_P: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    """Names of those that have a session here."""
    tenant_P: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Place in `tenants`."""
    needs_P3: Ints = field(default_factory=lambda: np.empty((0, 3), np.int64))
    """Slots, bytes of the device, bytes of the host: on each worker."""
    gang_P: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    priority_P: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    waits_since_P: Floats = field(default_factory=lambda: np.empty(0))
    """Seconds."""
    near: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Row -> worker or node -> bytes, for those that have any."""

    def __len__(self) -> int:
        return len(self.session_P)


def pending_table(pending: Iterable[PendingView]) -> PendingTable:
    """The columns of these sessions, in their order."""
    rows = list(pending)
    tenants = tuple(sorted({one.tenant for one in rows}))
    number_of = {tenant: number for number, tenant in enumerate(tenants)}
    needs = [(one.needs.slots, one.needs.device_bytes, one.needs.host_bytes) for one in rows]
    return PendingTable(
        session_P=tuple(one.session for one in rows),
        tenants=tenants,
        tenant_P=np.array([number_of[one.tenant] for one in rows], np.int64),
        needs_P3=np.array(needs, np.int64).reshape(-1, 3),
        gang_P=np.array([one.gang for one in rows], np.int64),
        priority_P=np.array([one.priority for one in rows], np.int64),
        waits_since_P=np.array([one.waits_since_seconds for one in rows], np.float64),
        near={row: one.near for row, one in enumerate(rows) if one.near},
    )


@dataclass(frozen=True)
class TenantView:
    """What a tenant is entitled to."""

    weight: float = 1.0
    """Its part of the cluster, relative to the others' weights, while they want theirs."""
    reserved_slots: int = 0
    """Workers' slots that are its own: nobody else starts there even while the tenant does not want them."""
    limit_slots: int | None = None
    """Most slots it may hold; None: all."""


@dataclass(frozen=True)
class ClusterView:
    """Workers, who runs where, who waits."""

    now_seconds: float
    workers: tuple[WorkerView, ...]
    running: RunningTable = field(default_factory=RunningTable)
    pending: PendingTable = field(default_factory=PendingTable)
    tenants: Mapping[str, TenantView] = field(default_factory=dict)
    """Tenants not named have the default."""
