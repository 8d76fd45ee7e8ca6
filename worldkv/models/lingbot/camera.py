"""The camera as LingBot takes it: per latent frame a map of rays, in the frame of the latent frame before.

Shapes: F video frames, N latent frames, C channels, H rows, W columns at latent resolution.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worldkv.camera import (
    ACTION_COLUMNS,
    LINGBOT_MOVE_COLUMNS,
    LINGBOT_SIZE,
    PictureSize,
    Trajectory,
    fold_pixels,
    plucker_rays,
    ray_directions,
    relative_framewise,
    resize_and_crop,
)
from worldkv.camera.poses import STILL_DISTANCE, VIDEO_FRAMES_PER_LATENT_FRAME
from worldkv.errors import ModelError
from worldkv.models.base import View

Control = Literal["cam", "act"]
"""cam: centres and directions of rays; act: directions, and the move keys."""
FOLD = 8
"""Pixels along one side of a latent pixel, folded into channels."""
MOVES = [ACTION_COLUMNS.index(key) for key in LINGBOT_MOVE_COLUMNS]


def latent_poses(c2w_F44: NDArray[np.floating]) -> NDArray[np.float64]:
    """Poses of the latent frames of whole chunks, [N, 4, 4]."""
    return np.asarray(c2w_F44[::VIDEO_FRAMES_PER_LATENT_FRAME], np.float64)


def longest_step(trajectory: Trajectory) -> float:
    """Farthest way between two latent frames in a row, the unit of length the model thinks in; 1 where none moves."""
    steps_N44 = relative_framewise(latent_poses(trajectory.c2w_F44))
    longest = float(np.linalg.norm(steps_N44[:, :3, 3], axis=1).max())
    return longest if longest > STILL_DISTANCE else 1.0


def camera_map(
    view: View, before_44: NDArray[np.floating], unit: float, size: PictureSize, control: Control
) -> NDArray[np.float32]:
    """Map [C, N, H, W] of one chunk. `before_44` is the pose of the latent frame before it, `unit` a length.

    As published, the first row of the view's intrinsics serves all its frames; it belongs to LINGBOT_SIZE. Raises
    ModelError where `act` has no actions.
    """
    steps_N44 = relative_framewise(np.concatenate([before_44[None], latent_poses(view.c2w_F44)]))[1:]
    steps_N44[:, :3, 3] /= unit
    intrinsics = resize_and_crop(view.intrinsics_F4[:1], LINGBOT_SIZE, size)
    if control == "cam":
        return fold_pixels(plucker_rays(steps_N44, intrinsics, size), FOLD)
    if view.actions_FA is None:
        raise ModelError("LingBot weights of the act kind need the actions of the trajectory, which has only poses")
    directions = fold_pixels(ray_directions(steps_N44, intrinsics, size), FOLD)
    held_NA = view.actions_FA[::VIDEO_FRAMES_PER_LATENT_FRAME, MOVES]
    moves_CN = np.repeat(held_NA.T, FOLD**2, axis=0)
    moves = np.broadcast_to(moves_CN[..., None, None], (*moves_CN.shape, *directions.shape[2:]))
    return np.concatenate([directions, moves]).astype(np.float32)
