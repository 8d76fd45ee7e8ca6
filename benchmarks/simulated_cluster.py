"""Snapshots of a cluster that is not there: what its workers would tell after so many minutes, healthy or in trouble.

A pure function of time and trouble, for the scrape benchmark, the scenarios of alerts and unit tests. Everything that
it says adds up: `lookups = hits + misses` in each tier and tenant.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from monitoring.snapshot import GpuStats, JobSnapshot, SessionCount, Snapshot, TenantSnapshot, WorkerSnapshot
from worldkv.stats import (
    MISS_REASONS,
    SECONDS_BOUNDS,
    Durations,
    MemoryStats,
    PrefetchStats,
    TenantStats,
    TierStats,
    WorkStats,
)

START = 1_790_000_000.0
"""Unix seconds of minute 0."""
GIB = 2**30
TIERS = {"device": 8 * GIB, "host": 64 * GIB, "disk": 512 * GIB, "durable": 4096 * GIB}
CHUNK_BYTES, CHUNK_SECONDS, FRAMES_PER_CHUNK = 32 * 2**20, 0.8, 12
LOOKUPS_PER_MINUTE, CHUNKS_PER_MINUTE = 300, 75
# Of what a tier is asked for, what it has.
HIT_RATIOS = {"device": 0.5, "host": 0.8, "disk": 0.9}
STAGE_RATIOS = {"assemble": 0.05, "denoise": 0.6, "clean pass": 0.15, "compress and admit": 0.05, "decode": 0.1}


@dataclass(frozen=True)
class Trouble:
    """What is wrong; as it stands, nothing. Rates are per minute and worker."""

    hit_ratio: float = 0.99
    miss_reason: str = "evicted"
    quota_ratio: float = 0.0
    """Of the lookups of the first tier, by the first tenant: misses for its limit."""
    stall_ratio: float = 0.03
    fill_ratio: float = 0.7
    """Of the last tier; those before it are full."""
    dropped: float = 0.0
    pinned_ratio: float = 0.2
    quarantined: float = 0.0
    faults: float = 0.0
    failures: float = 0.0
    fetch_seconds: Mapping[str, float] = field(
        default_factory=lambda: {"device": 1e-4, "host": 5e-3, "disk": 0.05, "durable": 0.3}
    )
    prefetch_useful_ratio: float = 0.9
    fidelity_db: float = 37.0
    restarts: float = 0.0
    """Of the first worker alone; so are the next two."""
    state: str = "ready"
    throttled: tuple[str, ...] = ("power_cap",)
    ecc_uncorrected: float = 0.0
    replication_lag_seconds: float = 5.0
    job_idle_seconds: float = 30.0
    oldest_wait_seconds: float = 20.0
    stopped_at: float | None = None
    """No figures are gathered after this minute."""


HEALTHY = Trouble()


def durations(count: int, each_seconds: float) -> Durations:
    """So many of the same length."""
    counts = [0] * (len(SECONDS_BOUNDS) + 1)
    counts[bisect_left(SECONDS_BOUNDS, each_seconds)] = count
    return Durations(tuple(counts), count * each_seconds)


def snapshot(
    minute: float, trouble: Trouble = HEALTHY, *, workers: int = 4, tenants: tuple[str, ...] = ("lab", "studio")
) -> Snapshot:
    """The cluster at this minute."""
    minute = minute if trouble.stopped_at is None else min(minute, trouble.stopped_at)
    jobs = [_job(f"job-{i}", tenant, minute, trouble) for i, tenant in enumerate(tenants)]
    return Snapshot(
        taken_at=START + 60 * minute,
        workers=tuple(_worker(i, minute, trouble, tenants) for i in range(workers)),
        tenants=tuple(_tenant(tenant, minute, trouble) for tenant in tenants),
        jobs=tuple(jobs),
        replication_lag_seconds=trouble.replication_lag_seconds,
        replication_pending_bytes=int(trouble.replication_lag_seconds * CHUNK_BYTES),
        exporters=tuple(f"10.0.0.{i}:9464" for i in range(1, 1 + (workers + 7) // 8)),
    )


def _tenant(tenant: str, minute: float, trouble: Trouble) -> TenantSnapshot:
    return TenantSnapshot(
        tenant,
        queued=3,
        oldest_wait_seconds=trouble.oldest_wait_seconds,
        waits=durations(int(minute), 2.0),
        limit_bytes={"host": 32 * GIB, "disk": 256 * GIB},
    )


def _job(job: str, tenant: str, minute: float, trouble: Trouble) -> JobSnapshot:
    committed = int(2 * minute)
    return JobSnapshot(
        job, tenant, "running", 100_000, committed, committed // 50, committed // 20, trouble.job_idle_seconds
    )


def _worker(index: int, minute: float, trouble: Trouble, tenants: tuple[str, ...]) -> WorkerSnapshot:
    first = index == 0
    restarts = int(trouble.restarts * minute) if first else 0
    alive = minute - restarts / trouble.restarts if restarts else minute
    gpu = GpuStats(
        index=index % 8,
        name="simulated",
        utilisation_ratio=0.9,
        memory_used_bytes=60 * GIB,
        memory_total_bytes=80 * GIB,
        power_watts=640.0,
        temperature_celsius=61.0,
        pcie_sent_bytes=int(minute * GIB),
        pcie_received_bytes=int(2 * minute * GIB),
        nvlink_sent_bytes=int(minute * GIB),
        nvlink_received_bytes=int(minute * GIB),
        ecc_corrected=int(minute / 100),
        ecc_uncorrected=int(trouble.ecc_uncorrected * minute) if first else 0,
        throttled=trouble.throttled if first else (),
    )
    return WorkerSnapshot(
        f"worker-{index}",
        f"node-{index // 8}",
        "lingbot",
        _work(alive, trouble, tenants),
        state=trouble.state if first else "ready",
        restarts=restarts,
        sessions=tuple(SessionCount(tenant, "running", 2) for tenant in tenants),
        gpus=(gpu,),
        age_seconds=1.0,
    )


def _work(minutes: float, trouble: Trouble, tenants: tuple[str, ...]) -> WorkStats:
    chunks = int(CHUNKS_PER_MINUTE * minutes)
    stages = {stage: durations(chunks, ratio * CHUNK_SECONDS) for stage, ratio in STAGE_RATIOS.items()}
    stages["retrieve"] = durations(chunks, trouble.stall_ratio * CHUNK_SECONDS)
    memory = _memory(minutes, trouble, tenants)
    return WorkStats(
        memory=memory,
        stages=stages,
        chunks=durations(chunks, CHUNK_SECONDS),
        chunks_generated=chunks,
        video_frames=FRAMES_PER_CHUNK * chunks,
        chunks_retrieved=memory.hits,
        chunks_missed=memory.lookups - memory.hits,
        fidelity_db=trouble.fidelity_db,
    )


def _memory(minutes: float, trouble: Trouble, tenants: tuple[str, ...]) -> MemoryStats:
    rows, missed = [], 0
    for place, tenant in enumerate(tenants):
        part, lost = _tenant_rows(tenant, minutes, trouble, len(tenants), quota=place == 0)
        rows, missed = rows + part, missed + lost
    tiers = tuple(_tier(name, rows, minutes, trouble) for name in TIERS)
    lookups = sum(row.lookups for row in rows if row.tier == "device")
    moved, prefetched = int(CHUNKS_PER_MINUTE * minutes), int(30 * minutes)
    useful = int(trouble.prefetch_useful_ratio * prefetched)
    dropped = int(trouble.dropped * minutes)
    return MemoryStats(
        lookups=lookups,
        hits=lookups - missed,
        misses=_only(trouble.miss_reason, missed),
        admitted=moved,
        admitted_bytes=moved * CHUNK_BYTES,
        demoted=moved,
        demoted_bytes=moved * CHUNK_BYTES,
        promoted=moved // 2,
        promoted_bytes=moved // 2 * CHUNK_BYTES,
        dropped=dropped,
        dropped_bytes=dropped * CHUNK_BYTES,
        quarantined=int(trouble.quarantined * minutes),
        audits=int(6 * minutes),
        faults=int(trouble.faults * minutes),
        prefetch=PrefetchStats(prefetched, prefetched * CHUNK_BYTES, useful, 0, prefetched - useful),
        tiers=tiers,
        tenants=tuple(rows),
    )


def _tenant_rows(
    tenant: str, minutes: float, trouble: Trouble, tenants: int, *, quota: bool
) -> tuple[list[TenantStats], int]:
    """Its rows, nearest tier first, and the lookups that no tier could answer."""
    asked, rows = int(LOOKUPS_PER_MINUTE * minutes / tenants), []
    lost = int((1 - trouble.hit_ratio) * asked)
    for tier, capacity in TIERS.items():
        hits = int(HIT_RATIOS[tier] * (asked - lost)) if tier in HIT_RATIOS else asked - lost
        for_quota = min(int(trouble.quota_ratio * asked), asked - hits) if quota and tier == "device" else 0
        misses = _only(trouble.miss_reason if tier == "durable" else "evicted", asked - hits - for_quota)
        used = int(capacity * (trouble.fill_ratio if tier == "durable" else 1.0) / tenants)
        misses["quota"] += for_quota
        rows.append(TenantStats(tenant, tier, used // CHUNK_BYTES, used, hits, asked, misses))
        asked -= hits
    return rows, lost


def _tier(name: str, rows: list[TenantStats], minutes: float, trouble: Trouble) -> TierStats:
    here = [row for row in rows if row.tier == name]
    hits, written = sum(row.hits for row in here), int(CHUNKS_PER_MINUTE * minutes)
    return TierStats(
        name=name,
        chunks=sum(row.chunks for row in here),
        used_bytes=sum(row.used_bytes for row in here),
        capacity_bytes=TIERS[name],
        hits=hits,
        lookups=sum(row.lookups for row in here),
        misses={reason: sum(row.misses[reason] for row in here) for reason in MISS_REASONS},
        failures=int(trouble.failures * minutes) if name == "disk" else 0,
        pinned_bytes=int(trouble.pinned_ratio * TIERS[name]) if name == "device" else 0,
        fetches=durations(hits, trouble.fetch_seconds[name]),
        writes=durations(written, trouble.fetch_seconds[name]),
        written_bytes=written * CHUNK_BYTES,
    )


def _only(reason: str, count: int) -> dict[str, int]:
    return {**dict.fromkeys(MISS_REASONS, 0), reason: count}
