"""Frustum overlap: how much of what one camera sees another camera sees too.

It is measured with probe points, the same every time: spread evenly over the picture and the depth range of
the asking camera, then looked for in the view of each candidate. Nothing blocks the sight.

Shapes: N candidates, P probe points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldkv.camera.intrinsics import PictureSize
from worldkv.camera.poses import FloatArray, invert_poses
from worldkv.errors import TrajectoryError

DEFAULT_PROBE_COUNT = 512
# Against 20,000 points the overlap is off by 0.005 on average and 0.02 at most.

_PLASTIC_NUMBER_3 = 1.2207440846057596
# The root of x⁴ = x + 1. Its powers step a sequence that fills three dimensions evenly (Roberts' R3).


@dataclass(frozen=True)
class Frustum:
    """The part of space a camera sees, in its own frame."""

    left: float
    """x / z at the left edge of the picture (negative in front of a centred camera)."""
    right: float
    """x / z at the right edge."""
    top: float
    """y / z at the upper edge (y points down, so negative for a centred camera)."""
    bottom: float
    """y / z at the lower edge."""
    near: float
    """Smallest depth z, in world units."""
    far: float
    """Largest depth z, in world units."""

    def __post_init__(self) -> None:
        if not (self.left < self.right and self.top < self.bottom and 0 < self.near < self.far < np.inf):
            raise TrajectoryError(
                f"{self} is empty; needed are left < right, top < bottom and 0 < near < far < infinity"
            )


def frustum_of(intrinsics_4: FloatArray, size: PictureSize, near: float, far: float) -> Frustum:
    """The frustum of a picture of `size` with intrinsics fx, fy, cx, cy between two depths in world units."""
    fx, fy, cx, cy = (float(value) for value in intrinsics_4)
    return Frustum(
        left=-cx / fx,
        right=(size.width - cx) / fx,
        top=-cy / fy,
        bottom=(size.height - cy) / fy,
        near=near,
        far=far,
    )


def probe_points(frustum: Frustum, count: int = DEFAULT_PROBE_COUNT) -> FloatArray:
    """`count` points [P, 3] inside the frustum, camera frame, even over the picture and over depth."""
    steps_3 = _PLASTIC_NUMBER_3 ** -np.arange(1.0, 4.0)
    share_P3 = (0.5 + np.arange(1, count + 1)[:, None] * steps_3) % 1.0
    low_3: FloatArray = np.array([frustum.left, frustum.top, frustum.near])
    high_3 = np.array([frustum.right, frustum.bottom, frustum.far])
    points_P3: FloatArray = low_3 + share_P3 * (high_3 - low_3)
    points_P3[:, :2] *= points_P3[:, 2:]
    return points_P3


def view_overlap(
    query_44: FloatArray, candidates_N44: FloatArray, frustum: Frustum, count: int = DEFAULT_PROBE_COUNT
) -> FloatArray:
    """Share of the query camera's probe points that each candidate sees, [N] between 0 and 1. Pure.

    All cameras share one frustum. A candidate with the query's pose sees everything. Not symmetric: who steps
    back still sees what was in front, but not the reverse.
    """
    plane_N64 = _planes(frustum) @ invert_poses(candidates_N44)
    probe_4P = query_44 @ np.concatenate([probe_points(frustum, count).T, np.ones((1, count))])
    inside_N6P = (plane_N64.reshape(-1, 4) @ probe_4P >= 0).reshape(-1, 6, count)
    share_N: FloatArray = inside_N6P.all(axis=1).mean(axis=1)
    return share_N


def _planes(frustum: Frustum) -> FloatArray:
    """The sides [6, 4]: a point (x, y, z, 1) of the camera frame lies inside where no product is negative."""
    planes: FloatArray = np.array(
        [
            [0, 0, 1, -frustum.near],
            [0, 0, -1, frustum.far],
            [1, 0, -frustum.left, 0],
            [-1, 0, frustum.right, 0],
            [0, 1, -frustum.top, 0],
            [0, -1, frustum.bottom, 0],
        ]
    )
    return planes
