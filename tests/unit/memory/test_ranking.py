import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldkv.camera.overlaps import OVERLAP_SHORTLIST, VIEW_MIDDLE, by_overlap, centred_frustum
from worldkv.camera.poses import make_poses
from worldkv.memory import retrieval
from worldkv.memory.index import PoseIndex
from worldkv.memory.ranking import Query, choose
from worldkv.memory.retrieval import mean_pose_distance, views_apart_sq, yaw_and_pitch, yaw_pitch

INTRINSICS = np.array([100.0, 100.0, 100.0, 50.0], np.float32)
SIGHT = 4.0


def looking(yaw: float, pitch: float = 0.0, roll: float = 0.0, x: float = 0.0, z: float = 0.0) -> np.ndarray:
    """One pose by angles in degrees: yaw to the right, pitch up."""
    rotation = Rotation.from_euler("YXZ", [yaw, pitch, roll], degrees=True).as_matrix()
    return make_poses(rotation[None], np.array([[x, 0, z]]))[0]


def query_of(pose: np.ndarray) -> Query:
    return Query(np.tile(pose, (3, 1, 1)), INTRINSICS, chunk=9, seed=1, rollout=2)


def index_of(poses: list[np.ndarray]) -> PoseIndex:
    index = PoseIndex(parity=False)
    for chunk, pose in enumerate(poses):
        index.add(chunk, np.tile(pose, (3, 1, 1)))
    return index


def test_yaw_and_pitch_are_those_of_the_view():
    yaw, pitch = yaw_pitch(np.stack([looking(30, 20, roll=50), looking(-170, -60)]))
    np.testing.assert_allclose(np.degrees(yaw), [30, -170])
    np.testing.assert_allclose(np.degrees(pitch), [20, -60])


def test_yaw_distance_counts_turns_across_the_half_circle_and_no_roll():
    poses = np.stack([looking(175, roll=40), looking(-175), looking(85), looking(175, pitch=-45)])
    np.testing.assert_allclose(
        mean_pose_distance(poses, looking(175), turn=yaw_and_pitch), [0, 0.5 / 9, 0.5, 0.25], atol=1e-12
    )


def test_place_counts_as_in_the_published_distance():
    poses = np.stack([looking(0, x=2), looking(90), looking(45, x=1)])
    np.testing.assert_allclose(mean_pose_distance(poses, looking(0), turn=yaw_and_pitch), [0.5, 0.5, 0.375], atol=1e-12)


def test_yaw_ranks_by_turns_where_pose_ranks_by_the_whole_rotation():
    index, query = index_of([looking(30), looking(0, roll=60), looking(180)]), query_of(looking(0))
    assert choose("pose", index, range(3), query, 1, sight=SIGHT) == [0]
    assert choose("yaw", index, range(3), query, 1, sight=SIGHT) == [1]


def test_overlap_prefers_who_saw_the_same_from_elsewhere():
    turned_away, behind = looking(100), looking(0, z=-1)
    query, index = query_of(looking(0)), index_of([behind, turned_away, looking(180, z=40)])
    assert choose("pose", index, range(3), query, 2, sight=SIGHT) == [0, 1]
    assert choose("overlap", index, range(1, 3), query, 2, sight=SIGHT) == [1, 2]
    assert choose("overlap", index, range(3), query, 1, sight=SIGHT) == [0]


def test_equal_overlaps_keep_their_order():
    pose_N44 = np.stack([looking(180), looking(0), looking(0), looking(180)])
    frustum = centred_frustum(INTRINSICS, SIGHT)
    assert by_overlap([7, 3, 8, 5], pose_N44, looking(0), frustum, 3) == [3, 8, 7]


def test_overlap_finds_who_sees_most_of_a_world_far_larger_than_the_sight():
    rng = np.random.default_rng(1)
    yaw, places = rng.uniform(0, 360, 3000), rng.uniform(0, 60, (3000, 2))
    poses = [looking(turn, x=x, z=z) for turn, (x, z) in zip(yaw, places, strict=True)]
    index, frustum, pose_N44 = index_of(poses), centred_frustum(INTRINSICS, SIGHT), np.stack(poses).astype(np.float64)
    for turn, (x, z) in zip(rng.uniform(0, 360, 10), rng.uniform(5, 55, (10, 2)), strict=True):
        query = looking(turn, x=x, z=z)
        best = by_overlap(range(3000), pose_N44, query.astype(np.float64), frustum, 3)
        assert choose("overlap", index, range(3000), query_of(query), 3, sight=SIGHT)[0] == best[0]


def test_a_frustum_is_centred_on_the_principal_point():
    frustum = centred_frustum(INTRINSICS, SIGHT)
    assert (frustum.left, frustum.right, frustum.top, frustum.bottom) == (-1.0, 1.0, -0.5, 0.5)
    assert frustum.far == SIGHT


def test_overlap_decides_among_the_nearest_views_to_the_last_tie():
    rng = np.random.default_rng(0)
    poses = [looking(*rng.integers(0, 360, 1), x=x, z=z) for x, z in rng.integers(-4, 5, (700, 2))]
    query = query_of(looking(15, x=0.5))
    pose_N44 = np.stack(poses).astype(np.float64)
    query_44 = looking(15, x=0.5).astype(np.float64)
    apart_sq_N = views_apart_sq(pose_N44, query_44, VIEW_MIDDLE * SIGHT)
    nearest_n = retrieval.select(apart_sq_N, range(700), OVERLAP_SHORTLIST)
    expected = by_overlap(nearest_n.tolist(), pose_N44[nearest_n], query_44, centred_frustum(INTRINSICS, SIGHT), 5)
    assert choose("overlap", index_of(poses), range(700), query, 5, sight=SIGHT) == expected


@pytest.mark.parametrize("ranking", ["pose", "overlap", "yaw", "random"])
def test_no_ranking_offers_what_is_not_allowed_or_forgotten(ranking):
    index = index_of([looking(10.0 * chunk) for chunk in range(8)])
    index.forget(3)
    chosen = choose(ranking, index, range(1, 6), query_of(looking(30)), 9, sight=SIGHT)
    assert sorted(chosen) == [1, 2, 4, 5]
    assert choose(ranking, index, range(8, 9), query_of(looking(30)), 9, sight=SIGHT) == []
