"""Latency of pose retrieval against the number of stored chunks, on one core, beside brute force in the same run.

    python benchmarks/retrieval_index.py > table.md

Wall time holds whatever else ran on the machine, CPU time of the thread only what that did to the caches. `best` is the
least CPU time of each query in REPEATS passes over all, so its p99 is over queries, not over disturbances. The first
CHECKED queries of each size are checked against brute force.
"""

import os

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import numpy as np  # noqa: E402
from scipy.spatial import cKDTree  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

from worldkv.camera.poses import make_poses, yaw_rotations  # noqa: E402
from worldkv.memory import retrieval  # noqa: E402
from worldkv.memory.index import PoseIndex  # noqa: E402

SIZES = (100, 1_000, 10_000, 100_000)
QUERIES, BRUTE_QUERIES, CHECKED = 300, 20, 10
REPEATS = 5
RETRIEVED = 4
ROOM = 30.0
LAP_CHUNKS = 200


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


def timed(run: Callable[[np.ndarray], object], queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wall microseconds [Q, REPEATS] and CPU microseconds of the same, each query asked once per pass over all."""
    taken = np.empty((2, len(queries), REPEATS))
    for repeat in range(REPEATS):
        for place, query in enumerate(queries):
            wall, cpu = time.perf_counter(), time.thread_time()
            run(query)
            taken[:, place, repeat] = time.perf_counter() - wall, time.thread_time() - cpu
    wall_QR, cpu_QR = 1e6 * taken
    return wall_QR, cpu_QR


def row(label: str, size: int, wall_QR: np.ndarray, cpu_QR: np.ndarray) -> None:
    """One line of the table."""
    numbers = [np.percentile(values, share) for values in (wall_QR, cpu_QR, cpu_QR.min(axis=1)) for share in (50, 99)]
    print(f"| {label} | {size:,} | " + " | ".join(f"{number:,.0f}" for number in numbers) + " |", flush=True)


def measure(path: Callable[[int, np.random.Generator], np.ndarray]) -> None:
    """Grow one index to each size; index, its screening alone and brute force on the same queries."""
    rng = np.random.default_rng(0)
    pose_N44 = path(SIZES[-1] + QUERIES, rng).astype(np.float32)
    queries = pose_N44[SIZES[-1] :, None]
    index, mean_N44 = PoseIndex(parity=False), retrieval.mean_pose(pose_N44[: SIZES[-1], None])
    known = 0
    for size in SIZES:
        for chunk in range(known, size):
            index.add(chunk, pose_N44[chunk, None])
        known, allowed = size, range(1, size - 2)

        def brute(query: np.ndarray, allowed: range = allowed) -> list[int]:
            distance_N = retrieval.mean_pose_distance(mean_N44[1 : allowed.stop], retrieval.mean_pose(query))
            return retrieval.select(distance_N, allowed, RETRIEVED).tolist()

        def indexed(query: np.ndarray, allowed: range = allowed) -> list[int]:
            return index.nearest(allowed, query, RETRIEVED)

        for query in queries[:CHECKED]:
            assert brute(query) == indexed(query)
        row(f"{path.__name__}, index", size, *timed(indexed, queries))
        row(f"{path.__name__}, brute force", size, *timed(brute, queries[:BRUTE_QUERIES]))


def measure_tree() -> None:
    """A k-d tree over place and quaternion with fixed weights: it knows neither maxima, nor ranges, nor sign."""
    rng = np.random.default_rng(0)
    for path in (wander, anywhere):
        pose_N44 = path(SIZES[-1] + QUERIES, rng)
        quaternion_N4 = Rotation.from_matrix(pose_N44[:, :3, :3]).as_quat()
        point_N7 = np.concatenate([pose_N44[:, :3, 3] / np.ptp(pose_N44[:, :3, 3]), quaternion_N4], axis=1)
        started = time.perf_counter()
        tree = cKDTree(point_N7[: SIZES[-1]])
        built = time.perf_counter() - started
        row(
            f"{path.__name__}, k-d tree (built in {1000 * built:.0f} ms)",
            SIZES[-1],
            *timed(lambda point_7, tree=tree: tree.query(point_7, RETRIEVED), point_N7[SIZES[-1] :]),
        )


def main() -> None:
    """Print the table."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"Load average at the start {os.getloadavg()[0]:.2f}; microseconds.\n")
    print("| camera, method | chunks | wall p50 | wall p99 | CPU p50 | CPU p99 | best p50 | best p99 |")
    print("|---|---|---|---|---|---|---|---|")
    for path in (wander, anywhere, laps, stands):
        measure(path)
    measure_tree()
    print(f"\nLoad average at the end {os.getloadavg()[0]:.2f}.")


if __name__ == "__main__":
    main()
