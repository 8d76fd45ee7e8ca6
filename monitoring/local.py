"""Watch one run in this process, without a cluster: its figures as the snapshot of one worker, its spans in files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from monitoring.exporter import Access, Exporter
from monitoring.gpus import GpuReader
from monitoring.logs import JsonLog, both
from monitoring.snapshot import SessionCount, Snapshot, WorkerSnapshot
from monitoring.trace import TraceFile
from worldkv.durations import Listener, nobody
from worldkv.errors import ConfigError, OutputError
from worldkv.runs.meter import Meter, unwatched
from worldkv.stats import WorkStats

# Prometheus asks every 5 s as configured here: more often nobody would see it.
EVERY_SECONDS = 1.0


class Publishes(Protocol):
    """An exporter, or whoever passes on to one."""

    def publish(self, snapshot: Snapshot) -> None:
        """See `Exporter.publish`."""
        ...


@dataclass
class LocalRun:
    """Publishes what a run tells, at most every EVERY_SECONDS; for `worldkv.runs.meter.Meter`."""

    exporter: Publishes
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


@dataclass(frozen=True)
class Watching:
    """What is wanted of a run that is watched; nothing, as it stands."""

    listen: str | None = None
    """HOST:PORT for an exporter; port 0: any that is free."""
    access: Access = field(default_factory=Access)
    trace: Path | None = None
    """A file for `TraceFile`."""
    log: Path | None = None
    """A file for `JsonLog`; what it holds stays."""


@contextmanager
def watched(
    wanted: Watching, model: str, *, tenant: str, sessions: int, warn: Callable[[str], None]
) -> Iterator[Meter]:
    """A meter for `generate` that serves and writes what is wanted. `warn`: told where the exporter listens, too.

    Raises ConfigError where the exporter cannot listen, OutputError where a file cannot be written.
    """
    with ExitStack() as stack:
        listener = _listener(wanted, stack, warn)
        if wanted.listen is None:
            yield Meter(unwatched, listener)
            return
        host, _, port = wanted.listen.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"exporter address {wanted.listen!r}: not HOST:PORT")
        exporter = stack.enter_context(Exporter(wanted.access))
        warn(f"figures at http://{exporter.start(host, int(port))}/metrics")
        gpus = GpuReader(warn).open()
        stack.callback(gpus.close)
        run = LocalRun(exporter, model, tenant, sessions, gpus)
        stack.callback(run.finish)
        yield Meter(run, listener)


def _listener(wanted: Watching, stack: ExitStack, warn: Callable[[str], None]) -> Listener:
    listeners: list[Listener] = []
    if wanted.trace is not None:
        trace = TraceFile(wanted.trace)
        stack.callback(lambda: warn(trace.fault) if trace.fault else None)
        listeners.append(stack.enter_context(trace))
    if wanted.log is not None:
        listeners.append(stack.enter_context(_log(wanted.log)))
    return both(*listeners) if listeners else nobody


@contextmanager
def _log(path: Path) -> Iterator[JsonLog]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8")
    except OSError as fault:
        raise OutputError(f"log {path}: cannot be written: {fault.strerror}") from fault
    with stream:
        yield JsonLog(stream)
