"""What watching costs: scrapes of an exporter with figures of many simulated workers, and a rollout that is watched.

    python benchmarks/scrape.py --workers 1000 --out benchmarks/scrape_cpu_202611.json

Scrapes are timed over loopback, by another process, while snapshots are published. The rollout's cost is the time spent
in telling and publishing, as a share of the time of its stages, so that noise between two runs has no say.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from simulated_cluster import snapshot

from monitoring.exporter import OPEN_METRICS, Exporter, Viewer

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure, print, and write the file."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", type=int, default=1000)
    options.add_argument("--scrapes", type=int, default=300)
    options.add_argument("--every", type=float, default=0.1, help="seconds from one scrape to the next")
    options.add_argument("--publish-every", type=float, default=5.0)
    options.add_argument("--overhead", action="store_true", help="also run a rollout that is watched")
    options.add_argument("--out", type=Path)
    options.add_argument("--ask", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.ask:
        print(json.dumps(ask(chosen.ask, chosen.scrapes, chosen.every)))
        return
    found = {"machine": platform.machine(), "python": platform.python_version(), **scrapes(chosen)}
    if chosen.overhead:
        found["rollout"] = overhead()
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if chosen.out:
        chosen.out.write_text(text)


def scrapes(chosen: argparse.Namespace) -> dict[str, object]:
    """Scrape while somebody publishes."""
    over, published = threading.Event(), []
    # Made before: in a cluster, workers make them.
    coming = [snapshot(10.0 + i, workers=chosen.workers) for i in range(5)]

    def publish(exporter: Exporter) -> None:
        for taken in itertools.cycle(coming):
            if over.wait(chosen.publish_every):
                return
            started = time.perf_counter()
            exporter.publish(taken)
            published.append(time.perf_counter() - started)

    with Exporter() as exporter:
        exporter.publish(coming[0])
        address = exporter.start()
        publisher = threading.Thread(target=publish, args=(exporter,))
        publisher.start()
        try:
            options = ["--ask", address, "--scrapes", str(chosen.scrapes), "--every", str(chosen.every)]
            run = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
        finally:
            over.set()
            publisher.join()
        text = exporter.metrics(Viewer(None))
    seconds = sorted(json.loads(run.stdout))
    return {
        "workers": chosen.workers,
        "scrapes": len(seconds),
        "lines": sum(not line.startswith(b"#") for line in text.body.splitlines()),
        "text_bytes": len(text.body),
        "packed_bytes": len(text.packed),
        "scrape_ms": {
            "median": 1000 * statistics.median(seconds),
            "p99": 1000 * seconds[int(0.99 * len(seconds))],
            "worst": 1000 * seconds[-1],
        },
        "publish_ms": {"median": 1000 * statistics.median(published), "worst": 1000 * max(published)},
    }


def ask(address: str, scrapes: int, every: float) -> list[float]:
    """Seconds of each scrape, over one connection and packed, as Prometheus asks."""
    seconds, connection = [], http.client.HTTPConnection(address, timeout=60)
    for _ in range(scrapes):
        time.sleep(every)
        started = time.perf_counter()
        connection.request("GET", "/metrics", headers={"Accept": OPEN_METRICS, "Accept-Encoding": "gzip"})
        connection.getresponse().read()
        seconds.append(time.perf_counter() - started)
    return seconds


def overhead() -> dict[str, float]:
    """The share of a run's time that watching takes."""
    from monitoring.local import LocalRun
    from worldkv import config as run_config
    from worldkv.durations import Span
    from worldkv.memory.store import ChunkMemory
    from worldkv.runs.generate import generate
    from worldkv.runs.meter import Meter

    spent = {"telling": 0.0, "spans": 0.0}

    class Timed(Meter):
        def tell(self, memory: ChunkMemory) -> None:
            started = time.perf_counter()
            super().tell(memory)
            spent["telling"] += time.perf_counter() - started

        def _stage(self, span: Span) -> None:
            started = time.perf_counter()
            super()._stage(span)
            spent["spans"] += time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder, Exporter() as exporter:
        config = run_config.load(
            ROOT / "configs" / "tiers.yaml",
            [
                f"output.folder={folder}/run",
                f"memory.tiers.2.folder={folder}/disk",
                f"memory.tiers.3.url={folder}/durable",
                "worlds.count=1",
                "trajectory.video_frames=48",
            ],
        )
        exporter.start()
        meter = Timed(LocalRun(exporter, "rooms"))
        started = time.perf_counter()
        generate(config, meter=meter)
        stages = meter.stats(_nothing()).stages.values()
        took = sum(stage.seconds for stage in stages)
        whole = time.perf_counter() - started
    cost = sum(spent.values())
    return {"run_seconds": whole, "chunk_seconds": took, "watching_seconds": cost, "ratio": cost / took}


def _nothing() -> object:
    from worldkv.stats import MemoryStats

    return MemoryStats(0, 0)


if __name__ == "__main__":
    main()
