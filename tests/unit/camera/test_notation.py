import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.camera.actions import Action, Motion
from worldkv.camera.notation import Pace, parse_notation, script_actions, trajectory_from_notation
from worldkv.camera.poses import planar_coordinates, planar_poses
from worldkv.errors import TrajectoryError


def frames_of(notation, pace=None):
    return len(script_actions(parse_notation(notation), *([pace] if pace else [])))


@pytest.mark.parametrize(
    ("notation", "frames"),
    [
        ("R90", 45),
        ("RL90", 90),
        ("W", 24),
        ("WASD", 96),
        ("_", 24),
        ("R22", 11),
        ("R_L90_200", 200),
        ("__93", 93),
        ("W_" + "0" * 5000 + "30", 30),
        ("RWRWRWRW90_360", 360),
    ],
)
def test_notation_takes_the_stated_frames(notation, frames):
    assert frames_of(notation) == frames
    assert len(trajectory_from_notation(notation)) == frames


OPERATIONS = st.text("RLWSAD_", min_size=1, max_size=12)


@given(OPERATIONS, st.integers(1, 90), st.integers(0, 50))
def test_frame_count_is_exact_whatever_the_operations(operations, turn_frames, spare):
    degrees = str(2 * turn_frames) if set(operations) & set("RL") else ""
    taken = sum({"_": 3, "R": turn_frames, "L": turn_frames}.get(key, 24) for key in operations)
    notation = f"{operations}{degrees}_{taken + spare}"
    assert frames_of(notation, Pace(hold_frames=3)) == taken + spare
    assert len(trajectory_from_notation(notation, pace=Pace(hold_frames=3))) == taken + spare


@given(st.text("RLWSAD_0123456789.x ", max_size=12))
def test_any_text_either_parses_or_is_refused_with_the_notation_in_the_message(text):
    try:
        parse_notation(text)
    except TrajectoryError as error:
        message = str(error)
    else:
        return
    assert repr(text) in message


def test_holds_share_equally_what_the_moves_leave():
    actions = script_actions(parse_notation("R_L_R_L_R_L90_360"))
    assert actions[45:63] == (Action.NOOP,) * 18
    assert actions[63] is Action.L
    assert actions[-1] is Action.L


def test_each_hold_can_have_its_own_length():
    actions = script_actions(parse_notation("W_A_S_D"), Pace(hold_frames=(6, 10, 14)))
    assert len(actions) == 4 * 24 + 30
    assert actions[24:30] == (Action.NOOP,) * 6


def test_first_frame_already_shows_the_first_step():
    trajectory = trajectory_from_notation("R90")
    assert planar_coordinates(trajectory.c2w_F44).yaw_degrees_F[[0, -1]] == pytest.approx([2, 90])


def test_actions_of_a_trajectory_lead_to_its_next_frames():
    trajectory = trajectory_from_notation("RW90_80")
    assert trajectory.actions[:44] == (Action.R,) * 44
    assert trajectory.actions[44:68] == (Action.W,) * 24
    assert set(trajectory.actions[68:]) == {Action.NOOP}
    assert trajectory.name == "RW90_80"


def test_small_worlds_use_their_own_steps_and_start():
    pace = Pace(motion=Motion(6.0, 0.1), move_frames=5)
    trajectory = trajectory_from_notation("RW90", pace=pace, start_44=planar_poses(3, 4, 0)[0])
    assert len(trajectory) == 15 + 5
    np.testing.assert_allclose(trajectory.c2w_F44[-1], planar_poses(3.5, 4, 90)[0], atol=1e-12)


@pytest.mark.parametrize(
    ("notation", "fault"),
    [
        ("", "ends too soon, after character 0"),
        ("90", "character 1 is '9'"),
        ("RX90", "character 2 is 'X'"),
        ("r90", "character 1 is 'r'"),
        ("RL 90", "character 3 is ' '"),
        ("R90W", "character 4 is 'W'"),
        ("R90__3", "character 5 is '_'"),
        ("R9.5.5", "character 5 is '.'"),
        ("R90_", "ends too soon, after character 4"),
        ("R9.", "ends too soon, after character 3"),
        ("R٣", "character 2"),
    ],
)
def test_bad_notation_points_at_the_character_and_says_what_is_allowed(notation, fault):
    with pytest.raises(TrajectoryError, match=rf"{fault}.*; expected operations R L W S A D _"):
        parse_notation(notation)


@pytest.mark.parametrize(
    ("notation", "fault"),
    [
        ("W_R", "character 3 turns, so degrees must follow"),
        ("R_90", "character 1 turns, so degrees must follow"),
        ("_93", "character 2 begins 93 degrees, but nothing turns"),
        ("W_0", "frame count is 0, allowed is 1 to"),
        ("R90_0", "frame count is 0, allowed is 1 to"),
        ("R90_" + "9" * 5000, "frame count is 9999"),
    ],
)
def test_notation_without_sense_is_refused(notation, fault):
    with pytest.raises(TrajectoryError, match=fault):
        parse_notation(notation)


@pytest.mark.parametrize(
    ("notation", "pace", "fault"),
    [
        ("R91", Pace(), "91 degrees are no whole number of video frames of 2 degrees each"),
        ("R0", Pace(), "0 degrees are no whole number"),
        ("R90", Pace(motion=Motion(turn_degrees_per_frame=0)), "of 0 degrees each"),
        ("R" + "9" * 400, Pace(), "no whole number"),
        ("RLRL90_100", Pace(), "the operations take 180 video frames, allowed are 100"),
        ("W" * 100, Pace(move_frames=100_000), "allowed are 1000000"),
        ("W_S_A", Pace(hold_frames=(1,)), "has 2 operations _, but 1 hold_frames are given"),
    ],
)
def test_notation_that_does_not_fit_its_pace_is_refused(notation, pace, fault):
    with pytest.raises(TrajectoryError, match=fault):
        script_actions(parse_notation(notation), pace)


@pytest.mark.parametrize("settings", [{"move_frames": 0}, {"hold_frames": -1}, {"hold_frames": (2, -1)}])
def test_pace_refuses_lengths_below_its_least(settings):
    with pytest.raises(TrajectoryError, match="allowed are numbers from 1 and from 0 up"):
        Pace(**settings)
