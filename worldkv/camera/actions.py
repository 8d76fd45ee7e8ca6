"""Actions: the keys a person holds for one video frame, and the poses they lead to.

Action i leads from video frame i to video frame i + 1. So a rollout has as many actions as frames, its
frame 0 shows the start pose, and its last action is the one with which it would go on. The key arrays of
LingBot (`action.npy`) are aligned in the same way.

Shapes: F video frames, C columns of a key array.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldkv.camera.poses import FloatArray, make_poses, planar_coordinates, yaw_rotations
from worldkv.errors import TrajectoryError


class Action(enum.Flag):
    """Keys held during one video frame; combine them with `|`. Opposite keys cancel."""

    NOOP = 0
    W = enum.auto()
    """Forward, where the camera looks (+z of a camera at yaw 0)."""
    S = enum.auto()
    """Backward."""
    A = enum.auto()
    """To the left, without turning."""
    D = enum.auto()
    """To the right, without turning (+x of a camera at yaw 0)."""
    R = enum.auto()
    """Turn right: yaw grows."""
    L = enum.auto()
    """Turn left: yaw falls."""


KEYS = "WSADRL"
NOOP_KEY = "_"

ACTION_COLUMNS = tuple(Action[key] for key in KEYS)
"""Columns of the actions that a model is shown: W S A D R L."""
LINGBOT_MOVE_COLUMNS = (Action.W, Action.A, Action.S, Action.D)
"""Columns of LingBot's `action.npy`."""
LINGBOT_TURN_COLUMNS = (Action.NOOP, Action.L, Action.NOOP, Action.R)
"""Columns i, j, k, l of LingBot's `ijkl_action.npy`: up, left, down, right. Nothing here looks up or down."""
MATRIX_GAME_COLUMNS = (Action.W, Action.S, Action.A, Action.D)
"""Columns of Matrix-Game-2.0's `keyboard_condition`."""

MATRIX_GAME_MOUSE_STEP = 0.1
PRESSED_ABOVE = 0.5
# Key arrays are floats between 0 and 1; LingBot reads a key as held above one half.


@dataclass(frozen=True)
class Motion:
    """How far one video frame of an action goes."""

    turn_degrees_per_frame: float = 2.0
    """Degrees by which R and L turn."""
    distance_per_frame: float = 1.0 / 24.0
    """World units by which W, S, A and D move; two of them at once move by both."""

    def __post_init__(self) -> None:
        for name in ("turn_degrees_per_frame", "distance_per_frame"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise TrajectoryError(f"motion: {name} is {value}, allowed is a finite number from 0 up")


WORLD_MODEL_MOTION = Motion()
"""2 degrees and 1 / 24 of a unit per video frame, as in the published WorldKV trajectories."""


def parse_action(keys: str) -> Action:
    """The action of a word such as "W", "WR" or "_". Raises TrajectoryError for any other character."""
    action = Action.NOOP
    for position, key in enumerate(keys, start=1):
        if key not in KEYS + NOOP_KEY:
            raise TrajectoryError(
                f"action {keys!r}: character {position} is {key!r}, allowed are {KEYS} and {NOOP_KEY}"
            )
        action |= Action.NOOP if key == NOOP_KEY else Action[key]
    return action


def spell_action(action: Action) -> str:
    """The keys of an action in the order W S A D R L, or "_" when none is held."""
    return "".join(key for key in KEYS if Action[key] in action) or NOOP_KEY


def integrate(actions: Sequence[Action], motion: Motion, start_44: FloatArray | None = None) -> FloatArray:
    """Poses [F, 4, 4] of F actions, from `start_44` (the identity if None) at frame 0.

    Within a frame the turn comes before the move. Turns are about the world's vertical and moves stay level,
    whatever the pitch of the start pose. As many R as L lead back to the very same rotation, bit for bit.
    """
    start_44 = np.eye(4) if start_44 is None else np.asarray(start_44, dtype=np.float64)
    if not actions:
        return np.zeros((0, 4, 4))
    used = actions[:-1]
    turn_F = np.concatenate([[0], np.cumsum(_balance(used, Action.R, Action.L))])
    turn_degrees_F = turn_F * motion.turn_degrees_per_frame
    heading_F = np.radians(turn_degrees_F[1:] + planar_coordinates(start_44[None]).yaw_degrees_F)
    forward_F = _balance(used, Action.W, Action.S) * motion.distance_per_frame
    right_F = _balance(used, Action.D, Action.A) * motion.distance_per_frame
    place_F3 = np.tile(start_44[:3, 3], (len(actions), 1))
    place_F3[1:, 0] += np.cumsum(forward_F * np.sin(heading_F) + right_F * np.cos(heading_F))
    place_F3[1:, 2] += np.cumsum(forward_F * np.cos(heading_F) - right_F * np.sin(heading_F))
    return make_poses(yaw_rotations(turn_degrees_F) @ start_44[:3, :3], place_F3)


def advance(c2w_44: FloatArray, action: Action, motion: Motion) -> FloatArray:
    """The pose [4, 4] that `action` leads to from `c2w_44` in one video frame."""
    pose_44: FloatArray = integrate((action, Action.NOOP), motion, c2w_44)[1]
    return pose_44


def to_key_columns(actions: Sequence[Action], columns: Sequence[Action]) -> NDArray[np.float32]:
    """Key array [F, C] of zeros and ones: column c is 1 where `columns[c]` is held."""
    held = [[bool(action & column) for column in columns] for action in actions]
    return np.asarray(held, dtype=np.float32).reshape(len(actions), len(columns))


def from_key_columns(keys: ArrayLike, columns: Sequence[Action], source: str) -> tuple[Action, ...]:
    """Actions of a key array [F, C] whose values lie between 0 and 1; above one half a key is held.

    Raises TrajectoryError, naming `source`, for another shape or value and for a held key that is no action.
    """
    keys_FC = np.asarray(keys, dtype=np.float64)
    if keys_FC.ndim != 2 or keys_FC.shape[1] != len(columns):
        raise TrajectoryError(f"{source}: actions have shape {list(keys_FC.shape)}, expected [frames, {len(columns)}]")
    bad_F = ~((keys_FC >= 0) & (keys_FC <= 1)).all(axis=1)
    if bad_F.any():
        raise TrajectoryError(f"{source}: frame {int(bad_F.argmax())}: a key value is not between 0 and 1")
    return tuple(_held(row_C, columns, f"{source}: frame {frame}") for frame, row_C in enumerate(keys_FC))


def to_mouse(actions: Sequence[Action], step: float = MATRIX_GAME_MOUSE_STEP) -> NDArray[np.float32]:
    """Mouse array [F, 2] of pitch and yaw, as Matrix-Game-2.0 takes it: yaw is +step for R, -step for L."""
    mouse_F2 = np.zeros((len(actions), 2), dtype=np.float32)
    mouse_F2[:, 1] = _balance(actions, Action.R, Action.L) * step
    return mouse_F2


def from_mouse(mouse: ArrayLike, source: str) -> tuple[Action, ...]:
    """Turns of a mouse array [F, 2]: R where the yaw is positive, L where negative; how fast is lost.

    Raises TrajectoryError, naming `source`, for another shape, for NaN and for any pitch.
    """
    mouse_F2 = np.asarray(mouse, dtype=np.float64)
    if mouse_F2.ndim != 2 or mouse_F2.shape[1] != 2:
        raise TrajectoryError(f"{source}: mouse has shape {list(mouse_F2.shape)}, expected [frames, 2]")
    bad_F = ~np.isfinite(mouse_F2).all(axis=1) | (mouse_F2[:, 0] != 0)
    if bad_F.any():
        frame = int(bad_F.argmax())
        raise TrajectoryError(
            f"{source}: frame {frame}: mouse is {mouse_F2[frame].tolist()}, allowed: pitch 0, yaw finite"
        )
    turns = {1.0: Action.R, -1.0: Action.L, 0.0: Action.NOOP}
    return tuple(turns[sign] for sign in np.sign(mouse_F2[:, 1]))


def combine(moves: Sequence[Action], turns: Sequence[Action]) -> tuple[Action, ...]:
    """Both tracks of keys held together, frame by frame. Raises TrajectoryError if their lengths differ."""
    if len(moves) != len(turns):
        raise TrajectoryError(f"{len(moves)} frames of moves do not go with {len(turns)} frames of turns")
    return tuple(move | turn for move, turn in zip(moves, turns, strict=True))


def _balance(actions: Sequence[Action], plus: Action, minus: Action) -> NDArray[np.int64]:
    return np.asarray([(plus in action) - (minus in action) for action in actions], dtype=np.int64)


def _held(row_C: FloatArray, columns: Sequence[Action], where: str) -> Action:
    held = Action.NOOP
    for column, value in enumerate(row_C):
        if value > PRESSED_ABOVE:
            if columns[column] is Action.NOOP:
                raise TrajectoryError(f"{where}: column {column} is held, which is no action here")
            held |= columns[column]
    return held
