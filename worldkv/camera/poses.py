"""Camera poses: checking, inverting, relating and interpolating them.

A pose is a camera-to-world 4x4 matrix on OpenCV axes: x right, y down, z forward; lengths are world units.
A planar pose is one of an upright camera: a place (x, z) and a yaw, which grows when the camera turns right.

Shapes: F frames (video frames unless a docstring says latent frames).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation, Slerp

from worldkv.errors import TrajectoryError

FloatArray = NDArray[np.float64]

ROTATION_TOLERANCE = 1e-3
# Poses exported as half floats are off by up to 5e-4 per element; skewed or scaled ones by far more.

STILL_DISTANCE = 1e-9
# Below this a camera stands still: rounding noise divided by its own maximum would become motion of length 1.

VIDEO_FRAMES_PER_LATENT_FRAME = 4
# The time stride of the Wan 2.1 VAE, which every supported model uses.


class PlanarPoses(NamedTuple):
    """Places and headings of upright cameras, each of shape [F]."""

    x_F: FloatArray
    z_F: FloatArray
    yaw_degrees_F: FloatArray


def check_poses(poses: ArrayLike, source: str) -> FloatArray:
    """Return `poses` as float64 [F, 4, 4] once they are sound.

    Raises TrajectoryError with `source` (a path or label), the first bad frame and its fault.
    """
    c2w_F44 = np.asarray(poses, dtype=np.float64)
    if c2w_F44.ndim != 3 or c2w_F44.shape[1:] != (4, 4):
        raise TrajectoryError(f"{source}: poses have shape {list(c2w_F44.shape)}, expected [frames, 4, 4]")
    _refuse_first(~np.isfinite(c2w_F44).all(axis=(1, 2)), source, "the pose has a value that is not finite")
    last_row_F4 = c2w_F44[:, 3]
    wrong_row_F = (np.abs(last_row_F4 - (0, 0, 0, 1)) > ROTATION_TOLERANCE).any(axis=1)
    _refuse_first(wrong_row_F, source, "the last row of the pose is not 0 0 0 1")
    rotation_F33 = c2w_F44[:, :3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # huge values are a fault to report, not a warning
        gram_F33 = rotation_F33 @ rotation_F33.swapaxes(1, 2)
    skewed_F = ~(np.abs(gram_F33 - np.eye(3)) <= ROTATION_TOLERANCE).all(axis=(1, 2))
    _refuse_first(skewed_F, source, f"the rotation is not orthonormal within {ROTATION_TOLERANCE:g}")
    _refuse_first(np.linalg.det(rotation_F33) < 0, source, "the rotation mirrors (determinant -1, not +1)")
    return c2w_F44


def invert_poses(c2w_F44: FloatArray) -> FloatArray:
    """World-to-camera matrices of camera-to-world ones, or back; any leading shape."""
    inverse = np.zeros_like(c2w_F44)
    inverse[..., :3, :3] = c2w_F44[..., :3, :3].swapaxes(-1, -2)
    inverse[..., :3, 3] = -_apply(inverse[..., :3, :3], c2w_F44[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def relative_to_first(c2w_F44: FloatArray) -> FloatArray:
    """Each pose in the frame of the first camera, [F, 4, 4]; the first is the identity."""
    return _relative(np.broadcast_to(c2w_F44[:1], c2w_F44.shape), c2w_F44)


def relative_framewise(c2w_F44: FloatArray) -> FloatArray:
    """Each pose in the frame of the camera before it, [F, 4, 4]; the first is the identity."""
    return _relative(np.concatenate([c2w_F44[:1], c2w_F44[:-1]]), c2w_F44)


def normalise_translations(relative_F44: FloatArray) -> FloatArray:
    """Divide all translations by the longest of them, as the camera-conditioned models expect.

    The result has no unit of length any more; poses that all stand still come back unchanged.
    """
    normalised_F44 = relative_F44.copy()
    longest = np.linalg.norm(relative_F44[:, :3, 3], axis=1).max(initial=0.0)
    if longest > STILL_DISTANCE:
        normalised_F44[:, :3, 3] /= longest
    return normalised_F44


def interpolate_poses(c2w_F44: FloatArray, times: ArrayLike) -> FloatArray:
    """Poses at fractional frame indices `times` [T], within 0 and F - 1: linear in place, Slerp in rotation.

    Raises TrajectoryError for a time outside the trajectory.
    """
    times_T = np.asarray(times, dtype=np.float64)
    last = len(c2w_F44) - 1
    outside_T = ~((times_T >= 0) & (times_T <= last))
    if outside_T.any():
        raise TrajectoryError(f"time {times_T[outside_T][0]:g} is outside the poses' frames 0 to {last}")
    if last == 0:
        return np.repeat(c2w_F44, len(times_T), axis=0)
    before_T = np.minimum(times_T.astype(np.int64), last - 1)
    place_T3 = c2w_F44[before_T, :3, 3]
    step_T3 = c2w_F44[before_T + 1, :3, 3] - place_T3
    slerp = Slerp(np.arange(last + 1), Rotation.from_matrix(c2w_F44[:, :3, :3]))
    return make_poses(slerp(times_T).as_matrix(), place_T3 + (times_T - before_T)[:, None] * step_T3)


def latent_frame_times(video_frames: int, latent_frames_per_chunk: int = 3) -> FloatArray:
    """Video-frame indices at which LingBot reads the pose of each latent frame, [latent frames].

    Frames past the last 4n + 1 are left out and latent frames come in whole chunks. Where that drops latent
    frames the reference still spreads the rest over all the frames, so their spacing grows beyond 4.
    Raises TrajectoryError when not even one chunk fits.
    """
    last = (video_frames - 1) // VIDEO_FRAMES_PER_LATENT_FRAME * VIDEO_FRAMES_PER_LATENT_FRAME
    latent_frames = last // VIDEO_FRAMES_PER_LATENT_FRAME + 1
    whole = latent_frames - latent_frames % latent_frames_per_chunk
    if video_frames < 1 or whole == 0:
        needed = (latent_frames_per_chunk - 1) * VIDEO_FRAMES_PER_LATENT_FRAME + 1
        raise TrajectoryError(
            f"{video_frames} video frames hold no chunk of {latent_frames_per_chunk} latent frames; "
            f"at least {needed} are needed"
        )
    return np.linspace(0.0, last, whole)


def planar_poses(x: ArrayLike, z: ArrayLike, yaw_degrees: ArrayLike) -> FloatArray:
    """Upright poses [F, 4, 4] at height 0 from coordinates [F]; three numbers give [1, 4, 4].

    Yaw 0 looks along +z, yaw 90 along +x: it grows to the right.
    """
    x_F, z_F, yaw_F = np.broadcast_arrays(np.atleast_1d(x), np.atleast_1d(z), np.atleast_1d(yaw_degrees))
    return make_poses(yaw_rotations(yaw_F), np.stack([x_F, np.zeros(len(x_F)), z_F], axis=1))


def planar_coordinates(c2w_F44: FloatArray) -> PlanarPoses:
    """Place and heading of each pose seen from above; yaw in degrees within -180 and 180."""
    yaw_F = np.degrees(np.arctan2(c2w_F44[:, 0, 2], c2w_F44[:, 2, 2]))
    return PlanarPoses(x_F=c2w_F44[:, 0, 3].copy(), z_F=c2w_F44[:, 2, 3].copy(), yaw_degrees_F=yaw_F)


def yaw_rotations(yaw_degrees: ArrayLike) -> FloatArray:
    """Rotations [F, 3, 3] about the vertical by angles [F]; positive turns right."""
    yaw_F = np.radians(np.asarray(yaw_degrees, dtype=np.float64))
    rotation_F33 = np.zeros((len(yaw_F), 3, 3))
    rotation_F33[:, 0, 0] = rotation_F33[:, 2, 2] = np.cos(yaw_F)
    rotation_F33[:, 0, 2] = np.sin(yaw_F)
    rotation_F33[:, 2, 0] = -rotation_F33[:, 0, 2]
    rotation_F33[:, 1, 1] = 1.0
    return rotation_F33


def make_poses(rotation_F33: FloatArray, place_F3: FloatArray) -> FloatArray:
    """Poses [F, 4, 4] from rotations and camera centres."""
    c2w_F44 = np.zeros((len(rotation_F33), 4, 4))
    c2w_F44[:, :3, :3] = rotation_F33
    c2w_F44[:, :3, 3] = place_F3
    c2w_F44[:, 3, 3] = 1.0
    return c2w_F44


def _relative(reference_F44: FloatArray, c2w_F44: FloatArray) -> FloatArray:
    # Subtracting places before rotating keeps a camera that turns on the spot exactly on the spot.
    back_F33 = reference_F44[:, :3, :3].swapaxes(1, 2)
    relative_F44 = make_poses(
        back_F33 @ c2w_F44[:, :3, :3], _apply(back_F33, c2w_F44[:, :3, 3] - reference_F44[:, :3, 3])
    )
    relative_F44[:1] = np.eye(4)
    return relative_F44


def _apply(rotation: FloatArray, vector: FloatArray) -> FloatArray:
    turned: FloatArray = np.einsum("...ij,...j->...i", rotation, vector)
    return turned


def _refuse_first(bad: ArrayLike, source: str, fault: str) -> None:
    bad_F = np.asarray(bad)
    if bad_F.any():
        raise TrajectoryError(f"{source}: frame {int(bad_F.argmax())} of {len(bad_F)}: {fault}")
