"""How the table's metrics are read off the parts of a snapshot: each gives samples, label values and a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from monitoring.snapshot import (
    JOB_STATES,
    SESSION_STATES,
    THROTTLE_REASONS,
    WORKER_STATES,
    GpuStats,
    JobSnapshot,
    Snapshot,
    TenantSnapshot,
    WorkerSnapshot,
)
from worldkv.stats import Durations

Sample = tuple[tuple[str, ...], float | Durations]
"""Label values in the order of the metric's labels, and a number; of a histogram all durations."""
Read = Callable[..., Iterable[Sample]]


def memory(name: str) -> Read:
    """A field of the worker's memory."""
    return lambda worker: [((), getattr(worker.work.memory, name))]


def misses(worker: WorkerSnapshot) -> list[Sample]:
    """Of the memory as a whole, by reason."""
    return [((reason,), n) for reason, n in worker.work.memory.misses.items()]


def tiers(name: str) -> Read:
    """A field of each tier."""
    return lambda worker: [((tier.name,), getattr(tier, name)) for tier in worker.work.memory.tiers]


def shares(name: str) -> Read:
    """A field of each tenant in each tier."""
    return lambda worker: [((row.tier, row.tenant), getattr(row, name)) for row in worker.work.memory.tenants]


def misses_of_tiers(worker: WorkerSnapshot) -> Iterator[Sample]:
    """By tier, tenant and reason."""
    for row in worker.work.memory.tenants:
        yield from (((row.tier, row.tenant, reason), n) for reason, n in row.misses.items())


def moves(suffix: str) -> Read:
    """How often, or with `_bytes` how much, went which way."""
    names = ("admitted", "demoted", "promoted", "dropped")
    return lambda worker: [((move,), getattr(worker.work.memory, move + suffix)) for move in names]


def prefetch_count(name: str) -> Read:
    """A field of the prefetch figures."""
    return lambda worker: [((), getattr(worker.work.memory.prefetch, name))]


def prefetch_outcomes(worker: WorkerSnapshot) -> list[Sample]:
    """What became of prefetches."""
    figures = worker.work.memory.prefetch
    return [(("useful",), figures.useful), (("late",), figures.late), (("wasted",), figures.wasted)]


def work(name: str) -> Read:
    """A field of the worker's work, over all workers."""
    return lambda worker: [((), getattr(worker.work, name))]


def worker_work(name: str) -> Read:
    """A field of the worker's work, per worker, where it is known."""

    def read(worker: WorkerSnapshot) -> list[Sample]:
        found = getattr(worker.work, name)
        return [] if found is None else [((worker.worker,), found)]

    return read


def worker(name: str) -> Read:
    """A field of the worker."""
    return lambda worker: [((worker.worker,), getattr(worker, name))]


def stages(worker: WorkerSnapshot) -> list[Sample]:
    """How long each stage took."""
    return [((stage,), took) for stage, took in worker.work.stages.items()]


def chunks(worker: WorkerSnapshot) -> list[Sample]:
    """How long chunks took, per model."""
    return [((worker.model,), worker.work.chunks)]


def stalled(worker: WorkerSnapshot) -> list[Sample]:
    """Seconds of the stage that waits for the memory."""
    return [((worker.worker,), worker.work.stages.get("retrieve", Durations()).seconds)]


def states(worker: WorkerSnapshot) -> list[Sample]:
    """1 for the state it is in, 0 for all others: a state must not seem to last because its line is gone."""
    return [((state,), float(worker.state == state)) for state in WORKER_STATES]


def info(worker: WorkerSnapshot) -> list[Sample]:
    """That it is there."""
    return [((worker.worker, worker.node, worker.model), 1.0)]


def sessions(worker: WorkerSnapshot) -> Iterator[Sample]:
    """By tenant and state, those that are none too."""
    for tenant in dict.fromkeys(count.tenant for count in worker.sessions):
        yield from (((tenant, state), 0.0) for state in SESSION_STATES)
    yield from (((count.tenant, count.state), float(count.sessions)) for count in worker.sessions)


def tenant(name: str) -> Read:
    """A field of the tenant."""
    return lambda tenant: [((tenant.tenant,), getattr(tenant, name))]


def limits(tenant: TenantSnapshot) -> list[Sample]:
    """Of the tiers where the tenant has one."""
    return [((tier, tenant.tenant), float(limit)) for tier, limit in tenant.limit_bytes.items()]


def jobs(job: JobSnapshot) -> list[Sample]:
    """1 for the state it is in."""
    return [((job.tenant, state), float(job.state == state)) for state in JOB_STATES]


def episodes(job: JobSnapshot) -> list[Sample]:
    """What became of its episodes so far."""
    counts = ("committed", job.committed), ("failed", job.failed), ("retried", job.retried)
    return [((job.tenant, outcome), float(n)) for outcome, n in counts]


def wanted(job: JobSnapshot) -> list[Sample]:
    """Episodes of a job that is not over."""
    return [((job.tenant,), float(job.episodes_wanted) if job.state in ("queued", "running") else 0.0)]


def idle(job: JobSnapshot) -> list[Sample]:
    """Since a running job committed anything."""
    return [((job.tenant,), job.idle_seconds if job.state == "running" else 0.0)]


def cluster(name: str) -> Read:
    """A field of the whole snapshot, where it is known."""

    def read(snapshot: Snapshot) -> list[Sample]:
        found = getattr(snapshot, name)
        return [] if found is None else [((), found)]

    return read


def gpus(name: str) -> Read:
    """A field of each GPU that tells it."""
    return _per_gpu(lambda gpu: [((), getattr(gpu, name))])


def _per_gpu(values: Callable[[GpuStats], Sequence[tuple[tuple[str, ...], float | None]]]) -> Read:
    def read(worker: WorkerSnapshot) -> Iterator[Sample]:
        for gpu in worker.gpus:
            where = (worker.node, str(gpu.index), worker.worker)
            yield from (((*where, *labels), found) for labels, found in values(gpu) if found is not None)

    return read


pcie = _per_gpu(lambda gpu: [(("sent",), gpu.pcie_sent_bytes), (("received",), gpu.pcie_received_bytes)])
nvlink = _per_gpu(lambda gpu: [(("sent",), gpu.nvlink_sent_bytes), (("received",), gpu.nvlink_received_bytes)])
ecc = _per_gpu(lambda gpu: [(("corrected",), gpu.ecc_corrected), (("uncorrected",), gpu.ecc_uncorrected)])


def _held_down(gpu: GpuStats) -> list[tuple[tuple[str, ...], float | None]]:
    held = gpu.throttled
    return [] if held is None else [((reason,), float(reason in held)) for reason in THROTTLE_REASONS]


throttled = _per_gpu(_held_down)
