"""The alert rules, and for each what it means and what to do: rules and runbook are made from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Alert:
    """One rule."""

    name: str
    expr: str
    lasts: str
    """How long the expression must hold, as Prometheus writes durations."""
    severity: Literal["page", "ticket"]
    """page: worlds are wrong or lost now. ticket: they will be."""
    summary: str
    """One line; `{{ $labels.x }}` and `{{ $value }}` are filled in."""
    means: str
    do: str


# Fewer lookups than that tell nothing: one miss would be an alert.
BUSY = "sum(rate(worldkv_lookups_total[5m])) > 0.05"

ALERTS = (
    Alert(
        "WorldKVHitRateCollapse",
        f"sum(rate(worldkv_hits_total[5m])) / sum(rate(worldkv_lookups_total[5m])) < 0.8 and {BUSY}",
        "5m",
        "page",
        "Only {{ $value | humanizePercentage }} of the chunks that worlds need back are there",
        "Worlds forget: chunks were dropped, damaged or made by other weights before their cameras returned.",
        "Look at Misses by reason. evicted: enlarge the last tier, or run fewer sessions. corrupt, stale_epoch: see "
        "those alerts.",
    ),
    Alert(
        "WorldKVStall",
        "sum by (worker) (rate(worldkv_stall_seconds_total[5m])) > 0.2",
        "5m",
        "ticket",
        "Worker {{ $labels.worker }} spends {{ $value | humanizePercentage }} of its time waiting for chunks",
        "GPUs idle while chunks are brought back from a slow tier.",
        "Look at p99 fetch by tier. Enlarge the tier above the slow one, or prefetch earlier.",
    ),
    Alert(
        "WorldKVTierNearCap",
        "sum by (tier) (worldkv_tier_used_bytes) / sum by (tier) (worldkv_tier_capacity_bytes) > 0.95 "
        'and on () sum(rate(worldkv_chunks_moved_total{move="dropped"}[15m])) > 0',
        "15m",
        "ticket",
        "Tier {{ $labels.tier }} is {{ $value | humanizePercentage }} full, and chunks are dropped for good",
        "The tiers together no longer hold what sessions still refer to. A full near tier alone is normal.",
        "Enlarge the last tier, add one, let it lose detail (memory.tiers.N.detail), or lower the number of sessions.",
    ),
    Alert(
        "WorldKVPinned",
        "sum by (tier) (worldkv_tier_pinned_bytes) / sum by (tier) (worldkv_tier_capacity_bytes) > 0.9",
        "10m",
        "ticket",
        "{{ $value | humanizePercentage }} of tier {{ $labels.tier }} is held and cannot make room",
        "Pins or leases are not given back, or the tier is too small for the sessions that run at once.",
        "Compare with the number of sessions. Where they are few, a lease is leaking: restart the worker, report it.",
    ),
    Alert(
        "WorldKVCorruptChunk",
        "sum(increase(worldkv_chunks_quarantined_total[10m])) > 0",
        "0m",
        "page",
        "{{ $value | humanize }} damaged chunks were taken out of their tiers in 10 minutes",
        "Bytes changed where they lay: a failing disk, memory without ECC, or someone who writes into the folder.",
        "The pieces lie in `quarantine/` of their tier. `worldkv inspect FOLDER --verify` reads all others; replace "
        "the medium. No wrong picture was made: a damaged chunk is a miss.",
    ),
    Alert(
        "WorldKVIntegrityFault",
        "sum(increase(worldkv_integrity_faults_total[30m])) > 0",
        "0m",
        "ticket",
        "Audits of the books found {{ $value | humanize }} faults in 30 minutes",
        "A bug, or a tier's folder that another process has changed.",
        "The run prints each fault once. Make sure that no two runs share a tier's folder; otherwise report it with "
        "that line.",
    ),
    Alert(
        "WorldKVStaleEpochStorm",
        'sum(rate(worldkv_misses_total{reason="stale_epoch"}[5m])) / sum(rate(worldkv_lookups_total[5m])) > 0.05 '
        f"and {BUSY}",
        "5m",
        "page",
        "{{ $value | humanizePercentage }} of all lookups ask for chunks of other weights",
        "Weights were changed under running sessions, or workers with different weights share a memory.",
        "Let the sessions of the old weights end, or give each model a memory of its own.",
    ),
    Alert(
        "WorldKVQuotaStarvation",
        'sum by (tenant) (rate(worldkv_tier_misses_total{reason="quota"}[10m])) '
        "/ sum by (tenant) (rate(worldkv_tier_lookups_total[10m])) > 0.1",
        "10m",
        "ticket",
        "Tenant {{ $labels.tenant }} misses {{ $value | humanizePercentage }} of its lookups for its own limit",
        "The tenant's worlds are larger than what it may store.",
        "Raise its limit (memory.shares), or let it run fewer sessions at once.",
    ),
    Alert(
        "WorldKVTierFailing",
        "sum by (tier) (rate(worldkv_tier_failures_total[5m])) > 0",
        "5m",
        "ticket",
        "Tier {{ $labels.tier }} fails {{ $value | humanize }} times per second",
        "Reads, writes or removals fail: disk full, network away, rights changed. Chunks go elsewhere or are missed.",
        "Look at the run's warnings and the medium. The tier is used again by itself once it works.",
    ),
    Alert(
        "WorldKVFetchSlow",
        "histogram_quantile(0.99, sum by (le, tier) (rate(worldkv_chunk_fetch_seconds_bucket[10m]))) > 1",
        "10m",
        "ticket",
        "One in a hundred chunks of tier {{ $labels.tier }} takes {{ $value | humanizeDuration }} to come",
        "A disk or network is overloaded or degraded.",
        "Look at Transferred into a tier and at the medium. A larger tier above takes the load off.",
    ),
    Alert(
        "WorldKVPrefetchUseless",
        'sum(rate(worldkv_prefetch_outcomes_total{outcome="useful"}[15m])) '
        "/ sum(rate(worldkv_prefetch_outcomes_total[15m])) < 0.5 "
        "and on () sum(rate(worldkv_prefetch_issued_total[15m])) > 0.05",
        "15m",
        "ticket",
        "Only {{ $value | humanizePercentage }} of prefetched chunks are used",
        "The forecast of poses is wrong, or chunks come too late or leave too early.",
        "late: the link is too slow or the horizon too short. wasted: tier 0 is too small, or the camera is not where "
        "it was expected.",
    ),
    Alert(
        "WorldKVFidelityLow",
        "min by (worker) (worldkv_revisit_psnr_decibels) < 22",
        "10m",
        "ticket",
        "Worker {{ $labels.worker }} shows revisited places at {{ $value | humanize }} dB",
        "Remembered places no longer look as they did: too much detail was taken, or the wrong chunks come back.",
        "Compare with `worldkv eval`. Look at Loss of detail; check that all workers have the same weights.",
    ),
    Alert(
        "WorldKVWorkerFlapping",
        "sum by (worker) (increase(worldkv_worker_restarts_total[15m])) > 2",
        "0m",
        "page",
        "Worker {{ $labels.worker }} was restarted {{ $value | humanize }} times in 15 minutes",
        "It dies soon after it starts: out of memory, a broken GPU, or a session that kills it.",
        "Read its last lines. The same session each time: cancel that job. Several workers of a node: drain the node.",
    ),
    Alert(
        "WorldKVWorkerLost",
        'sum(worldkv_workers{state="lost"}) > 0',
        "5m",
        "page",
        "{{ $value | humanize }} workers send no figures",
        "A process hangs, or its node is gone.",
        "Look at Age of a worker's figures. Sessions go on elsewhere from their last checkpoint.",
    ),
    Alert(
        "WorldKVReplicationBehind",
        "max(worldkv_replication_lag_seconds) > 300",
        "5m",
        "ticket",
        "The oldest chunk with too few durable copies is {{ $value | humanizeDuration }} old",
        "Were its node lost now, worlds would forget what it held.",
        "Look at To be replicated: growing means that the durable tier is slower than what is made.",
    ),
    Alert(
        "WorldKVJobStuck",
        "max by (tenant) (worldkv_job_idle_seconds) > 1800",
        "5m",
        "page",
        "A job of tenant {{ $labels.tenant }} has committed nothing for {{ $value | humanizeDuration }}",
        "Its rollouts neither end nor fail, or nothing runs them.",
        "Ask for the state of its jobs: no worker may be ready, or one episode is retried again and again.",
    ),
    Alert(
        "WorldKVQueueStarved",
        "max by (tenant) (worldkv_tenant_oldest_wait_seconds) > 900",
        "5m",
        "ticket",
        "A rollout of tenant {{ $labels.tenant }} has waited {{ $value | humanizeDuration }} for a worker",
        "Too few workers, or other tenants take all of them.",
        "Compare Sessions by tenant with their shares; add workers.",
    ),
    Alert(
        "WorldKVGpuThrottled",
        'max by (node, gpu, worker, reason) (worldkv_gpu_throttled{reason!="power_cap"}) == 1',
        "10m",
        "ticket",
        "GPU {{ $labels.gpu }} of {{ $labels.node }} is held down: {{ $labels.reason }}",
        "Heat or power supply slow it down; every session on it is slower. Running at its power cap is normal.",
        "Look at Temperature and Power of the node; drain it if it lasts.",
    ),
    Alert(
        "WorldKVGpuMemoryErrors",
        'sum by (node, gpu) (increase(worldkv_gpu_ecc_errors_total{severity="uncorrected"}[1h])) > 0',
        "0m",
        "page",
        "GPU {{ $labels.gpu }} of {{ $labels.node }} had uncorrected memory errors",
        "What was computed or stored there may be wrong: digests guard chunks at rest, nothing guards weights.",
        "Drain the node, reset the GPU, have it replaced if they come back.",
    ),
    Alert(
        "WorldKVFiguresStale",
        "time() - max(worldkv_snapshot_timestamp_seconds) > 60",
        "1m",
        "page",
        "All figures are {{ $value | humanizeDuration }} old",
        "Whoever gathers them has stopped; every other alert is blind.",
        "Look at the process that runs the exporter.",
    ),
    Alert(
        "WorldKVExporterGone",
        'up{job="worldkv"} == 0',
        "1m",
        "page",
        "{{ $labels.instance }} cannot be scraped",
        "The exporter's process or node is gone, or it refuses the token.",
        "Ask it: `curl -i http://INSTANCE/healthz`; 401 from /metrics means a wrong token.",
    ),
)
