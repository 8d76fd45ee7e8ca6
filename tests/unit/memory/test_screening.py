"""The index against brute force: the same chunks in the same order, whatever the camera does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldkv.memory import index as index_module
from worldkv.memory import pose_rows, retrieval, screening
from worldkv.memory.index import PoseIndex
from worldkv.memory.retrieval import Turn, yaw_and_pitch

MOTIONS = ("anywhere", "laps", "stands", "turns", "walks", "drifts", "trembles", "far away", "tiny", "flips", "roams")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks and screening from a few rows up, so that small cases reach all of the code."""
    monkeypatch.setattr(pose_rows, "BLOCK_ROWS", 32)
    monkeypatch.setattr(index_module, "BLOCK_ROWS", 32)
    monkeypatch.setattr(screening, "SAMPLE_COLUMNS", 8)
    monkeypatch.setattr(screening, "FEW", 3)


def motion(kind: str, chunks: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 poses [N, 1, 4, 4], and the last of them for a query."""
    turn_N3, place_N3 = rng.normal(size=(chunks, 3)), rng.normal(size=(chunks, 3))
    lap_N, still_N = np.arange(chunks) % 7, np.sort(rng.integers(0, 5, chunks))
    match kind:
        case "laps":
            turn_N3, place_N3 = turn_N3[lap_N], place_N3[lap_N]
        case "stands":
            turn_N3, place_N3 = turn_N3[still_N % chunks], place_N3[still_N % chunks]
        case "turns":
            place_N3[:] = place_N3[0]
        case "roams":  # upright, across the half circle and back to places it knows
            turn_N3 = np.pi * np.cumsum(turn_N3[lap_N] / 8, axis=0) * [0, 1, 0]
            place_N3 = np.cumsum(place_N3, axis=0) % 5
        case "walks":
            turn_N3[:] = turn_N3[0]
        case "drifts":
            turn_N3 *= 1e-4
        case "trembles":
            turn_N3, place_N3 = turn_N3[:1] + 1e-7 * turn_N3, place_N3[:1] + 1e-7 * place_N3
        case "far away":
            place_N3 = 1e4 + place_N3
        case "tiny":
            place_N3 *= 1e-18
        case "flips":
            turn_N3 = np.pi * (lap_N[:, None] % 3 - 1) * np.array([[0, 1, 0]])
            place_N3 = np.round(place_N3)
    poses = np.tile(np.eye(4), (chunks, 1, 1, 1))
    poses[:, 0, :3, :3] = Rotation.from_rotvec(turn_N3).as_matrix()
    poses[:, 0, :3, 3] = place_N3
    return poses.astype(np.float32)


def brute_force(
    poses: dict[int, np.ndarray], query: np.ndarray, count: int, *, parity: bool = False, turn: Turn | None = None
) -> list[int]:
    if not poses:
        return []
    mean_N44 = np.stack([retrieval.mean_pose(pose, parity=parity) for pose in poses.values()])
    query_44 = retrieval.mean_pose(query, parity=parity)
    distance_N = retrieval.mean_pose_distance(mean_N44, query_44, parity=parity, turn=turn)
    return retrieval.select(distance_N, list(poses), count).tolist()


def nearest_views(poses: dict[int, np.ndarray], query: np.ndarray, count: int, depth: float) -> list[int]:
    if not poses:
        return []
    mean_N44 = np.stack([retrieval.mean_pose(pose) for pose in poses.values()])
    apart_sq_N = retrieval.views_apart_sq(mean_N44, retrieval.mean_pose(query), depth)
    return retrieval.select(apart_sq_N, list(poses), count).tolist()


@pytest.mark.parametrize("kind", MOTIONS)
@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    chunks=st.integers(1, 150),
    count=st.integers(0, 6),
    forgotten_share=st.sampled_from([0.0, 0.02, 0.3, 0.9]),
    new_query=st.booleans(),
    parity=st.sampled_from([False, False, False, True]),
)
def test_selects_what_brute_force_selects(kind, seed, chunks, count, forgotten_share, new_query, parity):
    rng = np.random.default_rng(seed)
    poses_N144 = motion(kind, chunks + 1, rng)
    query = poses_N144[-1] if new_query else poses_N144[rng.integers(chunks)]
    index = PoseIndex(parity=parity)
    for chunk in range(chunks):
        index.add(chunk, poses_N144[chunk])
    for chunk in np.flatnonzero(rng.random(chunks) < forgotten_share):
        index.forget(int(chunk))
    low, high = sorted(rng.integers(0, chunks + 2, 2).tolist())
    for allowed in (range(low, high), range(chunks), range(1, max(1, chunks - 2))):
        left = {chunk: poses_N144[chunk] for chunk in index.chunks() if chunk in allowed}
        assert index.candidates(allowed).tolist() == list(left)
        assert index.nearest(allowed, query, count) == brute_force(left, query, count, parity=parity)
        if not parity:
            expected = brute_force(left, query, count, turn=yaw_and_pitch)
            assert index.nearest(allowed, query, count, yaw_and_pitch) == expected
            assert index.nearest_views(allowed, query, count, depth=1.5) == nearest_views(left, query, count, 1.5)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12, 1e20])
def test_no_unit_of_length_is_too_small_or_large(scale):
    poses_N144 = motion("anywhere", 120, np.random.default_rng(3))
    poses_N144[:, :, :3, 3] *= np.float32(scale)
    index = PoseIndex(parity=False)
    for chunk, pose in enumerate(poses_N144[:-1]):
        index.add(chunk, pose)
    expected = brute_force(dict(enumerate(poses_N144[:-1])), poses_N144[-1], 4)
    assert index.nearest(range(200), poses_N144[-1], 4) == expected
    seen = nearest_views(dict(enumerate(poses_N144[:-1])), poses_N144[-1], 4, float(scale))
    assert index.nearest_views(range(200), poses_N144[-1], 4, depth=float(scale)) == seen


@pytest.mark.parametrize("turn", [*screening.TURN_BOUNDS], ids=lambda turn: turn.__name__)
def test_few_of_many_rows_are_left_to_rank(turn):
    rng = np.random.default_rng(0)
    poses_N144 = motion("anywhere", 3001, rng)
    index = PoseIndex(parity=False)
    for chunk in range(3000):
        index.add(chunk, poses_N144[chunk])
    parts = index._parts(range(3000))
    scratch = np.empty((3, 3000), np.float32)
    screened = screening.screen(parts, retrieval.mean_pose(poses_N144[-1]), 4, scratch, turn)
    assert 4 <= len(screened.row_N) <= 30


def test_few_of_many_rows_are_left_to_rank_by_view():
    poses_N144 = motion("anywhere", 3001, np.random.default_rng(0))
    index = PoseIndex(parity=False)
    for chunk in range(3000):
        index.add(chunk, poses_N144[chunk])
    query_44, scratch = retrieval.mean_pose(poses_N144[-1]), np.empty((3, 3000), np.float32)
    assert 4 <= len(screening.screen_views(index._parts(range(3000)), query_44, 1.0, 4, scratch)) <= 30
