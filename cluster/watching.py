"""A job for whoever watches: how its workers stand, as the snapshot that monitoring reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cluster.ledger import JobRecord, JobState
from monitoring.exporter import Access, Exporter
from monitoring.snapshot import JobSnapshot, SessionCount, Snapshot, WorkerSnapshot
from worldkv.errors import ConfigError
from worldkv.stats import WorkerStats

Watch = Callable[[Sequence[WorkerStats], JobState], None]

JOB_STATES = {"finished": "done", "stopped": "failed"}
"""Where monitoring has another word for a standing."""


def snapshot_of(record: JobRecord, workers: Sequence[WorkerStats], state: JobState) -> Snapshot:
    """The figures of one job; a worker that has no model yet has none."""
    job = JobSnapshot(
        record.id,
        record.tenant,
        JOB_STATES.get(state.standing, state.standing),
        episodes_wanted=state.wanted,
        committed=state.episodes,
        retried=sum(worker.restarts for worker in workers),
    )
    told = tuple(_worker(worker) for worker in workers if worker.work is not None)
    return Snapshot(state.told, workers=told, jobs=(job,))


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
    )


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
        yield lambda workers, state: exporter.publish(snapshot_of(record, workers, state))
