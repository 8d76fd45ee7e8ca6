"""The six dashboards. What each metric means stands in the table; here is which question a picture answers."""

from __future__ import annotations

from monitoring.boards_memory import MEMORY, PREFETCH
from monitoring.boards_work import JOBS, TENANTS, WORKERS
from monitoring.panels import Dashboard, by, lines, number, quantile, rate, share

OVERVIEW = Dashboard(
    "worldkv-overview",
    "WorldKV: overview",
    "Do the worlds remember, and are they made fast enough?",
    (
        number(
            "Hit rate",
            "share",
            "Of the chunks that cameras needed back, how many the memory gave. Below 0.9 worlds begin to forget.",
            share("worldkv_hits_total", "worldkv_lookups_total"),
        ),
        number("Video frames per second", "per second", "Made, by all workers.", rate("worldkv_video_frames_total")),
        number("Running sessions", "count", "Worlds under way.", 'sum(worldkv_sessions{state="running"})'),
        number("Workers ready", "count", "Able to make chunks.", 'sum(worldkv_workers{state="ready"})'),
        by(
            "Hits by tier",
            "per second",
            "Where the memory found what was needed: the further down, the longer it took.",
            "{{tier}}",
            rate("worldkv_tier_hits_total", "tier"),
            stacked=True,
        ),
        by(
            "Misses by reason",
            "per second",
            "Each costs fidelity. corrupt and stale_epoch are never normal.",
            "{{reason}}",
            rate("worldkv_misses_total", "reason"),
            stacked=True,
        ),
        lines(
            "Seconds per chunk",
            "seconds",
            "Flat however long a rollout is; a rise means stalls or a slower GPU.",
            median=quantile(0.5, "worldkv_chunk_seconds"),
            p99=quantile(0.99, "worldkv_chunk_seconds"),
        ),
        lines(
            "Time stalled",
            "share",
            "Share of its time in which a worker computed nothing because chunks were being brought back.",
            mean="avg(rate(worldkv_stall_seconds_total[$__rate_interval]))",
            worst="max(rate(worldkv_stall_seconds_total[$__rate_interval]))",
        ),
        lines(
            "Revisit fidelity",
            "decibels",
            "PSNR of chunks that remembered something, where the truth is known. Forgetting shows as 17 to 20 dB.",
            mean="avg(worldkv_revisit_psnr_decibels)",
            worst="min(worldkv_revisit_psnr_decibels)",
        ),
        by(
            "Fill of the tiers",
            "share",
            "Near 1 is normal for all but the last tier: chunks then move down.",
            "{{tier}}",
            "sum by (tier) (worldkv_tier_used_bytes) / sum by (tier) (worldkv_tier_capacity_bytes)",
        ),
        by(
            "Episodes",
            "per second",
            "What jobs bring into the dataset.",
            "{{outcome}}",
            rate("worldkv_episodes_total", "outcome"),
        ),
        lines(
            "Age of the figures",
            "seconds",
            "Of everything here. Grows when whoever gathers it has stopped.",
            seconds="time() - max(worldkv_snapshot_timestamp_seconds)",
        ),
    ),
)

DASHBOARDS = (OVERVIEW, MEMORY, PREFETCH, TENANTS, WORKERS, JOBS)
