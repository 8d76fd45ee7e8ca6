"""Run a simulated cluster on traces, one strategy after another, and tell what came of each.

python -m scheduler --trace FILE --strategies lru,planned,clairvoyant
python -m scheduler --sessions 100 --chunks 200 --kind keys --nodes 2 --workers-per-node 8
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, get_args

import numpy as np

from scheduler.simulation.engine import World
from scheduler.simulation.hardware import Hardware, Rates, Sizes, h200_cluster
from scheduler.simulation.placing import Rounds
from scheduler.simulation.strategies import STRATEGIES, Planned
from scheduler.snapshot import TenantView
from scheduler.synthetic import Load, PathKind, made_up
from scheduler.trace import SessionTrace, read_trace
from worldkv.errors import ConfigError, OutputError, WorldKVError

USER_ERROR = 2
COLUMNS = (
    ("strategy", ""),
    ("on time", "%"),
    ("stall", "% of compute"),
    ("stall p99", "% of a chunk"),
    ("precision", "%"),
    ("waste", "%"),
    ("chunks", ""),
    ("wait p99", "s"),
)


@dataclass(frozen=True)
class Simulation:
    """What to simulate."""

    hardware: Hardware = field(default_factory=h200_cluster)
    strategies: tuple[str, ...] = ("lru", "planned", "clairvoyant")
    weights: Mapping[str, float] = field(default_factory=dict)
    """Tenant -> weight; 1 for those not named."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise ConfigError(f"strategies: {unknown} are not among {', '.join(STRATEGIES)}; at least one is needed")


def simulate(
    simulation: Simulation, traces: Sequence[SessionTrace], stopwatch: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, Any]]:
    """Strategy -> what came of it. The same but for wall-clock figures, whenever it is run.

    Raises ConfigError where a session can never be placed.
    """
    _check(simulation.hardware, traces)
    results = {}
    for name in simulation.strategies:
        strategy = STRATEGIES[name]()
        tenants = {tenant: TenantView(weight) for tenant, weight in simulation.weights.items()}
        placing = Rounds(simulation.hardware, tenants)
        started = stopwatch()
        world = World(traces, simulation.hardware, strategy, placing=placing, stopwatch=stopwatch)
        figures = world.run()
        result = figures.summary()
        result["wall_seconds"] = stopwatch() - started
        result["plan_ms"] = _milliseconds(strategy.plan_seconds if isinstance(strategy, Planned) else [])
        result["round_ms"] = _milliseconds(placing.round_seconds)
        results[name] = result
    return results


def run_simulation(
    simulation: Simulation,
    load: Load,
    *,
    trace: Path | None = None,
    json_file: Path | None = None,
    out: TextIO | None = None,
) -> None:
    """Simulate the trace, or else the made-up load; print a table, and write all figures where asked to."""
    traces = made_up(load) if trace is None else read_trace(trace)
    if not traces:
        raise ConfigError(f"{trace}: has no session with a chunk, so there is nothing to simulate")
    results = simulate(simulation, traces)
    print(table(results), file=out or sys.stdout)
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        except OSError as fault:
            raise OutputError(f"{json_file}: cannot be written: {fault.strerror or fault}") from fault


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as fixed columns, with units in the first line."""
    lines = [[f"{name}, {unit}" if unit else name for name, unit in COLUMNS]]
    for strategy, result in results.items():
        waits = [one["wait_p99_seconds"] for one in result["tenants"].values()]
        cells = [
            _percent(result["on_time_ratio"]),
            _percent(result["stall_ratio_mean"]),
            _percent(result["stall_ratio_p99"]),
            _percent(result["prefetch_precision_ratio"]),
            _percent(result["prefetch_waste_ratio"]),
            str(result["chunks"]),
            f"{max(waits):.1f}",
        ]
        lines.append([strategy, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 2 for a user's mistake, in one line."""
    given = _parser().parse_args(argv)
    try:
        load = Load(
            given.sessions,
            given.chunks,
            kind=given.kind,
            scripted_share=given.scripted_share,
            tenants=tuple(given.tenants.split(",")),
            arrive_within_seconds=given.arrive_within,
            seed=given.seed,
        )
        hardware = h200_cluster(
            given.nodes,
            given.workers_per_node,
            sizes=Sizes(given.device_chunks, given.host_chunks),
            rates=Rates(disk=given.disk_bytes_per_second),
            slots=given.slots,
        )
        simulation = Simulation(hardware, tuple(given.strategies.split(",")))
        run_simulation(simulation, load, trace=given.trace, json_file=given.json)
    except WorldKVError as fault:
        print("error:", " ".join(str(fault).split()), file=sys.stderr)
        return USER_ERROR
    return 0


def _check(hardware: Hardware, traces: Sequence[SessionTrace]) -> None:
    names: set[str] = set()
    for trace in traces:
        if trace.session in names:
            raise ConfigError(f"session {trace.session} is there twice")
        names.add(trace.session)
        if trace.gang > hardware.workers_per_node:
            raise ConfigError(
                f"session {trace.session} needs {trace.gang} workers of one node, nodes have "
                f"{hardware.workers_per_node}: it could never start"
            )
        working_bytes = (trace.recall.retrieved_chunks + 1) * trace.chunk_bytes
        if working_bytes > hardware.tiers[0].capacity_bytes / hardware.slots:
            raise ConfigError(
                f"session {trace.session}: what a window retrieves and the chunk that leaves it take {working_bytes} "
                f"bytes, tier {hardware.tiers[0].name} has {hardware.tiers[0].capacity_bytes:.0f} for "
                f"{hardware.slots} sessions"
            )


def _milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    p50, p99, most = (float(value) for value in np.percentile(np.asarray(seconds), (50, 99, 100)) * 1e3)
    return {"count": len(seconds), "p50": p50, "p99": p99, "most": most}


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler", description=__doc__.split("\n")[0] if __doc__ else "")
    add = parser.add_argument
    add("--trace", type=Path, help="recorded trace to replay; without it sessions are made up")
    add("--sessions", type=int, default=8, help="made-up sessions")
    add("--chunks", type=int, default=200, help="chunks per made-up session")
    add("--kind", choices=get_args(PathKind), default="keys", help="what made-up cameras do")
    add("--scripted-share", type=float, default=0.0, help="part of the made-up sessions whose way is known ahead")
    add("--tenants", default="tenant-0", help="comma-separated; made-up sessions are theirs in turn")
    add("--arrive-within", type=float, default=0.0, help="seconds over which made-up sessions arrive")
    add("--seed", type=int, default=0, help="of made-up cameras")
    add("--nodes", type=int, default=1)
    add("--workers-per-node", type=int, default=8)
    add("--slots", type=int, default=1, help="sessions that one worker advances at once")
    add("--device-chunks", type=int, default=12, help="stored chunks that a worker's device holds")
    add("--host-chunks", type=int, default=48, help="stored chunks that host memory holds, per worker")
    add("--disk-bytes-per-second", type=float, default=2e9, help="per worker")
    add("--strategies", default="lru,planned,clairvoyant", help=f"comma-separated, of {', '.join(STRATEGIES)}")
    add("--json", type=Path, help="write all figures here")
    return parser
