"""Intrinsics: rows fx, fy, cx, cy in pixels, with the picture's upper left corner at (0, 0).

They belong to one picture size; whoever resizes or crops the picture passes them through `resize_and_crop`.

Shapes: F video frames; every function takes [F, 4] or a single [4].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from worldkv.camera.poses import FloatArray
from worldkv.errors import TrajectoryError


class PictureSize(NamedTuple):
    """Height and width in pixels, in that order."""

    height: int
    width: int


LINGBOT_SIZE = PictureSize(480, 832)
"""The size to which the intrinsics files of LingBot and WorldKV belong."""
LINGBOT_INTRINSICS = (415.5298, 415.6922, 415.77786, 239.77779)
"""The intrinsics that the published WorldKV trajectories use, at LINGBOT_SIZE."""


def check_intrinsics(intrinsics: ArrayLike, source: str) -> FloatArray:
    """Return `intrinsics` as float64 [F, 4] once they are finite with positive focal lengths.

    Raises TrajectoryError with `source`, the first bad frame and its fault.
    """
    rows_F4 = np.asarray(intrinsics, dtype=np.float64)
    if rows_F4.ndim != 2 or rows_F4.shape[1] != 4:
        raise TrajectoryError(f"{source}: intrinsics have shape {list(rows_F4.shape)}, expected [frames, 4]")
    bad_F = np.asarray(~np.isfinite(rows_F4).all(axis=1) | (rows_F4[:, :2] <= 0).any(axis=1))
    if bad_F.any():
        frame = int(bad_F.argmax())
        raise TrajectoryError(
            f"{source}: frame {frame} of {len(bad_F)}: intrinsics {rows_F4[frame].tolist()} are not "
            "finite with positive focal lengths fx, fy"
        )
    return rows_F4


def resize_and_crop(
    intrinsics: ArrayLike, original: PictureSize, resized: PictureSize, final: PictureSize | None = None
) -> FloatArray:
    """Intrinsics of pictures resized to `resized`, then cropped centrally to `final` (None: no crop)."""
    final = resized if final is None else final
    scale = np.array([resized.width / original.width, resized.height / original.height] * 2)
    cut = np.array([0, 0, resized.width - final.width, resized.height - final.height]) / 2
    rows: FloatArray = np.asarray(intrinsics, dtype=np.float64) * scale - cut
    return rows


def from_field_of_view(horizontal_degrees: float, size: PictureSize) -> FloatArray:
    """Intrinsics [4] of square pixels, centred, that see `horizontal_degrees` across the width.

    Raises TrajectoryError unless the angle lies between 0 and 180.
    """
    if not 0 < horizontal_degrees < 180:
        raise TrajectoryError(f"field of view is {horizontal_degrees} degrees, allowed is between 0 and 180")
    focal = size.width / 2 / math.tan(math.radians(horizontal_degrees) / 2)
    return np.array([focal, focal, size.width / 2, size.height / 2])
