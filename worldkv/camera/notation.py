"""The short notation of trajectories that the world-model papers use, such as `R_L_R_L90_360`.

    notation    operations [degrees] [_video frames]
    operations  one or more of R L (turn), W S A D (move), _ (hold still)
    degrees     how far each R and each L turns in all, e.g. 90 or 22.5; needed only where one of them occurs

An underscore before the last number always announces the count of video frames, so `__93` holds still for 93.
What the operations leave of that count is spent holding still at the end.

The first frame already shows the first step of the first operation: the published generator does it so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from worldkv.camera.actions import WORLD_MODEL_MOTION, Action, Motion, integrate
from worldkv.camera.intrinsics import LINGBOT_INTRINSICS, check_intrinsics
from worldkv.camera.poses import FloatArray
from worldkv.camera.trajectory import Trajectory
from worldkv.errors import TrajectoryError

GRAMMAR = "operations R L W S A D _, then degrees for R and L, then _ and the number of video frames"
MAXIMUM_FRAMES = 1_000_000
# 17 hours at 16 frames per second: a longer count is a slip of the keyboard, and would fill the memory.

_FORM = re.compile(r"(?P<operations>[RLWSAD_]+?)(?P<degrees>\d+(?:\.\d+)?)?(?:_(?P<frames>\d+))?", re.ASCII)
_BEGINNING = re.compile(r"(?:[RLWSAD_]+(?:\d+(?:\.\d*)?(?:_\d*)?)?)?", re.ASCII)
_TURNS = (Action.R, Action.L)


@dataclass(frozen=True)
class Pace:
    """How many video frames the operations of a notation take."""

    motion: Motion = WORLD_MODEL_MOTION
    """Turn and distance per video frame."""
    move_frames: int = 24
    """Video frames of each W, S, A and D."""
    hold_frames: int | tuple[int, ...] | None = None
    """Video frames of each _, one number for all or one for each. None: an equal share, rounded down, of what
    the other operations leave of the frame count, or `move_frames` where the notation has no count."""

    def __post_init__(self) -> None:
        holds = self.hold_frames if isinstance(self.hold_frames, tuple) else (self.hold_frames or 0,)
        if self.move_frames < 1 or min(holds, default=0) < 0:
            raise TrajectoryError(
                f"pace: move_frames is {self.move_frames}, hold_frames {self.hold_frames}; "
                "allowed are numbers from 1 and from 0 up"
            )


PUBLISHED_PACE = Pace()
"""2 degrees and 1 / 24 of a unit per video frame, 24 frames per move: the published WorldKV trajectories."""


@dataclass(frozen=True)
class Script:
    """A parsed notation."""

    notation: str
    operations: tuple[Action, ...]
    """One action an operation; NOOP holds still."""
    degrees: float | None
    """How far each turning operation turns in all."""
    frames: int | None
    """Count of video frames; None: as many as the operations take."""


def parse_notation(notation: str) -> Script:
    """Parse the notation. Raises TrajectoryError that points at the first character that cannot stand."""
    form = _FORM.fullmatch(notation)
    if form is None:
        _refuse_character(notation)
    operations = tuple(Action.NOOP if key == "_" else Action[key] for key in form["operations"])
    script = Script(
        notation=notation,
        operations=operations,
        degrees=None if form["degrees"] is None else float(form["degrees"]),
        frames=None if form["frames"] is None else _frame_count(notation, form["frames"]),
    )
    turning = [position for position, action in enumerate(operations, start=1) if action in _TURNS]
    if turning and script.degrees is None:
        _refuse(notation, f"character {turning[0]} turns, so degrees must follow the operations, as in RL90")
    if not turning and script.degrees is not None:
        position = len(operations) + 1
        _refuse(
            notation,
            f"character {position} begins {script.degrees:g} degrees, but nothing turns (no R or L); "
            "a frame count follows an underscore of its own, as in W_24",
        )
    return script


def script_actions(script: Script, pace: Pace = PUBLISHED_PACE) -> tuple[Action, ...]:
    """The action of every video frame that `script` asks for, from the one that leads to frame 0 on.

    Raises TrajectoryError where the degrees are no whole number of frames or the frame count is too small.
    """
    frames = _operation_frames(script, pace)
    taken = sum(frames)
    total = taken if script.frames is None else script.frames
    if taken > total or total > MAXIMUM_FRAMES:
        limit = min(total, MAXIMUM_FRAMES)
        _refuse(script.notation, f"the operations take {taken} video frames, allowed are {limit}")
    actions: list[Action] = []
    for action, count in zip(script.operations, frames, strict=True):
        actions += [action] * count
    return tuple(actions + [Action.NOOP] * (total - taken))


def trajectory_from_notation(
    notation: str,
    *,
    pace: Pace = PUBLISHED_PACE,
    intrinsics: ArrayLike = LINGBOT_INTRINSICS,
    start_44: FloatArray | None = None,
) -> Trajectory:
    """The trajectory that `notation` describes, named after it.

    Its first pose is one step away from `start_44` (the identity if None). `intrinsics` [4] serve all frames.
    Raises TrajectoryError for a bad notation.
    """
    actions = (*script_actions(parse_notation(notation), pace), Action.NOOP)
    c2w_F44 = integrate(actions, pace.motion, start_44)[1:]
    row_14 = check_intrinsics(np.atleast_2d(intrinsics), f"intrinsics for {notation!r}")
    return Trajectory(c2w_F44, np.tile(row_14, (len(c2w_F44), 1)), actions=actions[1:], name=notation)


def _operation_frames(script: Script, pace: Pace) -> list[int]:
    frames_of = dict.fromkeys(script.operations, pace.move_frames)
    if script.degrees is not None:
        frames_of |= dict.fromkeys(_TURNS, _turn_frames(script.notation, script.degrees, pace.motion))
    moving = sum(frames_of[action] for action in script.operations if action)
    holds = iter(_hold_frames(script, pace, moving))
    return [frames_of[action] if action else next(holds) for action in script.operations]


def _turn_frames(notation: str, degrees: float, motion: Motion) -> int:
    step = motion.turn_degrees_per_frame
    frames = degrees / step if step else 0.0
    if not 1 <= frames <= MAXIMUM_FRAMES or not np.isclose(frames, round(frames)):
        _refuse(notation, f"{degrees:g} degrees are no whole number of video frames of {step:g} degrees each")
    return round(frames)


def _hold_frames(script: Script, pace: Pace, moving_frames: int) -> tuple[int, ...]:
    holds = script.operations.count(Action.NOOP)
    if isinstance(pace.hold_frames, tuple):
        if len(pace.hold_frames) != holds:
            _refuse(
                script.notation,
                f"has {holds} operations _, but {len(pace.hold_frames)} hold_frames are given",
            )
        return pace.hold_frames
    if pace.hold_frames is not None:
        return (pace.hold_frames,) * holds
    if script.frames is None or not holds:
        return (pace.move_frames,) * holds
    return (max(0, script.frames - moving_frames) // holds,) * holds


def _frame_count(notation: str, digits: str) -> int:
    # Through float, because int() refuses thousands of digits with a message of its own.
    if not 1 <= float(digits) <= MAXIMUM_FRAMES:
        _refuse(notation, f"the frame count is {digits}, allowed is 1 to {MAXIMUM_FRAMES}")
    return int(float(digits))


def _refuse_character(notation: str) -> NoReturn:
    beginning = _BEGINNING.match(notation)
    position = beginning.end() if beginning else 0
    if position == len(notation):
        _refuse(notation, f"ends too soon, after character {position}; expected {GRAMMAR}")
    _refuse(notation, f"character {position + 1} is {notation[position]!r}; expected {GRAMMAR}")


def _refuse(notation: str, fault: str) -> NoReturn:
    raise TrajectoryError(f"notation {notation!r}: {fault}")
