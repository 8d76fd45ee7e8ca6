"""Paths for the memory benchmark and the demo: wander out, come back the same way.

Everything is pure; randomness is passed in.

Shapes: F video frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldkv.camera.actions import Action, spell_action
from worldkv.camera.poses import FloatArray
from worldkv.errors import TrajectoryError

_OPPOSITE = {
    Action.W: Action.S,
    Action.S: Action.W,
    Action.A: Action.D,
    Action.D: Action.A,
    Action.R: Action.L,
    Action.L: Action.R,
}
_TURNS = Action.R | Action.L
_WANDERINGS = (Action.W, Action.W, Action.R, Action.L, Action.A, Action.D)
# Walking forward is drawn twice as often as the rest, so that a path gets somewhere.


def reverse_path(c2w_F44: FloatArray) -> FloatArray:
    """The same poses in reverse order: the camera walks backwards the way it came."""
    return c2w_F44[::-1].copy()


def out_and_back(out_F44: FloatArray) -> FloatArray:
    """The path out, then its exact reverse: N = 2F - 1 poses; frame N - 1 - i has the pose of frame i.

    The turning point appears once, so 4n + 1 frames out give 4m + 1 frames in all.
    """
    return np.concatenate([out_F44, out_F44[-2::-1]]) if len(out_F44) > 1 else out_F44.copy()


def out_and_back_actions(out: Sequence[Action]) -> tuple[Action, ...]:
    """The actions of `out_and_back`: where `out` integrates to a path, these integrate to it and its reverse.

    Raises TrajectoryError for a frame that turns and moves at once, which no single action undoes.
    """
    there = tuple(out[:-1])
    back = tuple(_undo(action, frame) for frame, action in enumerate(there))
    return (*there, *reversed(back), Action.NOOP) if out else ()


def wander(rng: np.random.Generator, frames: int, longest_hold: int = 24) -> tuple[Action, ...]:
    """`frames` actions of wandering in open space: single keys, each held for 1 to `longest_hold` frames."""
    actions: list[Action] = []
    while len(actions) < frames:
        key = _WANDERINGS[rng.integers(len(_WANDERINGS))]
        actions += [key] * int(rng.integers(1, longest_hold + 1))
    return tuple(actions[:frames])


def _undo(action: Action, frame: int) -> Action:
    if action & _TURNS and action & ~_TURNS:
        raise TrajectoryError(
            f"frame {frame}: action {spell_action(action)} turns and moves at once, no action undoes it"
        )
    undone = Action.NOOP
    for key in action:
        undone |= _OPPOSITE[key]
    return undone
