"""Whether one tenant's flood costs another its share or its quick start, in the simulator with the scheduler's rounds.

    python benchmarks/scheduler_fairness.py --out benchmarks/scheduler_fairness_cpu_202611

Deterministic: nothing is timed.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402

from scheduler.giving_way import PATIENCE_SECONDS  # noqa: E402
from scheduler.placement import PlacementSettings  # noqa: E402
from scheduler.simulation.engine import World  # noqa: E402
from scheduler.simulation.figures import Figures  # noqa: E402
from scheduler.simulation.hardware import Sizes, h200_cluster  # noqa: E402
from scheduler.simulation.placing import Rounds  # noqa: E402
from scheduler.simulation.strategies import Planned  # noqa: E402
from scheduler.snapshot import TenantView  # noqa: E402
from scheduler.synthetic import Load, made_up  # noqa: E402
from scheduler.trace import SessionTrace  # noqa: E402

NODES, PER_NODE = 4, 8
CHUNKS = 20
"""42 s of making per session."""
HARDWARE = h200_cluster(NODES, PER_NODE, sizes=Sizes(device_chunks=40), round_seconds=1.0)
WEIGHTS = ({"quiet": 1.0, "flood": 1.0}, {"quiet": 3.0, "flood": 1.0}, {"quiet": 1.0, "flood": 3.0})
BACKLOG, ARRIVES, COUNTED_SECONDS = 400, 33.0, 250.0
"""Sessions that each tenant brings at once, the quiet one so long after the flood took all, and from then on for how
long shares are counted: both have some waiting all the while."""
SHORTEST = 10
"""Chunks of the shortest session where lengths differ."""
BURST, BURSTS, PAUSE = 12, 8, 45.0
"""The quiet tenant's own load: so many sessions every so many seconds, 70 % of half the cluster."""
PATIENCES = (5.0, 2.0, PATIENCE_SECONDS)
"""What a tenant below its share waits before others give way; the last is what the scheduler has."""
RESERVED = (6, 12, 16)


def sessions(tenant: str, count: int, seed: int, *, every: float = 0.0, burst: int = 1) -> list[SessionTrace]:
    """`count` sessions of a tenant, `burst` of them at once."""
    load = made_up(Load(count, CHUNKS, kind="keys", scripted_share=1.0, seed=seed))
    return [
        replace(one, session=f"{tenant}-{number}", tenant=tenant, arrives_seconds=number // burst * every)
        for number, one in enumerate(load)
    ]


def shortened(trace: SessionTrace, number: int) -> SessionTrace:
    """The session, ended after SHORTEST to CHUNKS chunks."""
    chunks = int(np.random.default_rng([0xFA1, number]).integers(SHORTEST, CHUNKS + 1))
    return replace(trace, c2w_F44=trace.c2w_F44[: chunks * trace.frames_per_chunk])


class Until(Rounds):
    """Rounds that also add up who holds how many slots, until a time."""

    def __init__(self, tenants: Mapping[str, TenantView], since: float, until: float, patience_seconds: float) -> None:
        super().__init__(HARDWARE, tenants, PlacementSettings(patience_seconds=patience_seconds))
        self.since, self.until, self.held = since, until, dict.fromkeys(tenants, 0.0)
        self._since: dict[int, float] = {}

    def _start(self, world: World, number: int, workers: tuple[int, ...], now: float) -> None:
        self._since[number] = now
        super()._start(world, number, workers, now)

    def ended(self, world: World, live: object, now: float) -> None:
        """Count what it held."""
        self._count(live, now)
        super().ended(world, live, now)  # type: ignore[arg-type]  # a Live

    def suspended(self, world: World, live: object, now: float) -> None:
        """Count what it held so far."""
        self._count(live, now)
        super().suspended(world, live, now)  # type: ignore[arg-type]  # a Live

    def _count(self, live: object, now: float) -> None:
        number, tenant = live.number, live.trace.tenant  # type: ignore[attr-defined]  # a Live
        self.held[tenant] += max(0.0, min(now, self.until) - max(self.since, self._since.pop(number)))


def run(
    load: Sequence[SessionTrace],
    tenants: Mapping[str, TenantView],
    since: float = 0.0,
    patience_seconds: float = PATIENCE_SECONDS,
) -> tuple[Figures, Until]:
    """The simulation, and who held what."""
    placing = Until(tenants, since, since + COUNTED_SECONDS, patience_seconds)
    return World(load, HARDWARE, Planned(), placing=placing).run(), placing


def shares() -> list[dict[str, object]]:
    """Both tenants always have sessions waiting: who holds which part."""
    rows = []
    for weights in WEIGHTS:
        late = [replace(one, arrives_seconds=ARRIVES) for one in sessions("quiet", BACKLOG, 2)]
        load = [shortened(one, number) for number, one in enumerate([*sessions("flood", BACKLOG, 1), *late])]
        _, placing = run(load, {name: TenantView(weight) for name, weight in weights.items()}, ARRIVES)
        part = placing.held["quiet"] / sum(placing.held.values())
        entitled = weights["quiet"] / sum(weights.values())
        rows.append(
            {
                "weights, quiet : flood": f"{weights['quiet']:g} : {weights['flood']:g}",
                "quiet's part": round(part, 4),
                "its weight": entitled,
                "off by": round(part / entitled - 1, 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def waits() -> list[dict[str, object]]:
    """The quiet tenant's bursts, alone and while the other floods."""
    rows = []
    own = sessions("quiet", BURST * BURSTS, 2, every=PAUSE, burst=BURST)
    flood = sessions("flood", 600, 1)
    cases: list[tuple[str, list[SessionTrace], TenantView, float]] = [
        ("alone", own, TenantView(), PATIENCE_SECONDS),
        *((f"flooded, by weight, patience {n:g} s", [*own, *flood], TenantView(), n) for n in PATIENCES),
        *((f"flooded, {n} slots reserved", [*own, *flood], TenantView(1.0, n), PATIENCE_SECONDS) for n in RESERVED),
    ]
    for label, load, entitled, patience in cases:
        figures, _ = run(load, {"quiet": entitled, "flood": TenantView()}, patience_seconds=patience)
        waited = np.array(figures.queue_seconds["quiet"])
        rows.append(
            {
                "quiet tenant": label,
                "placements": len(waited),
                "wait p50, s": round(float(np.percentile(waited, 50)), 2),
                "wait p99, s": round(float(np.percentile(waited, 99)), 2),
                "suspended": figures.suspended,
                "all done, s": round(figures.end_seconds, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def body(parts: list[dict[str, object]], waited: list[dict[str, object]]) -> str:
    """What the .md file says."""
    return "\n\n".join(
        [
            f"{NODES} nodes of {PER_NODE} GPUs, {CHUNKS} chunks of 2.1 s per session, a round of placement a second.",
            f"The flood brings {BACKLOG} sessions and takes all; {ARRIVES:g} s later the quiet tenant brings as many. "
            f"Slots x seconds held in {COUNTED_SECONDS:g} s from then on, sessions of {SHORTEST} to {CHUNKS} chunks:",
            markdown_table([*parts[0]], [[str(value) for value in row.values()] for row in parts]),
            f"The quiet tenant brings {BURST} sessions every {PAUSE:g} s, {BURSTS} times; the flood is 600 sessions at "
            "once. A placement is the start of a session, or its going on after it gave way. By weight alone a burst "
            "waits for a round, then until enough of the flood's sessions end their chunk, those first that are "
            "nearest to it, which may take a chunk of 2.1 s, then for the round that follows. What is reserved is kept "
            "free, so that it waits for the next round only, as alone; the flood, which never gets it, takes longer.",
            markdown_table([*waited[0]], [[str(value) for value in row.values()] for row in waited]),
        ]
    )


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    given = parser.parse_args()
    parts, waited = shares(), waits()
    text = body(parts, waited)
    print(text)
    if given.out:
        content = {"circumstances": circumstances(torch.device("cpu")), "shares": parts, "waits": waited}
        save(given.out, "Fairness between tenants", text, content)


if __name__ == "__main__":
    main()
