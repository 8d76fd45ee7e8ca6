import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldkv.errors import ChunkNotFound
from worldkv.memory import index as index_module
from worldkv.memory import retrieval
from worldkv.memory.index import PoseIndex
from worldkv.memory.pose_rows import quaternion


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
    query, candidates = poses_of(1, seed=1)[0], [1, 3, 4, 7, 8, 10]
    distance_N = retrieval.pose_distance(poses[candidates], query, parity=parity)
    expected = retrieval.select(distance_N, candidates, 4).tolist()
    index = index_of(poses, parity=parity)
    for chunk in {*range(1, 11)} - {*candidates}:
        index.forget(chunk)
    assert index.nearest(range(1, 11), query, 4) == expected


def test_the_chunk_seen_from_the_same_place_comes_first():
    poses = poses_of(6)
    assert index_of(poses).nearest(range(6), poses[4], 1) == [4]


def test_candidates_are_stored_and_allowed_oldest_first():
    index = PoseIndex(parity=False)
    for chunk in (5, 1, 3):
        index.add(chunk, poses_of(1)[0])
    assert index.candidates(range(1, 5)).tolist() == [1, 3]
    assert len(index) == 3


def test_nothing_is_nearest_among_no_candidates():
    assert index_of(poses_of(3)).nearest(range(3, 9), poses_of(1)[0], 4) == []


def test_a_copy_goes_its_own_way():
    index = index_of(poses_of(2))
    twin = index.copy()
    twin.add(9, poses_of(1)[0])
    assert (len(index), len(twin)) == (2, 3)


def test_what_was_forgotten_is_not_found():
    index = index_of(np.repeat(poses_of(1), 5, axis=0))
    for chunk in (2, 4, 3):
        index.forget(chunk)
    assert index.chunks() == index.candidates(range(9)).tolist() == [0, 1]
    assert index.nearest(range(1, 9), poses_of(1)[0], 4) == [1]
    with pytest.raises(ChunkNotFound, match="chunk 3 is not among the 2"):
        index.forget(3)
    with pytest.raises(ChunkNotFound, match="chunk 9"):
        index.mean_pose(9)
    for unknown in (3, 9):
        with pytest.raises(ChunkNotFound, match=f"chunk {unknown}"):
            index.mean_poses([0, unknown])


def test_mean_poses_are_those_of_each_chunk_in_the_order_asked():
    index = index_of(poses_of(40))
    index.forget(7)
    asked = [39, 3, 8, 3]
    assert np.array_equal(index.mean_poses(asked), np.stack([index.mean_pose(chunk) for chunk in asked]))
    assert index.mean_poses([]).shape == (0, 4, 4)


def test_a_camera_that_stands_still_takes_one_row():
    index = index_of(np.repeat(poses_of(2), 500, axis=0))
    assert [rows.count for rows in index._blocks] == [2]
    assert index.nearest(range(1, 900), poses_of(1)[0], 3) == [499, 498, 497]


def test_forks_share_rows_until_one_writes():
    index = index_of(poses_of(6))
    twin = index.copy()
    assert twin._blocks[0] is index._blocks[0]
    twin.forget(2)
    index.add(6, poses_of(1, seed=1)[0])
    assert index.chunks() == [0, 1, 2, 3, 4, 5, 6]
    assert twin.chunks() == [0, 1, 3, 4, 5]


def test_the_next_chunk_after_a_fork_copies_few_rows_and_many_forks_leave_few_blocks(monkeypatch):
    monkeypatch.setattr(index_module, "CLONED_ROWS", 4)
    poses = poses_of(40)
    index = index_of(poses[:6])
    shared = index._blocks[0]
    for chunk in range(6, 40):
        index = index.copy()
        index.add(chunk, poses[chunk])
    assert index._blocks[0] is shared
    assert len(index._blocks) <= 40 // 4
    assert index.chunks() == list(range(40))
    whole = index_of(poses)
    for chunk in range(40):
        assert index.nearest(range(1, 38), poses[chunk], 4) == whole.nearest(range(1, 38), poses[chunk], 4)


def test_a_chunk_added_again_or_late_takes_its_place():
    poses = poses_of(4)
    index = PoseIndex(parity=False)
    for chunk, pose in ((0, 0), (7, 1), (3, 2), (7, 3)):
        index.add(chunk, poses[pose])
    assert index.chunks() == [0, 3, 7]
    assert index.nearest(range(9), poses[3], 1) == [7]


def test_the_quaternion_is_that_of_the_rotation():
    for rotation in Rotation.random(50, rng=0):
        wxyz = quaternion(rotation.as_matrix())
        assert abs(wxyz @ rotation.as_quat(scalar_first=True)) == pytest.approx(1, abs=1e-15)
    half_turn = Rotation.from_euler("y", 180, degrees=True).as_matrix()
    np.testing.assert_allclose(quaternion(half_turn), [0, 0, 1, 0], atol=1e-15)
