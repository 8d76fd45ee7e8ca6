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
    sine_F, cosine_F, rest_F = _series(np.linalg.norm(turn_F3, axis=1)[:, None, None])
    cross_F33 = _cross_matrices(turn_F3)
    square_F33 = cross_F33 @ cross_F33
    rotation_F33 = np.eye(3) + sine_F * cross_F33 + cosine_F * square_F33
    jacobian_F33 = np.eye(3) + cosine_F * cross_F33 + rest_F * square_F33
    return make_poses(rotation_F33, (jacobian_F33 @ velocity_F3[..., None])[..., 0])


def poses_along(screw_N6: FloatArray, times_NS: FloatArray) -> FloatArray:
    """The relative poses [N, S, 4, 4] after holding each screw for so many frames: `poses_of_screws` of every product.

    For many times per screw much cheaper, as matrices are multiplied once per screw.
    """
    # exp(t X) = I + t X + (1 - cos a) / a² (t X)² + (a - sin a) / a³ (t X)³, with X the 4x4 matrix of the screw.
    power_N444 = np.zeros((len(screw_N6), 4, 4, 4))
    power_N444[:, 0] = np.eye(4)
    power_N444[:, 1, :3, :3], power_N444[:, 1, :3, 3] = _cross_matrices(screw_N6[:, :3]), screw_N6[:, 3:]
    np.matmul(power_N444[:, 1], power_N444[:, 1], out=power_N444[:, 2])
    np.matmul(power_N444[:, 1], power_N444[:, 2], out=power_N444[:, 3])
    rate_N = np.sqrt((screw_N6[:, :3] ** 2).sum(axis=1))
    _, cosine_NS, rest_NS = _series(rate_N[:, None] * times_NS)
    factor_NS4 = np.ones((*times_NS.shape, 4))
    factor_NS4[..., 1] = times_NS
    factor_NS4[..., 2] = cosine_NS * times_NS**2
    factor_NS4[..., 3] = rest_NS * times_NS**3
    pose_NS44: FloatArray = factor_NS4 @ power_N444.reshape(-1, 4, 16)
    return pose_NS44.reshape(*times_NS.shape, 4, 4)


def _left_jacobian(turn_F3: FloatArray) -> FloatArray:
    # I + (1 - cos a) / a² K + (a - sin a) / a³ K², with K the cross product by the turn vector of length a.
    _, cosine_F, rest_F = _series(np.linalg.norm(turn_F3, axis=1)[:, None, None])
    cross_F33 = _cross_matrices(turn_F3)
    return np.asarray(np.eye(3) + cosine_F * cross_F33 + rest_F * cross_F33 @ cross_F33)


def _series(angle: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    # sin a / a, (1 - cos a) / a², (a - sin a) / a³, of each.
    small = angle < SMALL_ANGLE
    safe = np.where(small, 1.0, angle)
    sine, square = np.sin(safe), safe * safe
    first: FloatArray = np.where(small, 1.0, sine / safe)
    second: FloatArray = np.where(small, 1 / 2, (1 - np.cos(safe)) / square)
    third: FloatArray = np.where(small, 1 / 6, (safe - sine) / (square * safe))
    return first, second, third


def _cross_matrices(turn_F3: FloatArray) -> FloatArray:
    # [F, 3, 3], whose product with a vector is the cross product of the turn vector and it.
    x_F, y_F, z_F = turn_F3.T
    cross_F33 = np.zeros((len(turn_F3), 3, 3))
    cross_F33[:, 0, 1], cross_F33[:, 0, 2], cross_F33[:, 1, 2] = -z_F, y_F, -x_F
    cross_F33[:, 1, 0], cross_F33[:, 2, 0], cross_F33[:, 2, 1] = z_F, -y_F, x_F
    return cross_F33
