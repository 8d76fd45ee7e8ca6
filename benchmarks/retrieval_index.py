"""Latency of every ranking against the number of stored chunks, on one core, beside brute force in the same run.

    python benchmarks/retrieval_index.py --out benchmarks/retrieval_index_cpu_202611

Wall time holds whatever else ran on the machine, CPU time of the process only what that did to the caches. `best` is
the least CPU time of each query in REPEATS passes over all, so its p99 is over queries, not over disturbances. The
first CHECKED queries of each size are checked against brute force.
"""

import os

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import argparse  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402
from scipy.spatial import cKDTree  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

from worldkv.camera import view_overlap  # noqa: E402
from worldkv.camera.overlaps import OVERLAP_SHORTLIST, VIEW_MIDDLE, by_overlap, centred_frustum  # noqa: E402
from worldkv.camera.poses import make_poses, yaw_rotations  # noqa: E402
from worldkv.memory import retrieval  # noqa: E402
from worldkv.memory.index import PoseIndex  # noqa: E402
from worldkv.memory.ranking import Query, choose  # noqa: E402

SIZES = (1_000, 10_000, 100_000)
QUERIES, BRUTE_QUERIES, CHECKED = 300, 10, 5
REPEATS = 5
RETRIEVED = 4
ROOM = 30.0
LAP_CHUNKS = 200
PLACES, WORLD, STEP = 60, 100.0, 0.5
SIGHT = 8.0
INTRINSICS = np.array([70.0, 70.0, 40.0, 40.0], np.float32)
RECALL_CHUNKS, RECALL_QUERIES = 20_000, 40
RANKINGS = ("pose", "yaw", "overlap", "random")
HEADS = ["camera, method", "chunks", "wall p50", "wall p99", "CPU p50", "CPU p99", "best p50", "best p99"]
Row = dict[str, str | int | float]


def roam(chunks: int, rng: np.random.Generator) -> np.ndarray:
    """A walk of STEP units a chunk among PLACES places in a WORLD units wide world, each seen again and again.

    The camera looks along its way, with a sway of a few degrees.
    """
    place_P2 = rng.uniform(0, WORLD, (PLACES, 2))
    at, legs, walked = 0, [], 0
    while walked < chunks:
        to = int((at + rng.integers(1, PLACES)) % PLACES)
        steps = max(1, int(np.linalg.norm(place_P2[to] - place_P2[at]) / STEP))
        legs.append(place_P2[at] + np.linspace(0, 1, steps, endpoint=False)[:, None] * (place_P2[to] - place_P2[at]))
        at, walked = to, walked + steps
    x_N, z_N = np.concatenate(legs)[:chunks].T
    yaw_N = np.degrees(np.arctan2(np.gradient(x_N), np.gradient(z_N))) + rng.normal(0, 5, chunks)
    return make_poses(yaw_rotations(yaw_N), np.stack([x_N, np.zeros(chunks), z_N], axis=1))


def wander(chunks: int, rng: np.random.Generator) -> np.ndarray:
    """An upright camera that turns and walks at random through a room of ROOM units, round its edges."""
    yaw_N = np.cumsum(rng.normal(0, 20, chunks))
    place_N3 = np.cumsum(rng.normal(size=(chunks, 3)) * [1, 0, 1], axis=0) % ROOM
    return make_poses(yaw_rotations(yaw_N), place_N3)


def anywhere(chunks: int, rng: np.random.Generator) -> np.ndarray:
    """Any place, any rotation, nothing to do with the chunk before."""
    return make_poses(Rotation.random(chunks, rng=rng).as_matrix(), rng.normal(size=(chunks, 3)))


def laps(chunks: int, rng: np.random.Generator) -> np.ndarray:
    """The same LAP_CHUNKS poses over and over: every distance is tied hundreds of times."""
    return np.resize(wander(LAP_CHUNKS, rng), (chunks, 4, 4))


def stands(chunks: int, rng: np.random.Generator) -> np.ndarray:
    """Wanders for 1 chunk in 10, in between stands still."""
    return np.repeat(wander(-(-chunks // 1000) * 100, rng), 10, axis=0)[:chunks]


def timed(label: str, size: int, run: Callable[[np.ndarray], object], queries: np.ndarray) -> Row:
    """Wall and CPU microseconds of the queries, each asked once per pass over all."""
    taken = np.empty((2, len(queries), REPEATS))
    for repeat in range(REPEATS):
        for place, query in enumerate(queries):
            wall, cpu = time.perf_counter(), time.process_time()
            run(query)
            taken[:, place, repeat] = time.perf_counter() - wall, time.process_time() - cpu
    wall_QR, cpu_QR = 1e6 * taken
    numbers = [np.percentile(values, share) for values in (wall_QR, cpu_QR, cpu_QR.min(axis=1)) for share in (50, 99)]
    row: Row = {HEADS[0]: label, HEADS[1]: size} | {
        head: round(float(number), 1) for head, number in zip(HEADS[2:], numbers, strict=True)
    }
    print(" | ".join(line(row)), flush=True)
    return row


def line(row: Row) -> list[str]:
    """The cells of a row."""
    return [value if isinstance(value, str) else f"{value:,.0f}" for value in row.values()]


def brute_force(ranking: str, pose_N44: np.ndarray, allowed: range, query: np.ndarray) -> list[int]:
    """What the ranking must choose, from all mean poses."""
    query_44, inside_N44 = retrieval.mean_pose(query), pose_N44[allowed.start : allowed.stop]
    if ranking == "overlap":
        apart_sq_N = retrieval.views_apart_sq(inside_N44, query_44, VIEW_MIDDLE * SIGHT)
        chunk_n = retrieval.select(apart_sq_N, allowed, OVERLAP_SHORTLIST)
        frustum = centred_frustum(INTRINSICS, SIGHT)
        return by_overlap(chunk_n.tolist(), pose_N44[chunk_n], query_44, frustum, RETRIEVED)
    turn = retrieval.yaw_and_pitch if ranking == "yaw" else None
    distance_N = retrieval.mean_pose_distance(inside_N44, query_44, turn=turn)
    return retrieval.select(distance_N, allowed, RETRIEVED).tolist()


def measure(path: Callable[[int, np.random.Generator], np.ndarray]) -> Iterator[Row]:
    """Grow one index to each size; every ranking, and brute force by pose, on the same queries."""
    pose_N44 = path(SIZES[-1] + QUERIES, np.random.default_rng(0)).astype(np.float32)
    queries = pose_N44[SIZES[-1] :, None]
    index, mean_N44 = PoseIndex(parity=False), retrieval.mean_pose(pose_N44[: SIZES[-1], None])
    known = 0
    for size in SIZES:
        for chunk in range(known, size):
            index.add(chunk, pose_N44[chunk, None])
        known, allowed = size, range(1, size - 2)
        for ranking in RANKINGS:

            def indexed(query: np.ndarray, ranking: str = ranking, allowed: range = allowed) -> list[int]:
                asked = Query(query, INTRINSICS, chunk=allowed.stop + 2, seed=0, rollout=0)
                return choose(ranking, index, allowed, asked, RETRIEVED, sight=SIGHT)  # type: ignore[arg-type]  # a name

            for query in queries[: CHECKED if ranking != "random" else 0]:
                assert brute_force(ranking, mean_N44, allowed, query) == indexed(query), (path, size, ranking)
            yield timed(f"{path.__name__}, {ranking}", size, indexed, queries)

        def brute(query: np.ndarray, allowed: range = allowed) -> list[int]:
            return brute_force("pose", mean_N44, allowed, query)

        yield timed(f"{path.__name__}, pose by brute force", size, brute, queries[:BRUTE_QUERIES])


def measure_recall(path: Callable[[int, np.random.Generator], np.ndarray]) -> Row:
    """What share of the view the chosen saw, on average, by ranking; and what those saw that see most of it."""
    pose_N44 = path(RECALL_CHUNKS + RECALL_QUERIES, np.random.default_rng(0)).astype(np.float32)
    index, mean_N44 = PoseIndex(parity=False), retrieval.mean_pose(pose_N44[:RECALL_CHUNKS, None])
    for chunk in range(RECALL_CHUNKS):
        index.add(chunk, pose_N44[chunk, None])
    frustum, seen = centred_frustum(INTRINSICS, SIGHT), {"overlap": 0.0, "pose": 0.0, "best": 0.0}
    for pose_44 in pose_N44[RECALL_CHUNKS:]:
        asked = Query(pose_44[None], INTRINSICS, chunk=RECALL_CHUNKS, seed=0, rollout=0)
        parts = np.array_split(mean_N44, RECALL_CHUNKS // 500)
        share_N = np.concatenate([view_overlap(pose_44.astype(np.float64), part, frustum) for part in parts])
        seen["best"] += np.sort(share_N)[-RETRIEVED:].mean() / RECALL_QUERIES
        for ranking in ("overlap", "pose"):
            chosen = choose(ranking, index, range(RECALL_CHUNKS), asked, RETRIEVED, sight=SIGHT)  # type: ignore[arg-type]
            seen[ranking] += share_N[chosen].mean() / RECALL_QUERIES
    return {"camera": path.__name__} | {name: round(100 * float(share), 1) for name, share in seen.items()}


def measure_tree(path: Callable[[int, np.random.Generator], np.ndarray]) -> Row:
    """A k-d tree over place and quaternion with fixed weights: it knows neither maxima, nor ranges, nor sign."""
    pose_N44 = path(SIZES[-1] + QUERIES, np.random.default_rng(0))
    quaternion_N4 = Rotation.from_matrix(pose_N44[:, :3, :3]).as_quat()
    point_N7 = np.concatenate([pose_N44[:, :3, 3] / np.ptp(pose_N44[:, :3, 3]), quaternion_N4], axis=1)
    started = time.process_time()
    tree = cKDTree(point_N7[: SIZES[-1]])
    label = f"{path.__name__}, k-d tree (built in {1000 * (time.process_time() - started):.0f} ms)"
    return timed(label, SIZES[-1], lambda point_7: tree.query(point_7, RETRIEVED), point_N7[SIZES[-1] :])


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    load = os.getloadavg()[0]
    rows = [row for path in (roam, wander, anywhere, laps, stands) for row in measure(path)]
    rows += [measure_tree(path) for path in (roam, anywhere)]
    recalls = [measure_recall(path) for path in (roam, wander, anywhere)]
    print(recalls)
    if given.out:
        facts = circumstances(torch.device("cpu"))
        facts |= {"numpy": np.__version__, "load average at the start": f"{load:.1f}"}
        content = {"circumstances": facts, "rows": rows, "recalls": recalls}
        save(given.out, "Retrieval against the number of chunks, on one core", body(rows, recalls), content)


def body(rows: list[Row], recalls: list[Row]) -> str:
    """What the .md file says: the slowest at the largest size first, then everything."""
    worst = [
        max(
            (row for row in rows if row["chunks"] == SIZES[-1] and str(row[HEADS[0]]).endswith(f", {ranking}")),
            key=lambda row: row["best p99"],
        )
        for ranking in RANKINGS
    ]
    return (
        f"Microseconds; {RETRIEVED} chunks retrieved out of all but the first and the last two. Checked selections "
        "equal brute force's. Where the load is above the number of cores the machine was shared: the wall's p99 is "
        "then the time slice of other work, and CPU times include refilling the caches after it. `best` is the least "
        f"CPU time of each query in {REPEATS} passes.\n\nThe camera that makes each ranking slowest, by `best p99`, at "
        f"{SIZES[-1]:,} chunks:\n\n"
        f"{markdown_table(HEADS, [line(row) for row in worst])}\n\nAll:\n\n"
        f"{markdown_table(HEADS, [line(row) for row in rows])}\n\n"
        "The k-d tree is no alternative: its weights are fixed, while the published distance divides by maxima over "
        "the candidates; it knows neither ranges nor forgotten chunks nor ties, and is rebuilt as chunks arrive.\n\n"
        f"Of what the camera will see the {RETRIEVED} chosen saw, in %, by ranking; `best`: the {RETRIEVED} of all "
        f"{RECALL_CHUNKS:,} that saw most of it. Mean of {RECALL_QUERIES} queries, sight {SIGHT:g} units.\n\n"
        f"{markdown_table([*recalls[0]], [[f'{value}' for value in row.values()] for row in recalls])}"
    )


if __name__ == "__main__":
    main()
