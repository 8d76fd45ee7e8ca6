"""The table of all metrics: exporter, documentation, dashboards and alert rules know a metric from here or not at all.

- A metric reads one kind of part of a snapshot (`per`); samples with equal labels are added up, or the largest is kept.
- Labels come from LABELS: sets that have an end. What has none (session, rollout, chunk, job) belongs into logs.
- `lookups = hits + sum over reasons of misses`, in every tier and tenant, and in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monitoring import readings as of

Kind = Literal["counter", "gauge", "histogram"]
Per = Literal["worker", "tenant", "job", "snapshot"]
"""A part of a snapshot."""

LABELS = {
    "tier": "a tier of the configuration",
    "tenant": "a tenant of the configuration",
    "model": "a model that is served",
    "worker": "a worker's slot",
    "node": "a machine",
    "gpu": "the index of a GPU on its node",
    "stage": "a stage of a rollout",
    "reason": "why a lookup missed, or why a GPU is slowed down",
    "state": "the state of a worker, session or job",
    "move": "admitted, demoted, promoted or dropped",
    "outcome": "what became of a prefetch or of an episode",
    "direction": "sent or received, as the GPU sees it",
    "severity": "of memory errors: corrected or uncorrected",
}
"""Every label that a metric may have, and the set from which its values come."""
UNITS = ("bytes", "seconds", "ratio", "watts", "celsius", "decibels")


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    """As one asks for it: with `_total` for counters; without `_bucket`, `_sum` and `_count` for histograms."""
    kind: Kind
    labels: tuple[str, ...]
    per: Per
    """What `read` is given."""
    read: of.Read
    help: str
    largest: bool = False
    """Of samples with equal labels keep the largest, instead of adding them up."""

    @property
    def family(self) -> str:
        """The name without `_total`."""
        return self.name.removesuffix("_total")

    @property
    def unit(self) -> str:
        """One of UNITS, or nothing where things are counted."""
        last = self.family.rpartition("_")[2]
        return last if last in UNITS else ""


def counter(name: str, labels: str, read: of.Read, help: str, per: Per = "worker") -> Metric:
    """A row for what only grows, but for restarts."""
    return Metric(name, "counter", tuple(labels.split()), per, read, help)


def gauge(name: str, labels: str, read: of.Read, help: str, per: Per = "worker", *, largest: bool = False) -> Metric:
    """A row for what goes up and down."""
    return Metric(name, "gauge", tuple(labels.split()), per, read, help, largest)


def histogram(name: str, labels: str, read: of.Read, help: str, per: Per = "worker") -> Metric:
    """A row for how long things took."""
    return Metric(name, "histogram", tuple(labels.split()), per, read, help)


GPU = "node gpu worker"

TABLE: tuple[Metric, ...] = (
    counter("worldkv_lookups_total", "", of.memory("lookups"), "Chunks asked for."),
    counter("worldkv_hits_total", "", of.memory("hits"), "Chunks that some tier gave."),
    counter("worldkv_misses_total", "reason", of.misses, "Chunks that no tier gave. lookups = hits + misses."),
    counter(
        "worldkv_tier_lookups_total",
        "tier tenant",
        of.shares("lookups"),
        "Chunks that a tier was asked for; tiers are asked in order until one has it.",
    ),
    counter("worldkv_tier_hits_total", "tier tenant", of.shares("hits"), "Chunks that this tier gave."),
    counter(
        "worldkv_tier_misses_total",
        "tier tenant reason",
        of.misses_of_tiers,
        "Chunks that this tier could not give. lookups = hits + misses, for each tier and tenant.",
    ),
    gauge(
        "worldkv_tier_used_bytes",
        "tier",
        of.tiers("used_bytes"),
        "Bytes in use, those of chunks on their way in included.",
    ),
    gauge("worldkv_tier_capacity_bytes", "tier", of.tiers("capacity_bytes"), "Bytes that are never passed."),
    gauge(
        "worldkv_tier_pinned_bytes",
        "tier",
        of.tiers("pinned_bytes"),
        "Bytes of chunks that are held and can neither move nor go.",
    ),
    gauge("worldkv_tier_chunks", "tier", of.tiers("chunks"), "Chunks held."),
    counter(
        "worldkv_tier_failures_total",
        "tier",
        of.tiers("failures"),
        "Reads, writes and removals that failed; each was retried elsewhere or became a miss.",
    ),
    gauge("worldkv_tenant_used_bytes", "tier tenant", of.shares("used_bytes"), "Bytes that a tenant's chunks take up."),
    counter(
        "worldkv_chunks_moved_total",
        "move",
        of.moves(""),
        "Chunks that came in, went to a colder tier, to a warmer one, or for good.",
    ),
    counter("worldkv_moved_bytes_total", "move", of.moves("_bytes"), "Bytes of these, as tiers count them."),
    counter("worldkv_chunks_reduced_total", "", of.memory("reduced"), "Chunks that lost detail to make room."),
    counter(
        "worldkv_chunks_quarantined_total",
        "",
        of.memory("quarantined"),
        "Pieces taken out of a tier because they were damaged.",
    ),
    counter("worldkv_audits_total", "", of.memory("audits"), "Audits of the books."),
    counter(
        "worldkv_integrity_faults_total",
        "",
        of.memory("faults"),
        "Faults that audits found: bugs, or tiers that someone else has changed.",
    ),
    histogram(
        "worldkv_chunk_fetch_seconds",
        "tier",
        of.tiers("fetches"),
        "From asking for a chunk to having it, by the tier that gave it.",
    ),
    histogram("worldkv_chunk_write_seconds", "tier", of.tiers("writes"), "Transfer of one chunk into a tier."),
    counter("worldkv_tier_written_bytes_total", "tier", of.tiers("written_bytes"), "Payload transferred into a tier."),
    # Prefetch.
    counter(
        "worldkv_prefetch_issued_total",
        "",
        of.prefetch_count("issued"),
        "Chunks that were to be near before they are asked for.",
    ),
    counter("worldkv_prefetch_bytes_total", "", of.prefetch_count("issued_bytes"), "Bytes of these."),
    counter(
        "worldkv_prefetch_outcomes_total", "outcome", of.prefetch_outcomes, "What became of them; the rest still waits."
    ),
    # Rollouts.
    histogram(
        "worldkv_stage_seconds", "stage", of.stages, "Time in each stage of a rollout, for one chunk of one batch."
    ),
    histogram("worldkv_chunk_seconds", "model", of.chunks, "From one generated chunk of a batch to the next."),
    counter(
        "worldkv_chunks_generated_total", "worker", of.worker_work("chunks_generated"), "Chunks made, of all sessions."
    ),
    counter(
        "worldkv_video_frames_total", "worker", of.worker_work("video_frames"), "Video frames made, of all sessions."
    ),
    counter(
        "worldkv_stall_seconds_total",
        "worker",
        of.stalled,
        "Time in which nothing was computed because chunks were being brought back.",
    ),
    counter("worldkv_chunks_retrieved_total", "", of.work("chunks_retrieved"), "Chunks brought back into a window."),
    counter(
        "worldkv_chunks_missed_total", "", of.work("chunks_missed"), "Chunks by which a window was shorter than wanted."
    ),
    gauge(
        "worldkv_revisit_psnr_decibels",
        "worker",
        of.worker_work("fidelity_db"),
        "Of the latest chunks that remembered something, against the true pictures, where these are known.",
    ),
    # Workers.
    gauge("worldkv_workers", "state", of.states, "Workers by state."),
    gauge("worldkv_worker_info", "worker node model", of.info, "1 for every worker there is."),
    counter("worldkv_worker_restarts_total", "worker", of.worker("restarts"), "How often a worker was started again."),
    gauge(
        "worldkv_worker_age_seconds", "worker", of.worker("age_seconds"), "Since the worker's figures were gathered."
    ),
    gauge("worldkv_sessions", "tenant state", of.sessions, "Sessions by state."),
    # Tenants.
    gauge("worldkv_tenant_queued", "tenant", of.tenant("queued"), "Rollouts that wait for a worker.", per="tenant"),
    gauge(
        "worldkv_tenant_oldest_wait_seconds",
        "tenant",
        of.tenant("oldest_wait_seconds"),
        "How long the first in the queue has waited.",
        per="tenant",
        largest=True,
    ),
    histogram(
        "worldkv_tenant_wait_seconds",
        "tenant",
        of.tenant("waits"),
        "How long rollouts had waited when they were begun.",
        per="tenant",
    ),
    gauge(
        "worldkv_tenant_limit_bytes",
        "tier tenant",
        of.limits,
        "What a tenant may use of a tier, where that is limited.",
        per="tenant",
    ),
    # Jobs.
    gauge("worldkv_jobs", "tenant state", of.jobs, "Jobs by state.", per="job"),
    counter("worldkv_episodes_total", "tenant outcome", of.episodes, "Episodes by what became.", per="job"),
    gauge("worldkv_episodes_wanted", "tenant", of.wanted, "Episodes of jobs that are not over.", per="job"),
    gauge(
        "worldkv_job_idle_seconds",
        "tenant",
        of.idle,
        "Of the running job that has committed nothing for longest.",
        per="job",
        largest=True,
    ),
    # The cluster.
    gauge(
        "worldkv_replication_lag_seconds",
        "",
        of.cluster("replication_lag_seconds"),
        "Age of the oldest chunk with fewer durable copies than it should have.",
        per="snapshot",
    ),
    gauge(
        "worldkv_replication_pending_bytes",
        "",
        of.cluster("replication_pending_bytes"),
        "Bytes of all such chunks.",
        per="snapshot",
    ),
    gauge(
        "worldkv_snapshot_timestamp_seconds",
        "",
        of.cluster("taken_at"),
        "When these figures were gathered, in Unix time.",
        per="snapshot",
    ),
    # GPUs.
    gauge(
        "worldkv_gpu_utilisation_ratio", GPU, of.gpus("utilisation_ratio"), "Share of the time in which a kernel ran."
    ),
    gauge(
        "worldkv_gpu_memory_used_bytes", GPU, of.gpus("memory_used_bytes"), "Device memory in use, by all processes."
    ),
    gauge("worldkv_gpu_memory_capacity_bytes", GPU, of.gpus("memory_total_bytes"), "Device memory."),
    gauge("worldkv_gpu_power_watts", GPU, of.gpus("power_watts"), "Power drawn."),
    gauge("worldkv_gpu_temperature_celsius", GPU, of.gpus("temperature_celsius"), "Temperature of the chip."),
    counter("worldkv_gpu_pcie_bytes_total", f"{GPU} direction", of.pcie, "Bytes over PCIe."),
    counter("worldkv_gpu_nvlink_bytes_total", f"{GPU} direction", of.nvlink, "Bytes over all NVLinks."),
    counter("worldkv_gpu_ecc_errors_total", f"{GPU} severity", of.ecc, "Memory errors."),
    gauge("worldkv_gpu_throttled", f"{GPU} reason", of.throttled, "1 where the clocks are held down for this reason."),
)
"""In the order of the documentation."""


def by_name() -> dict[str, Metric]:
    """Name -> its row."""
    return {metric.name: metric for metric in TABLE}
