"""A whole cluster in the simulator on one core: 1,000 nodes of 8 GPUs, 50,000 sessions, every decision made for real.

    python benchmarks/scheduler_cluster.py --out benchmarks/scheduler_cluster_cpu_202611

Four sessions in five are scripted, as rollouts are; the others are steered by keys. CPU time is that of the process.
"""

import argparse
import gc
import os
import time
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402

from scheduler.simulation.engine import World  # noqa: E402
from scheduler.simulation.hardware import Sizes, h200_cluster  # noqa: E402
from scheduler.simulation.placing import Rounds  # noqa: E402
from scheduler.simulation.strategies import Planned  # noqa: E402
from scheduler.synthetic import Load, made_up  # noqa: E402

NODES, PER_NODE, SESSIONS, CHUNKS = 1000, 8, 50_000, 24
CHUNK_SECONDS, BUSY = 2.1, 1.1
"""Sessions arrive 1.1 times as fast as the cluster can make them: queues form."""
TENANTS = ("a", "b", "c", "d", "e")


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    given = parser.parse_args()
    load_at_start = os.getloadavg()[0]
    hardware = h200_cluster(given.nodes, PER_NODE, sizes=Sizes(12, 24, 100), round_seconds=2.0)
    started, wall = time.process_time(), time.perf_counter()
    within = given.sessions * CHUNKS * CHUNK_SECONDS / (hardware.workers * BUSY)
    load = Load(
        given.sessions,
        CHUNKS,
        scripted_share=0.8,
        tenants=TENANTS,
        arrive_within_seconds=within,
        chunk_seconds=CHUNK_SECONDS,
    )
    traces = made_up(load)
    gc.freeze()  # a collection walks all objects there are: those of the traces stay anyway
    made = time.process_time()
    placing, strategy = Rounds(hardware), Planned()
    figures = World(traces, hardware, strategy, placing=placing, stopwatch=time.process_time).run()
    result = figures.summary()
    plans, rounds = np.asarray(strategy.plan_seconds) * 1e3, np.asarray(placing.round_seconds) * 1e3
    decided = plans[plans > 0.15]
    rows = {
        "sessions, GPUs": f"{given.sessions:,}, {hardware.workers:,}",
        "chunks": f"{result['chunks']:,}",
        "simulated seconds": f"{result['simulated_seconds']:.0f}",
        "events": f"{figures.events:,}",
        "CPU seconds, traces": f"{made - started:.1f}",
        "CPU seconds, simulation": f"{time.process_time() - made:.1f}",
        "wall seconds, both": f"{time.perf_counter() - wall:.1f}",
        "CPU microseconds per chunk": f"{(time.process_time() - made) / result['chunks'] * 1e6:.0f}",
        "session plans": f"{len(plans):,}",
        "of them with something to decide": f"{len(decided):,}",
        "plans, CPU ms p50 and p99": f"{np.percentile(decided, 50):.2f}, {np.percentile(decided, 99):.2f}",
        "placement rounds": f"{len(rounds):,}",
        "rounds, CPU ms p50 and p99": f"{np.percentile(rounds, 50):.1f}, {np.percentile(rounds, 99):.1f}",
        "on time": f"{result['on_time_ratio']:.4%}",
        "stall": f"{result['stall_ratio_mean']:.4%}",
        "prefetch precision": f"{result['prefetch_precision_ratio'] or 0:.1%}",
    }
    body = markdown_table(["figure", "value"], [[name, value] for name, value in rows.items()])
    print(body)
    if given.out:
        facts = circumstances(torch.device("cpu")) | {"load average at the start": f"{load_at_start:.1f}"}
        content = {"circumstances": facts, "rows": rows, "result": result}
        save(given.out, "50,000 sessions on 8,000 GPUs, simulated", body, content)


if __name__ == "__main__":
    main()
