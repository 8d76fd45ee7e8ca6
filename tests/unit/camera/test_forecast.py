import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.camera.actions import Action, Motion, integrate
from worldkv.camera.forecast import extrapolate, poses_along, poses_of_screws, read_ahead
from worldkv.camera.poses import check_poses, planar_coordinates, planar_poses
from worldkv.errors import TrajectoryError


def test_reading_ahead_gives_exactly_the_script():
    script = planar_poses(np.arange(10.0), 0, 0)
    np.testing.assert_array_equal(read_ahead(script, 3, 4), script[4:8])


def test_reading_ahead_runs_out_at_the_end_of_the_script():
    script = planar_poses(np.arange(10.0), 0, 0)
    assert len(read_ahead(script, 7, 12)) == 2
    assert len(read_ahead(script, 9, 12)) == 0


@pytest.mark.parametrize("current", [-1, 10])
def test_reading_ahead_from_outside_the_script_is_refused(current):
    with pytest.raises(TrajectoryError, match=f"frame {current} is not in a script of 10 frames"):
        read_ahead(planar_poses(np.arange(10.0), 0, 0), current, 1)


@given(
    st.sampled_from([Action.NOOP, Action.W, Action.R, Action.W | Action.R, Action.D | Action.L]),
    st.floats(0, 20),
    st.floats(0, 2),
    st.integers(2, 9),
)
def test_a_constant_action_is_forecast_where_it_leads(action, degrees, distance, recent):
    poses = integrate([action] * (recent + 12), Motion(degrees, distance))
    np.testing.assert_allclose(extrapolate(poses[:recent], 12), poses[recent:], atol=1e-8)


def test_a_full_screw_through_space_is_continued():
    step = planar_poses(0.1, 0.3, 10)[0]
    step[:3, :3] = step[:3, :3] @ [[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]
    step[1, 3] = -0.2
    poses = [np.eye(4)]
    for _ in range(9):
        poses.append(poses[-1] @ step)
    np.testing.assert_allclose(extrapolate(np.array(poses[:4]), 6), poses[4:], atol=1e-12)


def test_forecast_poses_stay_sound_far_ahead():
    poses = integrate([Action.W | Action.R] * 3, Motion(7, 0.3))
    assert len(check_poses(extrapolate(poses, 500), "forecast")) == 500


def test_mean_of_the_recent_motion_is_kept():
    yaws = planar_coordinates(extrapolate(planar_poses(0, 0, [0, 2, 6]), 2)).yaw_degrees_F
    np.testing.assert_allclose(yaws, [9, 12], atol=1e-9)


def test_a_lone_pose_stands_still():
    pose = planar_poses(1, 2, 3)
    np.testing.assert_array_equal(extrapolate(pose, 2), np.concatenate([pose, pose]))


def test_no_frames_ahead_give_no_poses():
    assert extrapolate(planar_poses([0, 1], 0, 0), 0).shape == (0, 4, 4)


def test_forecast_from_nothing_is_refused():
    with pytest.raises(TrajectoryError, match="at least one recent pose"):
        extrapolate(np.zeros((0, 4, 4)), 3)


def test_many_poses_along_a_screw_are_those_of_its_multiples():
    rng = np.random.default_rng(0)
    screw_N6, times_NS = rng.normal(size=(5, 6)), rng.uniform(0, 30, (5, 7))
    screw_N6[0, :3] = 0.0
    times_NS[1, 0] = 0.0
    expected = poses_of_screws((times_NS[..., None] * screw_N6[:, None]).reshape(-1, 6)).reshape(5, 7, 4, 4)
    assert np.allclose(poses_along(screw_N6, times_NS), expected, atol=1e-11)
