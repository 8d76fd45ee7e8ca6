"""Rays: for every pixel the camera centre and the direction it looks, as camera-conditioned models take it.

The six channels are centre x, y, z, then unit direction x, y, z, all in the frame of the poses given. The
models call this a Plücker embedding although it holds the centre itself, not the moment centre × direction.

Shapes: F frames, H × W pixels, C channels, K side of a square of pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worldkv.camera.intrinsics import PictureSize
from worldkv.camera.poses import FloatArray
from worldkv.errors import TrajectoryError

PIXEL_CENTRE = 0.5


def ray_directions(c2w_F44: FloatArray, intrinsics_F4: FloatArray, size: PictureSize) -> NDArray[np.float32]:
    """Unit directions [F, H, W, 3] through the pixel centres, in the frame of the poses.

    `intrinsics_F4` belong to `size`. One row of intrinsics serves all frames, else there must be one a frame.
    """
    camera_FHW3 = _camera_directions(intrinsics_F4, size)
    turn_F133 = c2w_F44[:, None, :3, :3].swapaxes(-1, -2)
    return (camera_FHW3 @ turn_F133).astype(np.float32)


def plucker_rays(c2w_F44: FloatArray, intrinsics_F4: FloatArray, size: PictureSize) -> NDArray[np.float32]:
    """Camera centre and unit direction of every pixel, [F, H, W, 6]; arguments as `ray_directions`."""
    rays_FHW6 = np.empty((len(c2w_F44), size.height, size.width, 6), dtype=np.float32)
    rays_FHW6[..., :3] = c2w_F44[:, None, None, :3, 3]
    rays_FHW6[..., 3:] = ray_directions(c2w_F44, intrinsics_F4, size)
    return rays_FHW6


def fold_pixels(rays_FHWC: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Fold squares of `side` × `side` pixels into channels: [C · side², F, H / side, W / side].

    Channel c · side² + row · side + column holds channel c of that pixel of the square. Raises
    TrajectoryError where the picture is not made of whole squares.
    """
    frames, height, width, channels = rays_FHWC.shape
    if height % side or width % side:
        raise TrajectoryError(f"a picture of {height}x{width} pixels has no whole squares of {side}x{side}")
    squares = rays_FHWC.reshape(frames, height // side, side, width // side, side, channels)
    folded_CKKFHW = squares.transpose(5, 2, 4, 0, 1, 3)
    return folded_CKKFHW.reshape(channels * side * side, frames, height // side, width // side)


def _camera_directions(intrinsics_F4: FloatArray, size: PictureSize) -> FloatArray:
    fx, fy, cx, cy = np.asarray(intrinsics_F4, dtype=np.float64).T[:, :, None, None]
    x_FHW = np.broadcast_to((np.arange(size.width) + PIXEL_CENTRE - cx) / fx, (len(fx), *size))
    y_FHW = np.broadcast_to((np.arange(size.height)[:, None] + PIXEL_CENTRE - cy) / fy, (len(fy), *size))
    directions_FHW3 = np.stack([x_FHW, y_FHW, np.ones_like(x_FHW)], axis=-1)
    unit_FHW3: FloatArray = directions_FHW3 / np.linalg.norm(directions_FHW3, axis=-1, keepdims=True)
    return unit_FHW3
