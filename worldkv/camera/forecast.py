"""Forecast of the coming poses, for prefetching: read off a script, or extrapolated from the recent ones.

Shapes: F video frames.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from worldkv.camera.poses import FloatArray, make_poses, relative_framewise
from worldkv.errors import TrajectoryError

SMALL_ANGLE = 1e-6
# Radians; below it the closed forms divide 0 by 0, and their limits are exact in float64.


def read_ahead(c2w_F44: FloatArray, current: int, frames: int) -> FloatArray:
    """The next `frames` poses of a script after frame `current`; fewer near its end, none at its end."""
    if not 0 <= current < len(c2w_F44):
        raise TrajectoryError(f"frame {current} is not in a script of {len(c2w_F44)} frames")
    return c2w_F44[current + 1 : current + 1 + frames]


def extrapolate(recent_F44: FloatArray, frames: int) -> FloatArray:
    """The next `frames` poses if the camera keeps its mean velocity and turn rate over the recent frames.

    Both are held in the camera's own frame, so a camera that walks while turning goes on along its circle.
    One recent pose alone stands still. Raises TrajectoryError without any.
    """
    if len(recent_F44) == 0:
        raise TrajectoryError("a forecast needs at least one recent pose, there is none")
    moves_F44 = relative_framewise(recent_F44)[1:]
    screw_6 = screws(moves_F44).mean(axis=0) if len(moves_F44) else np.zeros(6)
    ahead_F44 = poses_of_screws(np.arange(1, frames + 1)[:, None] * screw_6)
    coming_F44: FloatArray = recent_F44[-1] @ ahead_F44
    return coming_F44


def screws(relative_F44: FloatArray) -> FloatArray:
    """Screw coordinates [F, 6]: turn vector in radians, then velocity, whose exponential is the relative pose."""
    turn_F3 = Rotation.from_matrix(relative_F44[:, :3, :3]).as_rotvec()
    velocity_F3 = np.linalg.solve(_left_jacobian(turn_F3), relative_F44[:, :3, 3:])[..., 0]
    return np.concatenate([turn_F3, velocity_F3], axis=1)


def poses_of_screws(screw_F6: FloatArray) -> FloatArray:
    """The relative poses [F, 4, 4] whose screw coordinates these are: the inverse of `screws`."""
    turn_F3, velocity_F3 = screw_F6[:, :3], screw_F6[:, 3:]
    place_F3 = (_left_jacobian(turn_F3) @ velocity_F3[..., None])[..., 0]
    return make_poses(Rotation.from_rotvec(turn_F3).as_matrix(), place_F3)


def _left_jacobian(turn_F3: FloatArray) -> FloatArray:
    # I + (1 - cos a) / a² K + (a - sin a) / a³ K², with K the cross product by the turn vector of length a.
    angle_F = np.linalg.norm(turn_F3, axis=1)
    small_F = angle_F < SMALL_ANGLE
    safe_F = np.where(small_F, 1.0, angle_F)
    first_F = np.where(small_F, 1 / 2, (1 - np.cos(safe_F)) / safe_F**2)
    second_F = np.where(small_F, 1 / 6, (safe_F - np.sin(safe_F)) / safe_F**3)
    cross_F33 = -np.cross(turn_F3[:, None], np.eye(3))
    return np.eye(3) + first_F[:, None, None] * cross_F33 + second_F[:, None, None] * cross_F33 @ cross_F33
