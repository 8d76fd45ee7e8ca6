"""A real run, scraped by a real Prometheus on loopback: dashboards are tested with it, and their pictures show it.

The run generates, remembers in four tiers that are too small for it, and prefetches. GPU figures come from an NVML that
is not there, as most machines have none.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from simulated_nvml import FakeNvml, at_its_power_cap

from monitoring.exporter import Exporter
from monitoring.gpus import GpuReader
from monitoring.local import LocalRun
from monitoring.logs import JsonLog, both
from monitoring.prometheus import alert_rules, configuration
from monitoring.snapshot import JobSnapshot, Snapshot, TenantSnapshot
from monitoring.trace import TraceFile
from worldkv import config as run_config
from worldkv.durations import DurationBook
from worldkv.runs.generate import generate
from worldkv.runs.meter import Meter

ROOT = Path(__file__).resolve().parents[1]
SCRAPE_SECONDS, RATE_INTERVAL = 1, "8s"
LIMIT_MIB = 64


@dataclass(frozen=True)
class Prometheus:
    """A server under way."""

    url: str

    def get(self, path: str, **query: object) -> Any:
        """The `data` of an answer of its interface."""
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def series(self, expr: str, start: float, end: float, step: float = 1.0) -> list[tuple[dict[str, str], Points]]:
        """(labels, points) of a query with Grafana's interval filled in."""
        query = expr.replace("$__rate_interval", RATE_INTERVAL)
        found = self.get("/api/v1/query_range", query=query, start=start, end=end, step=step)["result"]
        return [(row["metric"], [(float(at), float(value)) for at, value in row["values"]]) for row in found]


Points = list[tuple[float, float]]


@contextmanager
def prometheus(config: dict[str, Any], folder: Path) -> Iterator[Prometheus]:
    """A server with this configuration and our rules, its data below the folder; gone afterwards."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise FileNotFoundError("prometheus is not installed (apt: prometheus)")
    (folder / "alerts.yml").write_text(yaml.safe_dump(alert_rules()))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    where = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data")
    command = [binary, *where, f"--web.listen-address={address}", "--log.level=error"]
    with serving(command, f"http://{address}") as server:
        yield server


@contextmanager
def serving(command: Sequence[str], url: str) -> Iterator[Prometheus]:
    """The server that the command starts, once it is ready; gone afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        server = Prometheus(url)
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Watched:
    """A run that is over, and the server that saw it."""

    server: Prometheus
    exporter: Exporter
    address: str
    started: float
    ended: float
    folder: Path
    """Holds `trace.json` and `log.jsonl`."""


@contextmanager
def watched_run(folder: Path, overrides: Sequence[str] = ()) -> Iterator[Watched]:
    """Carry out the run and wait for the last scrape; the server and the exporter stay for the context."""
    config = run_config.load(ROOT / "configs" / "tiers.yaml", [*_settings(folder), *overrides])
    with Exporter() as exporter:
        address = exporter.start()
        scrape = configuration([address])
        scrape["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
        with prometheus(scrape, folder) as server:
            started = time.time()
            progress = Episodes(config.worlds.count * len(config.policies))
            gpus = GpuReader(print, FakeNvml([at_its_power_cap()])).open()
            run = LocalRun(Enriched(exporter, progress), "rooms", sessions=config.batch_sessions, gpus=gpus)
            with TraceFile(folder / "trace.json") as trace, (folder / "log.jsonl").open("w") as log:
                meter = Meter(run, both(trace, JsonLog(log)))
                generate(config, meter=meter, progress=progress)
            run.finish()
            time.sleep(3 * SCRAPE_SECONDS)
            yield Watched(server, exporter, address, started, time.time(), folder)


@dataclass
class Episodes:
    """The run as a job of the default tenant, as its progress tells: worlds wait for those before them."""

    wanted: int
    waits: DurationBook = field(default_factory=DurationBook)
    committed: int = 0
    started: float = field(default_factory=time.time)
    last: float = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if what.startswith("drawing"):
            self.waits.add(time.time() - self.started)
        if what.startswith("saving"):
            self.committed, self.last = self.committed + 1, time.time()

    def job(self, now: float) -> JobSnapshot:
        state = "running" if self.committed < self.wanted else "done"
        return JobSnapshot("1", "default", state, self.wanted, self.committed, idle_seconds=now - (self.last or now))


@dataclass
class Enriched:
    """In the place of the exporter: what a cluster would add to the figures of one worker."""

    exporter: Exporter
    episodes: Episodes

    def publish(self, snapshot: Snapshot) -> None:
        """Add job, tenant and replication, and pass it on."""
        limit = {"durable": LIMIT_MIB * 2**20}
        tenant = TenantSnapshot("default", waits=self.episodes.waits.frozen(), limit_bytes=limit)
        self.exporter.publish(
            replace(
                snapshot,
                tenants=(tenant,),
                jobs=(self.episodes.job(snapshot.taken_at),),
                replication_lag_seconds=0.0,
                replication_pending_bytes=0,
            )
        )


def _settings(folder: Path) -> list[str]:
    return [
        f"output.folder={folder}/run",
        f"memory.tiers.2.folder={folder}/disk",
        f"memory.tiers.3.url={folder}/durable",
        f"memory.shares=[{{tenant: default, tier: durable, limit_mib: {LIMIT_MIB}}}]",
        *(f"memory.tiers.{place}.capacity_mib=3" for place in range(3)),
        "batch_sessions=1",
    ]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Prometheus, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"prometheus ended with {process.returncode} before it was ready")
        try:
            urllib.request.urlopen(f"{server.url}/-/ready", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"prometheus at {server.url} was not ready after {seconds} s")
