"""What decisions cost: one session's plan, and one round of placement, by size. Wall and CPU time, one core.

    python benchmarks/scheduler_decisions.py --out benchmarks/scheduler_decisions_cpu_202611

`best` is the least CPU time of each decision in REPEATS passes over all, so its p99 is over decisions, not over what
else ran on the machine.
"""

import argparse
import copy
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from camera_sets import HELD_OUT, traces  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402

from scheduler.habits import Counts  # noqa: E402
from scheduler.placement import plan_placement  # noqa: E402
from scheduler.prefetch import plan_prefetch  # noqa: E402
from scheduler.simulation.sessions import make_live  # noqa: E402
from scheduler.snapshot import (  # noqa: E402
    ClusterView,
    LinkView,
    MemoryView,
    PendingView,
    Resources,
    RunningView,
    TenantView,
    TierView,
    WorkerView,
    pending_table,
    running_table,
)

REPEATS = 5
PAST_CHUNKS = (100, 300, 1000, 3000)
PLANS = 60
"""Consecutive plans per size."""
WORKERS_PER_NODE, TENANTS = 8, 5
CLUSTERS = (
    (1000, 8_000, 0.0),
    (1000, 8_000, 0.9),
    (1000, 50_000, 0.99),
    (1000, 50_000, 0.0),
)
"""Nodes, sessions that wait, share of workers that are busy."""
GROWTH = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
"""Sessions that wait for 8,000 workers, 99 % of them busy."""
HEADS = ["decision", "wall p50", "wall p99", "CPU p50", "CPU p99", "best p50", "best p99"]
Row = dict[str, str | float]


def timed(label: str, decide: Callable[[object], object], given: Sequence[object]) -> Row:
    """Milliseconds of a decision about each of what is given; a copy of it each time, which is not timed."""
    count = len(given)
    taken = np.empty((2, count, REPEATS))
    for repeat in range(REPEATS):
        for number in range(count):
            one = copy.deepcopy(given[number]) if isinstance(given[number], tuple) else given[number]
            wall, cpu = time.perf_counter(), time.process_time()
            decide(one)
            taken[:, number, repeat] = time.perf_counter() - wall, time.process_time() - cpu
    wall_NR, cpu_NR = 1e3 * taken
    numbers = [np.percentile(values, share) for values in (wall_NR, cpu_NR, cpu_NR.min(axis=1)) for share in (50, 99)]
    row: Row = {HEADS[0]: label} | {head: float(value) for head, value in zip(HEADS[1:], numbers, strict=True)}
    print(" | ".join(line(row)), flush=True)
    return row


def line(row: Row) -> list[str]:
    """The cells of a row."""
    return [value if isinstance(value, str) else f"{value:.2f}" for value in row.values()]


def session_plans() -> Iterator[Row]:
    """Plans of a session with so many past chunks, most of them in colder tiers."""
    for past in PAST_CHUNKS:
        for scripted in (False, True):
            (trace,) = traces("roam", 1, past + PLANS + 8, HELD_OUT, scripted=scripted)
            live = make_live(0, trace, Counts())
            views, habits = [], []
            for chunk in range(past + PLANS):
                live.chunk = chunk
                live.learn()
                live.tier_C[:chunk] = np.where(np.arange(chunk) % 40 == 0, 0, 1 + (np.arange(chunk) < chunk - 80))
                if chunk >= past:
                    views.append(memory_view(live.view(), trace.chunk_bytes))
                    # As it was then: what was worked out for motions not made since is still known, no more.
                    habits.append(copy.deepcopy(live.habits))
                    live.habits.predict(views[-1].sessions[0], 2)

            kind = "script" if scripted else "live"
            given = list(zip(views, habits, strict=True))
            yield timed(f"plan, {kind}, {past:,} past chunks", decide, given)


def decide(one: object) -> object:
    """The plan of a session's view, with habits as they were."""
    assert isinstance(one, tuple)
    view, habits = one
    return plan_prefetch(view, {view.sessions[0].session: (habits,)})


def memory_view(session: object, chunk_bytes: int) -> MemoryView:
    """A device with room for a dozen chunks more, host memory, a disk."""
    tiers = (
        TierView("device", 120 * chunk_bytes, 108 * chunk_bytes, chunk_bytes),
        TierView("host", 2000 * chunk_bytes, 80 * chunk_bytes),
        TierView("disk", 10**6 * chunk_bytes, 4000 * chunk_bytes),
    )
    return MemoryView(0.0, tiers, (LinkView(55e9), LinkView(2e9)), (session,), 64 * 10**9)  # type: ignore[arg-type]


def cluster(nodes: int, waiting: int, busy: float, *, gangs: float = 0.02) -> ClusterView:
    """Nodes of 8 GPUs; one waiting session in 50 needs a whole node, one in two has chunks on some node."""
    rng = np.random.default_rng(0)
    room, needs = Resources(1, 50 * 10**9, 150 * 10**9), Resources(1, 20 * 10**9, 100 * 10**9)
    workers = tuple(
        WorkerView(f"n{number // WORKERS_PER_NODE}g{number % WORKERS_PER_NODE}", f"n{number // WORKERS_PER_NODE}", room)
        for number in range(nodes * WORKERS_PER_NODE)
    )
    running = [
        RunningView(f"r{number}", f"t{number % TENANTS}", (workers[number].worker,), needs, float(number))
        for number in np.flatnonzero(rng.random(len(workers)) < busy).tolist()
    ]
    pending = [
        PendingView(
            f"p{number}",
            f"t{rng.integers(TENANTS)}",
            needs,
            8 if rng.random() < gangs else 1,
            int(rng.integers(3)),
            float(rng.uniform(0, 90)),
            {} if rng.random() < 0.5 else {f"n{rng.integers(nodes)}": 10**10},
        )
        for number in range(waiting)
    ]
    tenants = {f"t{number}": TenantView(1.0 + number) for number in range(TENANTS)}
    return ClusterView(100.0, workers, running_table(running), pending_table(pending), tenants)


def rounds() -> Iterator[Row]:
    """Rounds of placement on 8,000 GPUs."""
    for nodes, waiting, busy in CLUSTERS:
        view = cluster(nodes, waiting, busy)
        placed = len(plan_placement(view).placed)
        gc.freeze()  # as a process that plans for thousands should: a collection in a round walks the whole snapshot
        label = f"round, {nodes * WORKERS_PER_NODE:,} GPUs, {busy:.0%} busy, {waiting:,} wait, {placed:,} placed"
        yield timed(label, plan_placement, [view] * 6)  # type: ignore[arg-type]  # a view


def growth() -> list[Row]:
    """The least CPU time of a round by how many wait, and its ratio to n log n."""
    rows: list[Row] = []
    for waiting in GROWTH:
        view = cluster(1000, waiting, 0.99)
        seconds = []
        for _ in range(12):
            started = time.process_time()
            plan_placement(view)
            seconds.append(time.process_time() - started)
        rows.append({"waiting": f"{waiting:,}", "best CPU ms": 1e3 * min(seconds)})
    base = float(rows[0]["best CPU ms"])
    for row, waiting in zip(rows, GROWTH, strict=True):
        row["ratio to the first"] = float(row["best CPU ms"]) / base
        row["n log n would be"] = waiting * np.log(waiting) / (GROWTH[0] * np.log(GROWTH[0]))
        print(" | ".join(line(row)), flush=True)
    return rows


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    decisions = [*session_plans(), *rounds()]
    grown = growth()
    body = (
        f"Milliseconds on one core. `best`: the least CPU time of each decision in {REPEATS} passes. A session's plan "
        "looks two chunks ahead along eight ways where it is live, four along the script where it has one; a round "
        "includes the check of the snapshot. Snapshots are gathered before.\n\n"
        f"{markdown_table(HEADS, [line(row) for row in decisions])}\n\nGrowth with the sessions that wait:\n\n"
        f"{markdown_table([*grown[0]], [line(row) for row in grown])}"
    )
    print(body)
    if given.out:
        facts = circumstances(torch.device("cpu")) | {"load average at the start": f"{load:.1f}"}
        save(
            given.out,
            "What the scheduler's decisions cost",
            body,
            {"circumstances": facts, "rows": decisions, "growth": grown},
        )


if __name__ == "__main__":
    main()
