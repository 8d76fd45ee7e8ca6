import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.camera.frustum import frustum_of, probe_points, view_overlap
from worldkv.camera.intrinsics import PictureSize, from_field_of_view
from worldkv.camera.poses import planar_poses
from worldkv.errors import TrajectoryError

SIZE = PictureSize(48, 64)
FRUSTUM = frustum_of(from_field_of_view(90, SIZE), SIZE, near=0.1, far=5.0)
ORIGIN = planar_poses(0, 0, 0)[0]

PLACES = st.floats(-20, 20)
YAWS = st.floats(-180, 180)


@given(PLACES, PLACES, YAWS)
def test_a_camera_sees_all_of_its_own_view(x, z, yaw):
    # Rounding may move a point across an edge, so the pose is compared with itself to within one point.
    pose = planar_poses(x, z, yaw)
    assert view_overlap(pose[0], pose, FRUSTUM)[0] >= 1 - 1 / 512


@given(PLACES, PLACES, YAWS)
def test_overlap_is_a_share_and_the_same_for_both_when_only_the_world_moves(x, z, yaw):
    query, candidate = planar_poses([0, 1], [0, 0.5], [0, 20])
    moved = planar_poses(x, z, yaw)[0]
    here = view_overlap(query, candidate[None], FRUSTUM)
    there = view_overlap(moved @ query, (moved @ candidate)[None], FRUSTUM)
    assert 0 <= here[0] <= 1
    assert there == pytest.approx(here, abs=2 / 512)


def test_overlap_falls_as_the_camera_turns_away_and_ends_at_the_field_of_view():
    overlap_N = view_overlap(ORIGIN, planar_poses(0, 0, np.arange(0, 181, 10)), FRUSTUM)
    assert (np.diff(overlap_N) <= 0).all()
    assert overlap_N[0] == 1
    assert overlap_N[4] > 0.3
    assert (overlap_N[9:] == 0).all()


@pytest.mark.parametrize(("step", "overlap"), [(0.5, 0.75), (1.0, 0.5), (-1.5, 0.25), (2.1, 0)])
def test_a_step_aside_at_one_depth_loses_just_the_strip_it_leaves(step, overlap):
    wall = frustum_of(from_field_of_view(90, SIZE), SIZE, near=1, far=1 + 1e-6)
    assert view_overlap(ORIGIN, planar_poses(step, 0, 0), wall)[0] == pytest.approx(overlap, abs=0.01)


def test_stepping_back_sees_more_than_stepping_forward():
    back, forth = view_overlap(ORIGIN, planar_poses(0, [-1, 1], 0), FRUSTUM)
    assert back > forth


def test_looking_back_at_the_camera_is_not_counted_from_behind():
    behind = planar_poses(0, -8, 180)
    assert view_overlap(ORIGIN, behind, FRUSTUM)[0] == 0


def test_no_candidates_give_no_overlaps():
    assert view_overlap(ORIGIN, np.zeros((0, 4, 4)), FRUSTUM).shape == (0,)


def test_probe_points_are_the_same_every_time_and_inside_the_frustum():
    points = probe_points(FRUSTUM, 1000)
    np.testing.assert_array_equal(points, probe_points(FRUSTUM, 1000))
    x, y, z = points.T
    assert z.min() > FRUSTUM.near
    assert z.max() < FRUSTUM.far
    assert (np.abs(x) < z).all()
    assert (np.abs(y) < 0.75 * z).all()


def test_the_first_probe_points_already_cover_the_picture_evenly():
    x, _, z = probe_points(FRUSTUM, 64).T
    counts, _ = np.histogram(x / z, bins=4, range=(-1, 1))
    assert counts.min() >= 12


def test_off_centre_cameras_have_off_centre_frustums():
    frustum = frustum_of(np.array([100.0, 100, 20, 10]), PictureSize(100, 100), 1, 2)
    assert (frustum.left, frustum.right, frustum.top, frustum.bottom) == (-0.2, 0.8, -0.1, 0.9)


@pytest.mark.parametrize(("near", "far"), [(0, 1), (2, 1), (1, np.inf), (np.nan, 1)])
def test_empty_frustum_is_refused(near, far):
    with pytest.raises(TrajectoryError, match="is empty"):
        frustum_of(from_field_of_view(90, SIZE), SIZE, near, far)
