"""Pages about the memory: what lies where, what moves, and whether it is there in time."""

from __future__ import annotations

from monitoring.panels import Dashboard, by, lines, quantile, rate, share

MEMORY = Dashboard(
    "worldkv-memory",
    "WorldKV: memory tiers",
    "Where chunks lie, what moves them, and how long that takes.",
    (
        by(
            "Hit rate by tier",
            "share",
            "Of what each tier was asked for. Tiers are asked in order: what one misses the next is asked for.",
            "{{tier}}",
            share("worldkv_tier_hits_total", "worldkv_tier_lookups_total", "tier"),
        ),
        by(
            "Lookups by tier",
            "per second",
            "Asked of each tier.",
            "{{tier}}",
            rate("worldkv_tier_lookups_total", "tier"),
        ),
        by(
            "Misses by tier and reason",
            "per second",
            "evicted in a near tier is normal where a further one has the chunk.",
            "{{tier}} {{reason}}",
            rate("worldkv_tier_misses_total", "tier reason"),
        ),
        lines(
            "Lookups, hits, misses",
            "per second",
            "Of the memory as a whole: lookups = hits + misses, always.",
            lookups=rate("worldkv_lookups_total"),
            hits=rate("worldkv_hits_total"),
            misses=rate("worldkv_misses_total"),
        ),
        by("Bytes in use", "bytes", "Never above the capacity.", "{{tier}}", "sum by (tier) (worldkv_tier_used_bytes)"),
        by("Capacity", "bytes", "Of each tier.", "{{tier}}", "sum by (tier) (worldkv_tier_capacity_bytes)"),
        by("Chunks held", "count", "In each tier.", "{{tier}}", "sum by (tier) (worldkv_tier_chunks)"),
        by(
            "Pinned",
            "share",
            "Of each tier, held and immovable. Near 1 nothing can make room.",
            "{{tier}}",
            "sum by (tier) (worldkv_tier_pinned_bytes) / sum by (tier) (worldkv_tier_capacity_bytes)",
        ),
        by(
            "Median fetch",
            "seconds",
            "By the tier that gave it.",
            "{{tier}}",
            quantile(0.5, "worldkv_chunk_fetch_seconds", "tier"),
        ),
        by(
            "p99 fetch",
            "seconds",
            "By the tier that gave it.",
            "{{tier}}",
            quantile(0.99, "worldkv_chunk_fetch_seconds", "tier"),
        ),
        by(
            "p99 transfer into a tier",
            "seconds",
            "Of one chunk.",
            "{{tier}}",
            quantile(0.99, "worldkv_chunk_write_seconds", "tier"),
        ),
        by(
            "Transferred into a tier",
            "bytes per second",
            "Payload.",
            "{{tier}}",
            rate("worldkv_tier_written_bytes_total", "tier"),
        ),
        by(
            "Chunks moved",
            "per second",
            "admitted: left a window. demoted, promoted: one tier down, up. dropped: gone for good.",
            "{{move}}",
            rate("worldkv_chunks_moved_total", "move"),
        ),
        by(
            "Bytes moved",
            "bytes per second",
            "As tiers count them.",
            "{{move}}",
            rate("worldkv_moved_bytes_total", "move"),
        ),
        lines(
            "Loss of detail and damage",
            "per second",
            "reduced: lost detail to make room. quarantined: found damaged.",
            reduced=rate("worldkv_chunks_reduced_total"),
            quarantined=rate("worldkv_chunks_quarantined_total"),
        ),
        by(
            "Failures",
            "per second",
            "Reads, writes, removals.",
            "{{tier}}",
            rate("worldkv_tier_failures_total", "tier"),
        ),
        lines(
            "Audits",
            "per second",
            "Any fault is a bug, or a tier that someone else has changed.",
            audits=rate("worldkv_audits_total"),
            faults=rate("worldkv_integrity_faults_total"),
        ),
        lines(
            "Replication",
            "seconds",
            "Age of the oldest chunk with too few durable copies.",
            lag="max(worldkv_replication_lag_seconds)",
        ),
        lines(
            "To be replicated",
            "bytes",
            "All chunks with too few durable copies.",
            pending="sum(worldkv_replication_pending_bytes)",
        ),
    ),
)

PREFETCH = Dashboard(
    "worldkv-prefetch",
    "WorldKV: prefetch",
    "Is what a camera will need there before it needs it?",
    (
        by(
            "What became of prefetches",
            "per second",
            "useful: it lay near when asked for. late: not begun in time. wasted: it left again unused.",
            "{{outcome}}",
            rate("worldkv_prefetch_outcomes_total", "outcome"),
            stacked=True,
        ),
        lines(
            "Useful",
            "share",
            "Of the prefetches whose outcome is known.",
            useful=share("worldkv_prefetch_outcomes_total", "worldkv_prefetch_outcomes_total", outcome="useful"),
        ),
        lines("Issued", "per second", "Chunks to be brought near.", issued=rate("worldkv_prefetch_issued_total")),
        lines("Bytes asked for", "bytes per second", "By prefetches.", asked=rate("worldkv_prefetch_bytes_total")),
        by(
            "Time stalled by worker",
            "share",
            "What prefetch is there to hide.",
            "{{worker}}",
            rate("worldkv_stall_seconds_total", "worker"),
        ),
        lines(
            "Retrieval",
            "seconds",
            "Choosing chunks and bringing them back, for one chunk of one batch.",
            median="histogram_quantile(0.5, sum by (le) "
            '(rate(worldkv_stage_seconds_bucket{stage="retrieve"}[$__rate_interval])))',
            p99="histogram_quantile(0.99, sum by (le) "
            '(rate(worldkv_stage_seconds_bucket{stage="retrieve"}[$__rate_interval])))',
        ),
        lines(
            "Chunks for windows",
            "per second",
            "missed: windows were shorter by these.",
            retrieved=rate("worldkv_chunks_retrieved_total"),
            missed=rate("worldkv_chunks_missed_total"),
        ),
    ),
)
