"""What `worldkv top` shows, as rich draws it: pure functions of a snapshot and the one before it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from monitoring.snapshot import JobSnapshot, Snapshot, WorkerSnapshot
from worldkv.stats import Durations

KIB = 1024
MOST_ROWS = 40


def draw(now: Snapshot, before: Snapshot | None, asked_at: float, silent: str | None = None) -> RenderableType:
    """All tables that have rows. Figures per second are those since `before`, where there is one.

    `asked_at`: Unix seconds. `silent`: why there was no answer then, and these are the figures of before.
    """
    now = now.told_once()
    tables = [_workers(now, before), _tiers(now), _tenants(now), _jobs(now, before)]
    warning = [] if silent is None else [Text(silent, style="bold red")]
    return Group(_headline(now, before, asked_at), *warning, *(table for table in tables if table.row_count))


@dataclass
class _Tier:
    chunks: int = 0
    used_bytes: int = 0
    capacity_bytes: int = 0
    lookups: int = 0
    hits: int = 0
    fetches: Durations = field(default_factory=Durations)


@dataclass
class _Tenant:
    sessions: int = 0
    queued: int = 0
    used_bytes: int = 0
    asked: int = 0
    """Of the nearest tier."""
    hits: int = 0


def _headline(now: Snapshot, before: Snapshot | None, asked_at: float) -> Text:
    memories = [worker.work.memory for worker in now.workers]
    lookups, hits = sum(memory.lookups for memory in memories), sum(memory.hits for memory in memories)
    ready = sum(worker.state == "ready" for worker in now.workers)
    paces = [pace for worker in now.workers if (pace := _pace(worker, before, now)) is not None]
    parts = [
        f"{ready} of {len(now.workers)} workers ready",
        f"{_number(sum(paces) if paces else None)} video frames/s",
        f"hit rate {_share(hits, lookups)}",
        f"figures {max(0.0, asked_at - now.taken_at):.0f} s old",
    ]
    faults = sum(memory.faults + memory.quarantined for memory in memories)
    if faults:
        parts.append(f"{faults} faults and damaged chunks")
    return Text(" | ".join(parts), style="bold red" if faults else "bold")


def _workers(now: Snapshot, before: Snapshot | None) -> Table:
    table = _table(
        "workers", "worker", "node", "state", "sessions", "frames/s", "s/chunk", "stalled", "hits", "restarts", "GPU"
    )
    for worker in now.workers[:MOST_ROWS]:
        work = worker.work
        stalled = work.stages.get("retrieve", Durations()).seconds
        table.add_row(
            worker.worker,
            worker.node,
            worker.state if worker.age_seconds < 30 else f"{worker.state}, {worker.age_seconds:.0f} s ago",
            str(sum(count.sessions for count in worker.sessions if count.state == "running")),
            _number(_pace(worker, before, now)),
            _number(_mean(work.chunks), 2),
            _share(stalled, sum(stage.seconds for stage in work.stages.values())),
            _share(work.memory.hits, work.memory.lookups),
            str(worker.restarts),
            ", ".join(_gpu(gpu.utilisation_ratio, gpu.temperature_celsius) for gpu in worker.gpus) or "-",
        )
    return _cut_short(table, len(now.workers))


def _tiers(now: Snapshot) -> Table:
    tiers: defaultdict[str, _Tier] = defaultdict(_Tier)
    for worker in now.workers:
        for tier in worker.work.memory.tiers:
            row = tiers[tier.name]
            row.chunks, row.used_bytes = row.chunks + tier.chunks, row.used_bytes + tier.used_bytes
            row.capacity_bytes += tier.capacity_bytes
            row.lookups, row.hits = row.lookups + tier.lookups, row.hits + tier.hits
            row.fetches += tier.fetches
    table = _table("tiers", "tier", "chunks", "used", "capacity", "full", "lookups", "hits", "mean fetch")
    for name, row in tiers.items():
        table.add_row(
            name,
            str(row.chunks),
            size(row.used_bytes),
            size(row.capacity_bytes),
            _share(row.used_bytes, row.capacity_bytes),
            str(row.lookups),
            _share(row.hits, row.lookups),
            "-" if not row.fetches.count else f"{1000 * row.fetches.seconds / row.fetches.count:.1f} ms",
        )
    return table


def _tenants(now: Snapshot) -> Table:
    tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)
    for worker in now.workers:
        for count in worker.sessions:
            tenants[count.tenant].sessions += count.sessions if count.state == "running" else 0
        nearest = worker.work.memory.tiers[0].name if worker.work.memory.tiers else None
        for row in worker.work.memory.tenants:
            tenant = tenants[row.tenant]
            tenant.used_bytes, tenant.hits = tenant.used_bytes + row.used_bytes, tenant.hits + row.hits
            tenant.asked += row.lookups if row.tier == nearest else 0
    for queue in now.tenants:
        tenants[queue.tenant].queued += queue.queued
    table = _table("tenants", "tenant", "running", "queued", "used", "hits")
    for name, tenant in sorted(tenants.items())[:MOST_ROWS]:
        numbers = str(tenant.sessions), str(tenant.queued)
        table.add_row(name, *numbers, size(tenant.used_bytes), _share(tenant.hits, tenant.asked))
    return _cut_short(table, len(tenants))


def _jobs(now: Snapshot, before: Snapshot | None) -> Table:
    earlier = {job.job: job for job in before.jobs} if before is not None else {}
    seconds = now.taken_at - before.taken_at if before is not None else 0.0
    table = _table("jobs", "job", "tenant", "state", "episodes", "failed", "retried", "episodes/h", "last commit")
    for job in now.jobs[:MOST_ROWS]:
        table.add_row(
            job.job,
            job.tenant,
            job.state,
            f"{job.committed} of {job.episodes_wanted}",
            str(job.failed),
            str(job.retried),
            _number(_per_hour(job, earlier.get(job.job), seconds), 0),
            f"{job.idle_seconds:.0f} s ago" if job.state == "running" else "-",
        )
    return _cut_short(table, len(now.jobs))


def _pace(worker: WorkerSnapshot, before: Snapshot | None, now: Snapshot) -> float | None:
    """Video frames per second since `before`; None where there is nothing to compare with."""
    for was in before.workers if before is not None else ():
        if (was.worker, was.restarts) == (worker.worker, worker.restarts) and before is not None:
            seconds = now.taken_at - before.taken_at
            return (worker.work.video_frames - was.work.video_frames) / seconds if seconds > 0 else None
    return None


def _per_hour(job: JobSnapshot, was: JobSnapshot | None, seconds: float) -> float | None:
    return None if was is None or seconds <= 0 else 3600 * (job.committed - was.committed) / seconds


def _mean(durations: Durations) -> float | None:
    return durations.seconds / durations.count if durations.count else None


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _gpu(utilisation: float | None, celsius: float | None) -> str:
    return " ".join([] if utilisation is None else [f"{utilisation:.0%}"]) + (
        "" if celsius is None else f" {celsius:.0f} °C"
    )


def size(count: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < KIB:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= KIB
    return f"{count:.1f} TiB"


def _table(title: str, first: str, *rest: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in rest:
        table.add_column(name, no_wrap=True, justify="left" if name in ("node", "state", "tenant", "GPU") else "right")
    return table


def _cut_short(table: Table, rows: int) -> Table:
    if rows > MOST_ROWS:
        table.caption = f"and {rows - MOST_ROWS} more"
    return table
