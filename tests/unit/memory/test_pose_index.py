import numpy as np
import pytest

from worldkv.memory import retrieval
from worldkv.memory.index import PoseIndex


def poses_of(chunks: int, seed: int = 0) -> np.ndarray:
    """Random level poses [N, F, 4, 4]."""
    rng = np.random.default_rng(seed)
    yaw, place = rng.uniform(-3, 3, (chunks, 3)), rng.normal(size=(chunks, 3, 3))
    poses = np.tile(np.eye(4, dtype=np.float32), (chunks, 3, 1, 1))
    poses[..., 0, 0] = poses[..., 2, 2] = np.cos(yaw)
    poses[..., 0, 2], poses[..., 2, 0] = np.sin(yaw), -np.sin(yaw)
    poses[..., :3, 3] = place
    return poses


def index_of(poses_NF44: np.ndarray, *, parity: bool = False) -> PoseIndex:
    index = PoseIndex(parity=parity)
    for chunk, c2w_F44 in enumerate(poses_NF44):
        index.add(chunk, c2w_F44)
    return index


@pytest.mark.parametrize("parity", [False, True])
def test_ranks_as_the_distance_from_all_poses_does(parity):
    poses = poses_of(12)
    query, candidates = poses_of(1, seed=1)[0], [1, 3, 4, 7, 8, 11]
    distance_N = retrieval.pose_distance(poses[candidates], query, parity=parity)
    expected = retrieval.select(distance_N, candidates, 4).tolist()
    assert index_of(poses, parity=parity).nearest(candidates, query, 4) == expected


def test_the_chunk_seen_from_the_same_place_comes_first():
    poses = poses_of(6)
    assert index_of(poses).nearest(list(range(6)), poses[4], 1) == [4]


def test_candidates_are_stored_and_allowed_oldest_first():
    index = PoseIndex(parity=False)
    for chunk in (5, 1, 3):
        index.add(chunk, poses_of(1)[0])
    assert index.candidates(range(1, 5)) == [1, 3]
    assert len(index) == 3


def test_nothing_is_nearest_among_no_candidates():
    assert index_of(poses_of(3)).nearest([], poses_of(1)[0], 4) == []


def test_a_copy_goes_its_own_way():
    index = index_of(poses_of(2))
    twin = index.copy()
    twin.add(9, poses_of(1)[0])
    assert (len(index), len(twin)) == (2, 3)
