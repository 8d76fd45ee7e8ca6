"""What monitoring reads: one frozen picture of a node or a cluster, made by whoever runs it, never changed afterwards.

All values are plain numbers, strings and tuples, so that a snapshot crosses processes and becomes JSON as it is.
Counters count from the start of whoever counts: a worker that was restarted begins at 0 with `restarts` one more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from pydantic import TypeAdapter, ValidationError

from worldkv.errors import ConfigError
from worldkv.stats import Durations, WorkStats

WORKER_STATES = ("starting", "ready", "draining", "lost")
SESSION_STATES = ("queued", "running", "idle")
"""queued: waits for a worker. running: chunks are made. idle: open, but nobody asks for the next chunk."""
JOB_STATES = ("queued", "running", "done", "failed", "cancelled")
THROTTLE_REASONS = ("power_cap", "thermal", "power_brake", "hardware", "other")


def _check(what: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} {value!r}: not one of {', '.join(allowed)}")


@dataclass(frozen=True)
class GpuStats:
    """One GPU at one moment; None: this device does not tell."""

    index: int
    """On its node."""
    name: str
    utilisation_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    pcie_sent_bytes: int | None = None
    """By the GPU, since its driver was loaded; so are the next three."""
    pcie_received_bytes: int | None = None
    nvlink_sent_bytes: int | None = None
    nvlink_received_bytes: int | None = None
    ecc_corrected: int | None = None
    """Errors since the driver was loaded."""
    ecc_uncorrected: int | None = None
    throttled: tuple[str, ...] | None = None
    """Which of THROTTLE_REASONS hold its clocks down now."""

    def __post_init__(self) -> None:
        for reason in self.throttled or ():
            _check(f"throttle reason of GPU {self.index}", reason, THROTTLE_REASONS)


@dataclass(frozen=True)
class SessionCount:
    """How many sessions of a tenant a worker has in one state."""

    tenant: str
    state: str
    sessions: int

    def __post_init__(self) -> None:
        _check(f"session state of tenant {self.tenant}", self.state, SESSION_STATES)


@dataclass(frozen=True)
class WorkerSnapshot:
    """One process with a model and a chunk memory of its own."""

    worker: str
    """A slot's name, the same after a restart: there are only so many."""
    node: str
    model: str
    work: WorkStats
    state: str = "ready"
    restarts: int = 0
    sessions: tuple[SessionCount, ...] = ()
    gpus: tuple[GpuStats, ...] = ()
    """That it computes on."""
    shared_tiers: tuple[str, ...] = ()
    """Tiers that all workers of its node use together: each tells of the same bytes, which are there once."""
    age_seconds: float = 0.0
    """Since these figures were gathered."""

    def __post_init__(self) -> None:
        _check(f"state of worker {self.worker}", self.state, WORKER_STATES)


@dataclass(frozen=True)
class TenantSnapshot:
    """One tenant across the cluster."""

    tenant: str
    queued: int = 0
    """Rollouts that wait for a worker."""
    oldest_wait_seconds: float = 0.0
    """Of these, the one that waits for longest."""
    waits: Durations = field(default_factory=Durations)
    """Of rollouts that were begun."""
    limit_bytes: dict[str, int] = field(default_factory=dict)
    """Tier -> what the tenant may use there; tiers without a limit are not listed."""


@dataclass(frozen=True)
class JobSnapshot:
    """One job. Its number goes into no label: jobs are without end."""

    job: str
    tenant: str
    state: str
    episodes_wanted: int
    committed: int = 0
    failed: int = 0
    """Given up."""
    retried: int = 0
    idle_seconds: float = 0.0
    """Since an episode was committed, or since it began to run."""

    def __post_init__(self) -> None:
        _check(f"state of job {self.job}", self.state, JOB_STATES)


@dataclass(frozen=True)
class Snapshot:
    """All of it at one moment."""

    taken_at: float
    """Unix seconds."""
    workers: tuple[WorkerSnapshot, ...] = ()
    tenants: tuple[TenantSnapshot, ...] = ()
    jobs: tuple[JobSnapshot, ...] = ()
    replication_lag_seconds: float | None = None
    """Age of the oldest chunk that has fewer durable copies than it should; None where nothing is replicated."""
    replication_pending_bytes: int | None = None
    exporters: tuple[str, ...] = ()
    """`host:port` of every exporter of the cluster, for service discovery."""

    def told_once(self) -> Snapshot:
        """The same, where only the first worker of a node tells how full the node's shared tiers are."""
        seen: set[tuple[str, str]] = set()
        workers = []
        for worker in self.workers:
            here = {(worker.node, tier) for tier in worker.shared_tiers}
            workers.append(_without_fill(worker, {tier for _, tier in here & seen}))
            seen |= here
        return replace(self, workers=tuple(workers))

    def to_plain(self) -> dict[str, object]:
        """Dicts and lists of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Snapshot:
        """The snapshot that `to_plain` became JSON of. Raises ConfigError, naming the source."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as fault:
            first = fault.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise ConfigError(f"{source}: not a snapshot of WorldKV: {where}: {first['msg']}") from None


def _without_fill(worker: WorkerSnapshot, tiers: set[str]) -> WorkerSnapshot:
    if not tiers:
        return worker
    memory = worker.work.memory
    told = replace(
        memory,
        tiers=tuple(
            replace(tier, chunks=0, used_bytes=0, capacity_bytes=0, pinned_bytes=0) if tier.name in tiers else tier
            for tier in memory.tiers
        ),
        tenants=tuple(replace(row, chunks=0, used_bytes=0) if row.tier in tiers else row for row in memory.tenants),
    )
    return replace(worker, work=replace(worker.work, memory=told))


_ADAPTER = TypeAdapter(Snapshot)
