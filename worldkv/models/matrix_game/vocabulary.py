"""What keyboard and mouse mean to each of Matrix-Game-2.0's sets of weights, and where actions lead.

Shapes: F video frames, A columns of actions as `View.actions_FA` has them, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldkv.camera import ACTION_COLUMNS, WORLD_MODEL_MOTION, Action, Motion, Trajectory, integrate, spell_action
from worldkv.camera.actions import MATRIX_GAME_MOUSE_STEP
from worldkv.errors import TrajectoryError

PSEUDO_INTRINSICS = (1.0, 1.0, 0.5, 0.5)
"""Of a trajectory whose poses come from actions: nothing is known of the camera."""


@dataclass(frozen=True)
class Vocabulary:
    """The actions that a set of weights knows."""

    keys: tuple[Action, ...]
    """The keyboard's columns; NOOP is held while no other key is."""
    mouse: bool
    """Whether R and L move the mouse, by `MATRIX_GAME_MOUSE_STEP` to the right or left."""

    def rows(self, actions_FA: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keyboard [F, K] and mouse [F, 2] (pitch, yaw). Raises TrajectoryError for an action it does not know."""
        held = {action: actions_FA[:, [place]] for place, action in enumerate(ACTION_COLUMNS)}
        known = {*self.keys, *((Action.R, Action.L) if self.mouse else ())}
        for action, held_F1 in held.items():
            if action not in known and held_F1.any():
                raise TrajectoryError(
                    f"frame {int(held_F1.argmax())}: action {spell_action(action)} is held, these weights know "
                    f"{' '.join(spell_action(one) for one in ACTION_COLUMNS if one in known)}"
                )
        held[Action.NOOP] = np.asarray(~actions_FA.any(axis=1), np.float32)[:, None]
        keyboard_FK = np.concatenate([held[key] for key in self.keys], axis=1)
        mouse_F2 = np.zeros((len(actions_FA), 2), np.float32)
        mouse_F2[:, 1:] = (held[Action.R] - held[Action.L]) * MATRIX_GAME_MOUSE_STEP
        return keyboard_FK, mouse_F2


VOCABULARIES = {
    "universal": Vocabulary((Action.W, Action.S, Action.A, Action.D), mouse=True),
    "gta_drive": Vocabulary((Action.W, Action.S), mouse=True),
    # No move, jump, slide, turn left, turn right, left side, right side.
    "templerun": Vocabulary((Action.NOOP, Action.W, Action.S, Action.L, Action.R, Action.A, Action.D), mouse=False),
}
"""By mode."""


def trajectory_of(
    actions: Sequence[Action], *, motion: Motion = WORLD_MODEL_MOTION, name: str = "actions"
) -> Trajectory:
    """Actions with the poses they would lead to: good for ranking chunks against each other, not for measuring.

    The world's true scale is unknown; `motion` says how far one video frame of an action is taken to go.
    """
    actions = tuple(actions)
    return Trajectory(integrate(actions, motion), np.tile(PSEUDO_INTRINSICS, (len(actions), 1)), actions, name)
