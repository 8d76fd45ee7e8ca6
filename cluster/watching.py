"""A job for whoever watches: how its workers, its queue and the cluster's copies stand, as what monitoring reads."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cluster.chunks.connect import Overview, overview
from cluster.chunks.settings import ChunkSettings
from cluster.ledger import JobRecord, JobState
from monitoring.exporter import Access, Exporter
from monitoring.gpus import GpuReader
from monitoring.snapshot import (
    GpuStats,
    JobSnapshot,
    SessionCount,
    Snapshot,
    TenantSnapshot,
    WorkerSnapshot,
)
from worldkv.errors import ConfigError, TransferError
from worldkv.stats import Durations, WorkerStats

Watch = Callable[[Sequence[WorkerStats], JobState], None]

JOB_STATES = {"finished": "done", "stopped": "failed"}
"""Where monitoring has another word for a standing."""
# So often the tier's directory is asked: an answer may take seconds where a node is lost.
OVERVIEW_SECONDS = 10.0
MIB = 2**20


def snapshot_of(record: JobRecord, workers: Sequence[WorkerStats], state: JobState) -> Snapshot:
    """The figures of one job; a worker that has no model yet has none."""
    job = JobSnapshot(
        record.id,
        record.tenant,
        JOB_STATES.get(state.standing, state.standing),
        episodes_wanted=state.wanted,
        committed=state.episodes,
        failed=state.aside,
        retried=sum(worker.restarts for worker in workers),
        idle_seconds=state.idle_seconds,
    )
    tenant = TenantSnapshot(
        record.tenant,
        queued=state.queued,
        oldest_wait_seconds=state.oldest_wait_seconds,
        waits=Durations(state.wait_counts, state.wait_seconds),
        limit_bytes=limits(record),
    )
    told = tuple(_worker(worker) for worker in workers if worker.work is not None)
    return Snapshot(state.told, workers=told, tenants=(tenant,), jobs=(job,))


def limits(record: JobRecord) -> dict[str, int]:
    """Tier -> bytes that the job's tenant may use of it, on each worker or, of a shared tier, on each node."""
    shares = record.memory.shares
    return {
        share.tier: share.limit_mib * MIB
        for share in shares
        if share.tenant == record.tenant and share.limit_mib is not None
    }


def _worker(stats: WorkerStats) -> WorkerSnapshot:
    assert stats.work is not None
    state = "running" if stats.batch is not None else "idle"
    return WorkerSnapshot(
        stats.worker,
        stats.node,
        stats.model,
        stats.work,
        restarts=stats.restarts,
        sessions=(SessionCount(stats.tenant, state, stats.sessions),),
        shared_tiers=("node",),
        age_seconds=stats.age_seconds,
    )


@dataclass
class Watcher:
    """Publishes what a driver tells, with what only the driver's own process can find out."""

    record: JobRecord
    publish: Callable[[Snapshot], None]
    gpus: Callable[[Sequence[int]], tuple[GpuStats, ...]]
    """Of this machine, by their indices."""
    ask: Callable[[ChunkSettings], Overview] = overview
    clock: Callable[[], float] = time.monotonic
    here: str = field(default_factory=socket.gethostname)
    _asked: float | None = None
    _overview: Overview | None = None

    def __call__(self, workers: Sequence[WorkerStats], state: JobState) -> None:
        """Told every few seconds; now and then it asks the shared tier, and waits for its answer."""
        snapshot, copies = snapshot_of(self.record, workers, state), self._copies()
        # A worker on another machine has its GPUs read there, by an exporter of that machine.
        indices = {worker.worker: worker.gpus for worker in workers if worker.node == self.here}
        self.publish(
            replace(
                snapshot,
                workers=tuple(replace(one, gpus=self._read(indices.get(one.worker, ()))) for one in snapshot.workers),
                replication_lag_seconds=None if copies is None else copies.lag_seconds,
                replication_pending_bytes=None if copies is None else copies.pending_bytes,
            )
        )

    def _read(self, indices: Sequence[int]) -> tuple[GpuStats, ...]:
        return self.gpus(indices) if indices else ()

    def _copies(self) -> Overview | None:
        settings, now = ChunkSettings.of(self.record.memory), self.clock()
        if settings is not None and (self._asked is None or now - self._asked >= OVERVIEW_SECONDS):
            self._asked = now
            try:
                self._overview = self.ask(settings)
            except TransferError:
                # The tier is being started or mended; that shows as figures that are missing, not as a lag of 0.
                self._overview = None
        return self._overview


@contextmanager
def exported(listen: str | None, record: JobRecord, warn: Callable[[str], None]) -> Iterator[Watch]:
    """Serve the job's figures at HOST:PORT for as long as it runs; nothing where `listen` is None.

    `warn` is told where they are. Raises ConfigError where it cannot listen there.
    """
    if listen is None:
        yield lambda workers, state: None
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--exporter {listen}: not HOST:PORT; port 0 takes any that is free")
    with Exporter(Access()) as exporter:
        warn(f"figures at http://{exporter.start(host, int(port))}/metrics; look: worldkv top")
        exporter.publish(Snapshot(time.time()))
        # A machine without GPUs has no figures of them, which nobody has to be told.
        reader = GpuReader(lambda text: None).open()
        try:
            yield Watcher(record, exporter.publish, reader.read)
        finally:
            reader.close()
