"""Pages about the work: who gets what, which worker is slow, when the data will be there."""

from __future__ import annotations

from monitoring.panels import Dashboard, by, quantile, rate

TENANTS = Dashboard(
    "worldkv-tenants",
    "WorldKV: tenants",
    "Does everybody get their share?",
    (
        by(
            "Hit rate",
            "share",
            "Hits in any tier over lookups of the first one: what a tenant's cameras needed back and got.",
            "{{tenant}}",
            "sum by (tenant) (rate(worldkv_tier_hits_total[$__rate_interval])) / "
            "max by (tenant) (sum by (tenant, tier) (rate(worldkv_tier_lookups_total[$__rate_interval])))",
        ),
        by(
            "Bytes by tenant and tier",
            "bytes",
            "What each tenant's chunks take up.",
            "{{tenant}} {{tier}}",
            "sum by (tenant, tier) (worldkv_tenant_used_bytes)",
            stacked=True,
        ),
        by(
            "Use of the limit",
            "share",
            "At 1 a tenant's new chunks push out its own old ones.",
            "{{tenant}} {{tier}}",
            "sum by (tenant, tier) (worldkv_tenant_used_bytes) / sum by (tenant, tier) (worldkv_tenant_limit_bytes)",
        ),
        by(
            "Misses for the limit",
            "per second",
            "Chunks that had to go because their tenant was at its limit.",
            "{{tenant}}",
            rate("worldkv_tier_misses_total", "tenant", reason="quota"),
        ),
        by(
            "Queue",
            "count",
            "Rollouts that wait for a worker.",
            "{{tenant}}",
            "sum by (tenant) (worldkv_tenant_queued)",
        ),
        by(
            "Longest wait now",
            "seconds",
            "Of the first in each queue.",
            "{{tenant}}",
            "max by (tenant) (worldkv_tenant_oldest_wait_seconds)",
        ),
        by(
            "p95 wait",
            "seconds",
            "Of rollouts that were begun.",
            "{{tenant}}",
            quantile(0.95, "worldkv_tenant_wait_seconds", "tenant"),
        ),
        by(
            "Sessions",
            "count",
            "By state.",
            "{{tenant}} {{state}}",
            "sum by (tenant, state) (worldkv_sessions)",
            stacked=True,
        ),
        by(
            "Episodes",
            "per second",
            "By what became of them.",
            "{{tenant}} {{outcome}}",
            rate("worldkv_episodes_total", "tenant outcome"),
        ),
    ),
)

GPU_LEGEND = "{{node}}/{{gpu}} {{worker}}"

WORKERS = Dashboard(
    "worldkv-workers",
    "WorldKV: workers and GPUs",
    "Which worker is slow, and is it the GPU?",
    (
        by(
            "Video frames per second",
            "per second",
            "By worker.",
            "{{worker}}",
            rate("worldkv_video_frames_total", "worker"),
        ),
        by(
            "Chunks per second",
            "per second",
            "By worker.",
            "{{worker}}",
            rate("worldkv_chunks_generated_total", "worker"),
        ),
        by(
            "Workers by state",
            "count",
            "lost: no figures from it.",
            "{{state}}",
            "sum by (state) (worldkv_workers)",
            stacked=True,
        ),
        by(
            "Workers by model and node",
            "count",
            "Where which model is served.",
            "{{model}} {{node}}",
            "count by (model, node) (worldkv_worker_info)",
            stacked=True,
        ),
        by(
            "Restarts",
            "count",
            "In the last hour.",
            "{{worker}}",
            "sum by (worker) (increase(worldkv_worker_restarts_total[1h]))",
        ),
        by(
            "Age of a worker's figures",
            "seconds",
            "Grows for a worker that hangs.",
            "{{worker}}",
            "max by (worker) (worldkv_worker_age_seconds)",
        ),
        by(
            "Time by stage",
            "share",
            "Of the time of all workers; the rest is waiting for work.",
            "{{stage}}",
            "sum by (stage) (rate(worldkv_stage_seconds_sum[$__rate_interval])) / "
            'scalar(sum(worldkv_workers{state="ready"}))',
            stacked=True,
        ),
        by(
            "p99 by stage",
            "seconds",
            "For one chunk of one batch.",
            "{{stage}}",
            quantile(0.99, "worldkv_stage_seconds", "stage"),
        ),
        by(
            "p99 seconds per chunk",
            "seconds",
            "By model.",
            "{{model}}",
            quantile(0.99, "worldkv_chunk_seconds", "model"),
        ),
        by(
            "Utilisation", "share", "Of the time, with any kernel running.", GPU_LEGEND, "worldkv_gpu_utilisation_ratio"
        ),
        by(
            "GPU memory",
            "share",
            "Used by anyone.",
            GPU_LEGEND,
            "worldkv_gpu_memory_used_bytes / worldkv_gpu_memory_capacity_bytes",
        ),
        by("Power", "watts", "Drawn.", GPU_LEGEND, "worldkv_gpu_power_watts"),
        by("Temperature", "celsius", "Of the chip.", GPU_LEGEND, "worldkv_gpu_temperature_celsius"),
        by(
            "PCIe",
            "bytes per second",
            "By direction.",
            GPU_LEGEND + " {{direction}}",
            "rate(worldkv_gpu_pcie_bytes_total[$__rate_interval])",
        ),
        by(
            "NVLink",
            "bytes per second",
            "By direction.",
            GPU_LEGEND + " {{direction}}",
            "rate(worldkv_gpu_nvlink_bytes_total[$__rate_interval])",
        ),
        by(
            "Memory errors",
            "count",
            "In the last hour. Uncorrected ones end processes.",
            GPU_LEGEND + " {{severity}}",
            "increase(worldkv_gpu_ecc_errors_total[1h])",
        ),
        by(
            "Clocks held down",
            "count",
            "1 while it lasts. power_cap is normal under full load.",
            GPU_LEGEND + " {{reason}}",
            "worldkv_gpu_throttled",
        ),
    ),
)

JOBS = Dashboard(
    "worldkv-jobs",
    "WorldKV: jobs",
    "When will the data be there?",
    (
        by("Jobs by state", "count", "Over all tenants.", "{{state}}", "sum by (state) (worldkv_jobs)", stacked=True),
        by(
            "Jobs by tenant",
            "count",
            "Not over yet.",
            "{{tenant}} {{state}}",
            'sum by (tenant, state) (worldkv_jobs{state=~"queued|running"})',
        ),
        by(
            "Episodes",
            "per second",
            "By what became of them.",
            "{{outcome}}",
            rate("worldkv_episodes_total", "outcome"),
        ),
        by(
            "Episodes committed",
            "count",
            "So far, by tenant.",
            "{{tenant}}",
            'sum by (tenant) (worldkv_episodes_total{outcome="committed"})',
        ),
        by(
            "Episodes wanted",
            "count",
            "By jobs that are not over.",
            "{{tenant}}",
            "sum by (tenant) (worldkv_episodes_wanted)",
        ),
        by(
            "Failed and retried",
            "share",
            "Of all episodes that ended.",
            "{{outcome}}",
            'sum by (outcome) (rate(worldkv_episodes_total{outcome!="committed"}[$__rate_interval])) / '
            "scalar(sum(rate(worldkv_episodes_total[$__rate_interval])))",
        ),
        by(
            "Time without a commit",
            "seconds",
            "Of the running job that has committed nothing for longest.",
            "{{tenant}}",
            "max by (tenant) (worldkv_job_idle_seconds)",
        ),
    ),
)
