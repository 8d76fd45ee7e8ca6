"""Prefetch against its baselines and against a clairvoyant, on held-out cameras, in the simulator.

    python benchmarks/prefetch_policies.py --out benchmarks/prefetch_policies_cpu_202611

One session per simulated H200, rates measured there: 55 GB/s from host memory, 2 GB/s from the local disk. Only what
plans cost is timed; all else is the same on every machine. The rates of `--slow` are those at which fetching what a
window waits for costs more than 20 % of the throughput.
"""

import argparse
import os
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import torch  # noqa: E402
from camera_sets import CHUNK_SECONDS, HELD_OUT, SETS, TUNING, traces  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402

from scheduler.prefetch import STAGED_PROBABILITY, Settings  # noqa: E402
from scheduler.simulation.engine import World  # noqa: E402
from scheduler.simulation.hardware import Rates, Sizes, h200_cluster  # noqa: E402
from scheduler.simulation.strategies import STRATEGIES, Planned  # noqa: E402

SESSIONS, CHUNKS = 4, 400
"""Per set: 5 minutes of video each."""
SIZES = Sizes(device_chunks=12, host_chunks=48)
SLOWER_DISKS = (2e9, 1.5e9, 1e9)
THRESHOLDS = (0.3, 0.5, 0.65, 0.8)
HEADS = [
    "cameras",
    "strategy",
    "on time",
    "stall",
    "stall p99",
    "precision",
    "waste",
    "waste, staged too",
    "of the way",
]
Row = dict[str, str | float | None]


def measure(kind: str, scripted: bool, first_seed: int, rates: Rates, sessions: int, chunks: int) -> list[Row]:
    """One row per strategy, on the same sessions."""
    load = traces(kind, sessions, chunks, first_seed, scripted=scripted)
    rows: list[Row] = []
    for name in STRATEGIES:
        rows.append(one_run(kind, name, STRATEGIES[name](), load, rates))
        print(" | ".join(cells(rows[-1])), flush=True)
    lru, best = (next(row for row in rows if row["strategy"] == name) for name in ("lru", "clairvoyant"))
    for row in rows:
        gap = number(lru, "stall") - number(best, "stall")
        row["of the way"] = (number(lru, "stall") - number(row, "stall")) / gap if gap > 1e-9 else None
    return rows


def one_run(kind: str, name: str, strategy: object, load: list, rates: Rates) -> Row:
    """The figures of one strategy."""
    hardware = h200_cluster(len(load), 1, sizes=SIZES, rates=rates)
    world = World(load, hardware, strategy)  # type: ignore[arg-type]  # one of STRATEGIES
    found = world.run().summary()
    return {
        "cameras": kind,
        "strategy": name,
        "on time": found["on_time_ratio"],
        "stall": found["stall_ratio_mean"],
        "stall p99": found["stall_ratio_p99"],
        "precision": found["prefetch_precision_ratio"],
        "waste": found["prefetch_waste_ratio"],
        "waste, staged too": found["prefetch_waste_staged_too_ratio"],
        "lookups": float(world.figures.lookups),
        "prefetched chunks": float(world.figures.prefetched["chunks"]),
        "used chunks": float(world.figures.prefetched["used"]),
        "staged chunks": float(world.figures.prefetched["staged"]),
        "used staged chunks": float(world.figures.prefetched["staged_used"]),
        "lookups on the device": float(world.figures.hits["device"]),
    }


def number(row: Row, head: str) -> float:
    """A figure that is there."""
    value = row[head]
    assert isinstance(value, float)
    return value


def cells(row: Row) -> list[str]:
    """The cells of a row; ratios in percent."""
    return [str(row["cameras"]), str(row["strategy"]), *(percent(row.get(head)) for head in HEADS[2:])]


def percent(value: object) -> str:
    """A ratio as the table shows it."""
    return "-" if not isinstance(value, float) else f"{100 * value:.1f}"


def whole(rows: list[Row], strategy: str) -> Row:
    """All cameras together, each lookup and each chunk counting once, stalls as the mean over sets."""
    part = [row for row in rows if row["strategy"] == strategy]
    moved, used = (sum(number(row, head) for row in part) for head in ("prefetched chunks", "used chunks"))
    staged, used_staged = (sum(number(row, head) for row in part) for head in ("staged chunks", "used staged chunks"))
    total = sum(number(row, "lookups") for row in part)
    return {
        "cameras": "all",
        "strategy": strategy,
        "on time": sum(number(row, "lookups on the device") for row in part) / total,
        "stall": sum(number(row, "stall") for row in part) / len(part),
        "stall p99": max(number(row, "stall p99") for row in part),
        "precision": used / moved if moved else None,
        "waste": 1 - used / moved if moved else None,
        "waste, staged too": 1 - (used + used_staged) / (moved + staged) if moved else None,
    }


def together(rows: list[Row]) -> list[Row]:
    """A last row per strategy."""
    ends = [whole(rows, strategy) for strategy in STRATEGIES]
    lru, best = (next(row for row in ends if row["strategy"] == name) for name in ("lru", "clairvoyant"))
    for row in ends:
        gap = number(lru, "stall") - number(best, "stall")
        row["of the way"] = (number(lru, "stall") - number(row, "stall")) / gap if gap > 1e-9 else None
    return [*rows, *ends]


def tuned(sessions: int, chunks: int) -> list[Row]:
    """How the threshold trades precision for what is on time, on the tuning trajectories."""
    rows = []
    for kind in SETS:
        load = traces(kind, sessions, chunks, TUNING, scripted=False)
        for threshold in THRESHOLDS:
            strategy = Planned(Settings(least_probability=threshold))
            rows.append(one_run(kind, f"from {threshold:g}", strategy, load, Rates()))
            print(" | ".join(cells(rows[-1])), flush=True)
    return rows


def body(live: list[Row], scripted: list[Row], slow: dict[float, list[Row]], thresholds: list[Row]) -> str:
    """What the .md file says."""
    lines = [
        f"{SESSIONS} sessions of {CHUNKS} chunks of {CHUNK_SECONDS} s per set of cameras, each on a node of its own. "
        f"The GPU holds {SIZES.device_chunks} stored chunks, host memory {SIZES.host_chunks}, the disk the rest; "
        "4 chunks retrieved per window. In %: `on time` are retrieved chunks that lay on the device when due; "
        "`stall` is time waited for chunks / time to make chunks, `p99` of one chunk; `precision` and `waste` are of "
        "prefetched chunks, `staged too` also of those brought to host memory only, which are used if they are asked "
        "for while they lie there; `of the way` from the stall of `lru` to that of the clairvoyant. The clairvoyant is "
        "after stalls alone: its precision is no goal of its.",
        "Live cameras, held out:",
        markdown_table(HEADS, [cells(row) for row in live]),
        "Scripted, held out:",
        markdown_table(HEADS, [cells(row) for row in scripted]),
    ]
    for rate, rows in slow.items():
        lines += [
            f"Live, the disk at {rate / 1e9:g} GB/s:",
            markdown_table(HEADS, [cells(row) for row in rows if row["strategy"] in ("lru", "planned", "clairvoyant")]),
        ]
    lines += [
        "The least probability from which a chunk is brought to the device, on the tuning cameras (to host memory it "
        f"is from {STAGED_PROBABILITY:g} on, or from that if it is less):",
        markdown_table(HEADS[:-1], [cells(row)[:-1] for row in thresholds]),
    ]
    return "\n\n".join(lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    given = parser.parse_args()
    size = (given.sessions, given.chunks)
    live = together([row for kind in SETS for row in measure(kind, False, HELD_OUT, Rates(), *size)])
    scripted = together([row for kind in SETS for row in measure(kind, True, HELD_OUT, Rates(), *size)])
    slow = {
        rate: together(
            [row for kind in ("roam", "patrol") for row in measure(kind, False, HELD_OUT, Rates(disk=rate), *size)]
        )
        for rate in SLOWER_DISKS[1:]
    }
    thresholds = tuned(*size)
    text = body(live, scripted, slow, thresholds)
    print(text)
    if given.out:
        content = {
            "circumstances": circumstances(torch.device("cpu")),
            "live": live,
            "scripted": scripted,
            "slow": {str(rate): rows for rate, rows in slow.items()},
            "thresholds": thresholds,
        }
        save(given.out, "Prefetch against its baselines", text, content)


if __name__ == "__main__":
    main()
