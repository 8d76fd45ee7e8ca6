import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.camera.actions import Action, Motion, integrate
from worldkv.camera.plan import out_and_back, out_and_back_actions, reverse_path, wander
from worldkv.camera.poses import planar_poses
from worldkv.camera.revisits import find_revisits
from worldkv.errors import TrajectoryError


@given(st.integers(1, 50))
def test_frame_n_minus_1_minus_i_has_the_pose_of_frame_i(frames):
    out = planar_poses(np.arange(frames), 0, np.arange(frames))
    path = out_and_back(out)
    assert len(path) == 2 * frames - 1
    np.testing.assert_array_equal(path, path[::-1])
    np.testing.assert_array_equal(path[:frames], out)


def test_reverse_path_is_a_copy_in_reverse_order():
    out = planar_poses([0, 1, 2], 0, 0)
    back = reverse_path(out)
    np.testing.assert_array_equal(back, out[[2, 1, 0]])
    assert not np.shares_memory(back, out)


@given(st.integers(0, 2**32 - 1), st.integers(1, 120))
def test_reversed_actions_walk_the_path_back(seed, frames):
    motion = Motion(6, 0.1)
    out = wander(np.random.default_rng(seed), frames)
    path = integrate(out_and_back_actions(out), motion)
    np.testing.assert_allclose(path, out_and_back(integrate(out, motion)), atol=1e-11)


def test_no_way_out_needs_no_way_back():
    assert out_and_back_actions(()) == ()


def test_turning_while_walking_cannot_be_undone_by_one_action():
    with pytest.raises(TrajectoryError, match="frame 1: action WR turns and moves at once"):
        out_and_back_actions((Action.W, Action.W | Action.R, Action.W))


@given(st.integers(0, 2**32 - 1), st.integers(0, 200))
def test_wandering_is_a_function_of_the_generator_and_has_the_length_asked(seed, frames):
    first = wander(np.random.default_rng(seed), frames)
    assert len(first) == frames
    assert first == wander(np.random.default_rng(seed), frames)


def test_the_way_back_revisits_the_way_out():
    path = out_and_back(planar_poses(np.arange(6.0), 0, 0))
    pairs = find_revisits(path, distance=0.1, degrees=1)
    np.testing.assert_array_equal(pairs, [[6, 4], [7, 3], [8, 2], [9, 1], [10, 0]])


def test_holding_still_is_no_revisit():
    still = np.repeat(planar_poses(1, 2, 3), 10, axis=0)
    assert find_revisits(still, distance=0.1, degrees=1).shape == (0, 2)


def test_same_place_with_another_view_is_no_revisit():
    assert len(find_revisits(planar_poses(0, 0, [0, 60, 120, 180]), distance=0.1, degrees=5)) == 0
