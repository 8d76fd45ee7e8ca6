"""Watch one run in this process, without a cluster: its figures as the snapshot of one worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from monitoring.exporter import Exporter
from monitoring.gpus import GpuReader
from monitoring.snapshot import SessionCount, Snapshot, WorkerSnapshot
from worldkv.stats import WorkStats

# Prometheus asks every 5 s as configured here: more often nobody would see it.
EVERY_SECONDS = 1.0


@dataclass
class LocalRun:
    """Publishes what a run tells, at most every EVERY_SECONDS; for `worldkv.runs.meter.Meter`."""

    exporter: Exporter
    model: str
    tenant: str = "default"
    sessions: int = 0
    """That are rolled out together."""
    gpus: GpuReader | None = None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    latest: WorkStats | None = None
    _published: float | None = None

    def __call__(self, stats: WorkStats) -> None:
        """Told after each batch of chunks."""
        self.latest = stats
        now = self.clock()
        if self._published is None or now - self._published >= EVERY_SECONDS:
            self._published = now
            self._publish(stats, "running")

    def finish(self) -> None:
        """The run is over; what it came out as stays to be seen."""
        if self.latest is not None:
            self._publish(self.latest, "idle")

    def _publish(self, stats: WorkStats, state: str) -> None:
        sessions = (SessionCount(self.tenant, state, self.sessions),)
        gpus = self.gpus.read() if self.gpus is not None else ()
        worker = WorkerSnapshot("local", "local", self.model, stats, sessions=sessions, gpus=gpus)
        self.exporter.publish(Snapshot(self.wall(), workers=(worker,)))
