import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.camera.actions import (
    LINGBOT_MOVE_COLUMNS,
    LINGBOT_TURN_COLUMNS,
    MATRIX_GAME_COLUMNS,
    Action,
    Motion,
    advance,
    combine,
    from_key_columns,
    from_mouse,
    integrate,
    parse_action,
    spell_action,
    to_key_columns,
    to_mouse,
)
from worldkv.camera.poses import check_poses, planar_coordinates, planar_poses
from worldkv.errors import TrajectoryError

ACTIONS = st.lists(st.sets(st.sampled_from("WSADRL")).map(lambda keys: parse_action("".join(keys))), max_size=40).map(
    tuple
)
SMALL_ROOM = Motion(turn_degrees_per_frame=6.0, distance_per_frame=0.1)


@pytest.mark.parametrize(("key", "place"), [("W", (0, 0, 1)), ("S", (0, 0, -1)), ("D", (1, 0, 0)), ("A", (-1, 0, 0))])
def test_keys_move_along_the_axes_of_an_unturned_camera(key, place):
    pose = advance(np.eye(4), parse_action(key), Motion(0, 1.0))
    np.testing.assert_allclose(pose[:3, 3], place, atol=1e-15)


@pytest.mark.parametrize(("key", "yaw"), [("R", 6), ("L", -6)])
def test_r_turns_right_and_l_turns_left(key, yaw):
    pose = advance(np.eye(4), parse_action(key), SMALL_ROOM)
    assert planar_coordinates(pose[None]).yaw_degrees_F[0] == pytest.approx(yaw)


def test_a_camera_that_looks_right_walks_to_the_right():
    pose = advance(planar_poses(5, 5, 90)[0], Action.W, Motion(0, 1.0))
    np.testing.assert_allclose(pose[:3, 3], [6, 0, 5], atol=1e-12)


def test_turn_comes_before_move_within_a_frame():
    pose = advance(np.eye(4), Action.R | Action.W, Motion(90, 1.0))
    np.testing.assert_allclose(pose[:3, 3], [1, 0, 0], atol=1e-12)


def test_frame_0_has_the_start_pose_and_the_last_action_is_not_yet_taken():
    start = planar_poses(1, 2, 3)[0]
    poses = integrate((Action.W, Action.R), SMALL_ROOM, start)
    np.testing.assert_array_equal(poses[0], start)
    np.testing.assert_allclose(poses[1], advance(start, Action.W, SMALL_ROOM))
    assert len(poses) == 2


@given(ACTIONS)
def test_integrating_equals_advancing_frame_by_frame(actions):
    poses = integrate((*actions, Action.NOOP), SMALL_ROOM)
    pose = np.eye(4)
    for action, expected in zip(actions, poses[1:], strict=True):
        pose = advance(pose, action, SMALL_ROOM)
        np.testing.assert_allclose(pose, expected, atol=1e-12)


@given(ACTIONS)
def test_integrated_poses_are_sound_and_one_per_action(actions):
    assert len(check_poses(integrate(actions, SMALL_ROOM), "path")) == len(actions)


@given(st.permutations([Action.R, Action.L] * 40))
def test_as_many_right_as_left_turns_return_to_the_same_bits(turns):
    poses = integrate((*turns, Action.NOOP), SMALL_ROOM)
    np.testing.assert_array_equal(poses[-1], poses[0])


def test_opposite_keys_cancel():
    np.testing.assert_array_equal(advance(np.eye(4), parse_action("WSADRL"), SMALL_ROOM), np.eye(4))


def test_walking_stays_level_under_a_pitched_camera():
    start = np.eye(4)
    start[:3, :3] = [[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]
    pose = advance(start, Action.W | Action.R, SMALL_ROOM)
    assert pose[1, 3] == 0
    assert np.linalg.norm(pose[:3, 3]) == pytest.approx(0.1)
    assert pose[1, 2] == pytest.approx(start[1, 2])


@given(ACTIONS)
def test_actions_survive_spelling_pickling_and_key_arrays(actions):
    assert tuple(parse_action(spell_action(action)) for action in actions) == actions
    assert pickle.loads(pickle.dumps(actions)) == actions
    moves = from_key_columns(to_key_columns(actions, LINGBOT_MOVE_COLUMNS), LINGBOT_MOVE_COLUMNS, "moves")
    turns = from_key_columns(to_key_columns(actions, LINGBOT_TURN_COLUMNS), LINGBOT_TURN_COLUMNS, "turns")
    assert combine(moves, turns) == actions


def test_key_columns_follow_each_model():
    actions = (Action.W, Action.A, Action.S, Action.D)
    np.testing.assert_array_equal(to_key_columns(actions, LINGBOT_MOVE_COLUMNS), np.eye(4))
    np.testing.assert_array_equal(to_key_columns(actions, MATRIX_GAME_COLUMNS), np.eye(4)[:, [0, 2, 1, 3]])
    np.testing.assert_array_equal(to_key_columns((Action.R,), LINGBOT_TURN_COLUMNS), [[0, 0, 0, 1]])


def test_no_actions_give_an_empty_key_array_of_the_right_width():
    assert to_key_columns((), MATRIX_GAME_COLUMNS).shape == (0, 4)


def test_mouse_is_pitch_and_yaw_with_a_tenth_to_the_right_for_r():
    mouse = to_mouse((Action.R, Action.L, Action.W, Action.R | Action.L))
    np.testing.assert_allclose(mouse, [[0, 0.1], [0, -0.1], [0, 0], [0, 0]])
    assert from_mouse(mouse, "mouse") == (Action.R, Action.L, Action.NOOP, Action.NOOP)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        (np.zeros((3, 2)), r"keys.npy: actions have shape \[3, 2\], expected \[frames, 4\]"),
        (np.zeros(4), "shape"),
        ([[0, 0, 0, 0], [0, 0, 2, 0]], "frame 1: a key value is not between 0 and 1"),
        ([[0, 0, 0, np.nan]], "frame 0: a key value is not between"),
    ],
)
def test_bad_key_arrays_are_refused(keys, fault):
    with pytest.raises(TrajectoryError, match=fault):
        from_key_columns(keys, MATRIX_GAME_COLUMNS, "keys.npy")


def test_looking_up_is_refused_rather_than_dropped():
    with pytest.raises(TrajectoryError, match="turns: frame 0: column 0 is held, which is no action here"):
        from_key_columns([[1, 0, 0, 0]], LINGBOT_TURN_COLUMNS, "turns")
    with pytest.raises(TrajectoryError, match=r"mouse: frame 1: mouse is \[0.1, 0.0\]"):
        from_mouse([[0, 0.1], [0.1, 0]], "mouse")


@pytest.mark.parametrize("mouse", [np.zeros((2, 3)), [[0, np.nan]]])
def test_bad_mouse_arrays_are_refused(mouse):
    with pytest.raises(TrajectoryError, match="mouse"):
        from_mouse(mouse, "mouse")


def test_tracks_of_different_length_do_not_combine():
    with pytest.raises(TrajectoryError, match="1 frames of moves do not go with 2"):
        combine((Action.W,), (Action.R, Action.R))


def test_unknown_key_is_refused_with_its_place_and_what_is_allowed():
    with pytest.raises(TrajectoryError, match="'WX': character 2 is 'X', allowed are WSADRL and _"):
        parse_action("WX")


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf")])
def test_motion_refuses_what_is_no_distance(bad):
    with pytest.raises(TrajectoryError, match="distance_per_frame is"):
        Motion(distance_per_frame=bad)
    with pytest.raises(TrajectoryError, match="turn_degrees_per_frame is"):
        Motion(turn_degrees_per_frame=bad)
