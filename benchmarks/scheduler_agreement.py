"""Whether the simulator agrees with a real run: a rollout is recorded as a trace, replayed, and hit rates are compared.

    python benchmarks/scheduler_agreement.py --out benchmarks/scheduler_agreement_cpu_202611

The run is that of `worldkv.rollout` with sessions, retrieval and the chunk memory as always, on a network with random
weights: what it dreams changes nothing about which chunks are asked for and where they lie. Tiers move nothing ahead of
time, so the simulator's strategy is `lru`. Stalls are not compared: tiers in one process's memory have none.
"""

import argparse
import os
import tempfile
from collections import Counter
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import math  # noqa: E402

import torch  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402

from scheduler.simulation.engine import World  # noqa: E402
from scheduler.simulation.hardware import Hardware, LinkSpec, TierSpec  # noqa: E402
from scheduler.simulation.strategies import Reactive  # noqa: E402
from scheduler.snapshot import Recall  # noqa: E402
from scheduler.trace import Observed, SessionTrace, read_trace, write_trace  # noqa: E402
from worldkv.denoise import noise_levels  # noqa: E402
from worldkv.memory.policy import parse_policy  # noqa: E402
from worldkv.memory.store import ChunkMemory  # noqa: E402
from worldkv.memory.tiers.resident import ResidentTier  # noqa: E402
from worldkv.models.rooms.model import RoomsModel  # noqa: E402
from worldkv.models.rooms.network import RoomsNetwork, Shape  # noqa: E402
from worldkv.models.rooms.paths import Pace  # noqa: E402
from worldkv.models.rooms.scene import PathKind, Scene  # noqa: E402
from worldkv.rollout import rollout  # noqa: E402
from worldkv.session import open_session  # noqa: E402

SHAPE = Shape(image=20, patch=10, layers=2, heads=2, head_dim=24, trained_frames=48)
CHUNKS = 150
KINDS: tuple[PathKind, ...] = ("roam", "wander", "back")
TIERS = (("device", 12), ("host", 36), ("disk", None))
"""Name, and capacity in chunks."""
CPU, EPOCH = torch.device("cpu"), "random"


def recorded(kind: PathKind, file: Path) -> int:
    """Roll out one session, write its trace; the bytes of a stored chunk."""
    torch.manual_seed(0)
    model = RoomsModel(RoomsNetwork(SHAPE).requires_grad_(False).eval(), 1.0, EPOCH, CPU)
    policy = parse_policy("worldkv")
    trajectory = Scene(5, SHAPE.image).trajectory(kind, CHUNKS * SHAPE.frames_per_chunk, Pace(17.0, 0.1))
    chunk_bytes = stored_bytes(model, trajectory)
    tiers = [
        ResidentTier(name, CPU, 2**40 if chunks is None else chunks * chunk_bytes, verifies=place > 0)
        for place, (name, chunks) in enumerate(TIERS)
    ]
    memory = ChunkMemory(tiers, EPOCH)
    session = open_session(model, memory, policy, trajectory)
    observed, before = [], Counter[str]()
    for (record,) in rollout(model, [session], levels=noise_levels(1, 3.0)):
        hits = Counter({tier.name: tier.hits for tier in memory.stats().tiers})
        observed.append(Observed(record.chunk, dict(hits - before), record.missed))
        before = hits
    memory.close()
    trace = SessionTrace(
        session=kind,
        tenant="default",
        c2w_F44=trajectory.c2w_F44,
        frames_per_chunk=SHAPE.frames_per_chunk,
        chunk_seconds=1.0,
        chunk_bytes=chunk_bytes,
        recall=Recall(policy.retrieved_chunks, policy.sink_chunks, policy.recent_chunks or 0),
        observed=tuple(observed),
    )
    write_trace(file, [trace])
    return chunk_bytes


def stored_bytes(model: RoomsModel, trajectory: object) -> int:
    """What the first stored chunk takes of a tier."""
    memory = ChunkMemory([ResidentTier("device", CPU, 2**40, verifies=False)], EPOCH)
    session = open_session(model, memory, parse_policy("worldkv"), trajectory)  # type: ignore[arg-type]
    for _ in rollout(model, [session], levels=noise_levels(1, 3.0)):
        if used := memory.stats().tiers[0].used_bytes:
            memory.close()
            return used
    raise AssertionError("no chunk was stored")


def replayed(file: Path, chunk_bytes: int) -> Counter[str]:
    """Tier -> hits of the simulator on the trace."""
    tiers = tuple(
        TierSpec(name, math.inf if chunks is None else chunks * chunk_bytes, "worker") for name, chunks in TIERS
    )
    links = tuple(LinkSpec(1e12, 0.0, "worker") for _ in TIERS[1:])
    return World(read_trace(file), Hardware(tiers, links), Reactive()).run().hits


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.trace"
            chunk_bytes = recorded(kind, file)
            real = Counter[str]()
            for one in read_trace(file)[0].observed:
                real.update(one.hits)
            simulated = replayed(file, chunk_bytes)
        for name, _ in TIERS:
            ratios = real[name] / real.total(), simulated[name] / simulated.total()
            rows.append(
                {
                    "camera, tier": f"{kind}, {name}",
                    "real hits": real[name],
                    "real ratio": round(ratios[0], 4),
                    "simulated ratio": round(ratios[1], 4),
                    "points apart": round(100 * abs(ratios[0] - ratios[1]), 2),
                }
            )
            print(rows[-1], flush=True)
    body = (
        f"One session of {CHUNKS} chunks per camera; tiers of {TIERS[0][1]} and {TIERS[1][1]} chunks, the last without "
        "bound.\n\n" + markdown_table([*rows[0]], [[str(value) for value in row.values()] for row in rows])
    )
    if given.out:
        content = {"circumstances": circumstances(CPU), "rows": rows}
        save(given.out, "The simulator against a real run", body, content)


if __name__ == "__main__":
    main()
