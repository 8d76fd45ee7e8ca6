import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldkv.camera.poses import (
    check_poses,
    interpolate_poses,
    invert_poses,
    latent_frame_times,
    make_poses,
    normalise_translations,
    planar_coordinates,
    planar_poses,
    relative_framewise,
    relative_to_first,
)
from worldkv.errors import TrajectoryError


@st.composite
def some_poses(draw, minimum=1, maximum=8):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = draw(st.integers(minimum, maximum))
    return make_poses(Rotation.random(frames, random_state=rng).as_matrix(), rng.normal(0, 5, (frames, 3)))


@given(some_poses())
def test_inverse_of_inverse_is_the_pose(c2w_F44):
    np.testing.assert_allclose(invert_poses(invert_poses(c2w_F44)), c2w_F44, atol=1e-12)


@given(some_poses())
def test_inverse_undoes_the_pose(c2w_F44):
    np.testing.assert_allclose(invert_poses(c2w_F44) @ c2w_F44, np.broadcast_to(np.eye(4), c2w_F44.shape), atol=1e-12)


def test_inverse_takes_a_single_pose():
    pose = planar_poses(1.0, 2.0, 30.0)[0]
    np.testing.assert_allclose(invert_poses(pose) @ pose, np.eye(4), atol=1e-15)


@given(some_poses())
def test_framewise_relative_poses_multiply_back_to_the_trajectory(c2w_F44):
    pose = c2w_F44[0]
    for step, expected in zip(relative_framewise(c2w_F44)[1:], c2w_F44[1:], strict=True):
        pose = pose @ step
        np.testing.assert_allclose(pose, expected, atol=1e-11)


@given(some_poses())
def test_poses_relative_to_the_first_place_back_onto_the_trajectory(c2w_F44):
    np.testing.assert_allclose(c2w_F44[0] @ relative_to_first(c2w_F44), c2w_F44, atol=1e-12)


@given(some_poses(minimum=2))
def test_normalised_translations_have_longest_length_one_and_keep_rotations(c2w_F44):
    relative_F44 = relative_to_first(c2w_F44)
    normalised_F44 = normalise_translations(relative_F44)
    assert np.linalg.norm(normalised_F44[:, :3, 3], axis=1).max() == pytest.approx(1)
    np.testing.assert_array_equal(normalised_F44[:, :3, :3], relative_F44[:, :3, :3])


def test_normalising_leaves_its_argument_unchanged():
    relative_F44 = relative_to_first(planar_poses([0, 3], [0, 4], [0, 0]))
    before = relative_F44.copy()
    normalise_translations(relative_F44)
    np.testing.assert_array_equal(relative_F44, before)


@pytest.mark.parametrize("relate", [relative_to_first, relative_framewise])
def test_turning_on_a_spot_far_from_the_origin_is_no_motion(relate):
    spinning = planar_poses(123.456, -78.9, np.arange(0, 360, 7.0))
    assert (normalise_translations(relate(spinning))[:, :3, 3] == 0).all()


def test_interpolation_at_whole_frames_returns_those_frames():
    c2w_F44 = planar_poses([0, 1, 4], [0, 2, 2], [0, 90, 45])
    np.testing.assert_allclose(interpolate_poses(c2w_F44, [0, 1, 2]), c2w_F44, atol=1e-12)


def test_interpolation_halfway_is_halfway_in_place_and_angle():
    halfway = interpolate_poses(planar_poses([0, 1], [0, 3], [0, 90]), [0.5])
    np.testing.assert_allclose(halfway, planar_poses(0.5, 1.5, 45.0), atol=1e-12)


def test_interpolation_turns_the_short_way_round():
    halfway = interpolate_poses(planar_poses([0, 0], [0, 0], [170, -170]), [0.5])
    assert abs(planar_coordinates(halfway).yaw_degrees_F[0]) == pytest.approx(180)


def test_interpolation_of_a_single_pose_repeats_it():
    pose = planar_poses(1, 2, 3)
    np.testing.assert_array_equal(interpolate_poses(pose, [0, 0]), np.concatenate([pose, pose]))


@pytest.mark.parametrize("time", [-0.1, 2.1, np.nan])
def test_interpolation_outside_the_trajectory_is_refused(time):
    with pytest.raises(TrajectoryError, match="outside the poses' frames 0 to 2"):
        interpolate_poses(planar_poses([0, 1, 2], 0, 0), [time])


@pytest.mark.parametrize(("video_frames", "expected"), [(9, [0, 4, 8]), (12, [0, 4, 8]), (21, [0, 4, 8, 12, 16, 20])])
def test_latent_frames_are_four_video_frames_apart(video_frames, expected):
    np.testing.assert_array_equal(latent_frame_times(video_frames), expected)


@given(st.integers(9, 2000), st.integers(1, 3))
def test_latent_frames_come_in_whole_chunks_and_span_the_clip(video_frames, per_chunk):
    times = latent_frame_times(video_frames, per_chunk)
    assert len(times) % per_chunk == 0
    assert times[0] == 0
    assert times[-1] == (video_frames - 1) // 4 * 4


@pytest.mark.parametrize("video_frames", [-3, 0, 1, 8])
def test_clip_shorter_than_one_chunk_is_refused_with_the_least_length(video_frames):
    with pytest.raises(TrajectoryError, match=f"{video_frames} video frames.*at least 9"):
        latent_frame_times(video_frames)


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(-179.9, 179.9))
def test_planar_coordinates_round_trip(x, z, yaw):
    coordinates = planar_coordinates(planar_poses(x, z, yaw))
    np.testing.assert_allclose(np.stack(coordinates)[:, 0], [x, z, yaw], atol=1e-9)


def test_yaw_90_looks_along_positive_x():
    np.testing.assert_allclose(planar_poses(0, 0, 90)[0, :3, 2], [1, 0, 0], atol=1e-15)


def _broken(change):
    c2w_F44 = planar_poses(np.arange(5.0), 0, np.arange(5.0))
    change(c2w_F44)
    return c2w_F44


@pytest.mark.parametrize(
    ("poses", "fault"),
    [
        (np.eye(4), r"shape \[4, 4\], expected \[frames, 4, 4\]"),
        (np.zeros((5, 3, 4)), r"shape \[5, 3, 4\]"),
        (_broken(lambda c: c.__setitem__((3, 0, 3), np.nan)), "frame 3 of 5: .*not finite"),
        (_broken(lambda c: c.__setitem__((2, 1, 3), np.inf)), "frame 2 of 5: .*not finite"),
        (_broken(lambda c: c.__setitem__((1, 3, 0), 0.5)), "frame 1 of 5: .*last row"),
        (_broken(lambda c: c.__setitem__((4, 3, 3), 0.0)), "frame 4 of 5: .*last row"),
        (_broken(lambda c: c[2:, :3, :3].__imul__(1.01)), "frame 2 of 5: .*not orthonormal"),
        (_broken(lambda c: c[1, :3, :3].__imul__(1e300)), "frame 1 of 5: .*not orthonormal"),
        (_broken(lambda c: c[3, :3, 0].__imul__(-1)), "frame 3 of 5: .*mirrors"),
    ],
)
def test_unsound_poses_are_refused_with_the_source_and_first_bad_frame(poses, fault):
    with pytest.raises(TrajectoryError, match=f"walk.npy: .*{fault}"):
        check_poses(poses, "walk.npy")


@given(some_poses())
def test_half_precision_poses_are_sound(c2w_F44):
    checked = check_poses(c2w_F44.astype(np.float16), "half")
    assert checked.dtype == np.float64
