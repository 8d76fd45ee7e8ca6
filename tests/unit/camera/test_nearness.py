import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.camera.nearness import mean_pose_distance, mean_pose_distances, yaw_and_pitch
from worldkv.camera.poses import make_poses, yaw_rotations


def poses(count: int, seed: int, *, still: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if still:
        return np.tile(make_poses(yaw_rotations([30.0]), np.array([[3.0, 0.0, 1.0]])), (count, 1, 1))
    return make_poses(yaw_rotations(rng.uniform(-400, 400, count)), rng.normal(0, 5, (count, 3)))


@given(count=st.integers(1, 30), queries=st.integers(1, 4), seed=st.integers(0, 10**6), still=st.booleans())
def test_many_queries_get_what_each_gets_alone_to_the_last_bit(count, queries, seed, still):
    pose_N44, query_Q44 = poses(count, seed, still=still), poses(queries, seed + 1, still=still)
    allowed_QN = np.arange(count) < np.arange(1, queries + 1)[:, None] * count // queries
    for by_yaw, turn in ((False, None), (True, yaw_and_pitch)):
        distance_QN = mean_pose_distances(pose_N44, query_Q44, allowed_QN, by_yaw=by_yaw)
        for row_N, allowed_N, query_44 in zip(distance_QN, allowed_QN, query_Q44, strict=True):
            alone_n = mean_pose_distance(pose_N44[allowed_N], query_44, turn=turn)
            assert row_N[allowed_N].tobytes() == alone_n.tobytes()
            assert np.isinf(row_N[~allowed_N]).all()


@pytest.mark.parametrize(("queries", "count"), [(0, 3), (2, 0)])
def test_nobody_to_compare_is_an_empty_answer(queries, count):
    allowed_QN = np.ones((queries, count), bool)
    assert mean_pose_distances(poses(count, 0), poses(queries, 1), allowed_QN).shape == (queries, count)
