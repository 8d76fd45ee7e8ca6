"""Which past chunks were seen from nearest to where the camera will be: ranking by pose distance. Pure, numpy only.

Retrieval ranks by it, and so does whoever forecasts what retrieval will choose.

N chunks, Q queries, F latent frames of a chunk; poses are camera-to-world 4x4, OpenCV axes, any unit of length.

The score is the published one (arXiv 2605.22718; `generate` in wan/image2video_fast.py): each chunk is
reduced to its mean pose, and distance = 0.5 * |dt|^2 / max + 0.5 * angle / max, each maximum taken over the
candidates. The squared length is what the published code computes, though the paper speaks of a norm.
`parity=True` also repeats its two defects: the mean of rotation matrices is used as if it were a rotation,
and one chunk is never a candidate.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldkv.errors import ConfigError, TrajectoryError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Turn = Callable[[Floats, Floats], Floats]
"""How far each of some poses [N, 4, 4] is turned from one pose: [N] in radians."""

# A camera that stands still differs from itself only by the rounding of float32 poses. Divided by their own
# maximum such differences would rank chunks by noise; below these spans all candidates count as equally
# near.
STILL_RADIANS = 1e-5
STILL_RELATIVE_LENGTH = 1e-6
SQRT_8 = 8**0.5
# The chord between opposite rotations.


def candidates(current_chunk: int, sink_chunks: int, recent_chunks: int, *, parity: bool = False) -> range:
    """Indices of the chunks that may be retrieved: neither sink, nor recent, nor current; empty early on.

    `recent_chunks` counts the past chunks in the recent part of the window, without the current one. The
    published code (`parity`) counts the current one in and out again, so the chunk just before the recent
    ones is in no part.
    """
    if min(current_chunk, sink_chunks, recent_chunks) < 0:
        raise ConfigError(
            f"current_chunk={current_chunk}, sink_chunks={sink_chunks}, recent_chunks={recent_chunks}: "
            "none may be negative"
        )
    stop = current_chunk - recent_chunks - (1 if parity else 0)
    return range(sink_chunks, max(sink_chunks, stop))


def mean_pose(c2w_NF44: NDArray[np.floating], *, parity: bool = False) -> Floats:
    """Mean pose of each chunk, [..., F, 4, 4] -> [..., 4, 4] in float64.

    The mean rotation is projected to the nearest rotation (polar decomposition); with `parity` it stays as
    it is. Raises TrajectoryError on a wrong shape, no latent frames, or values that are not finite.
    """
    poses = np.asarray(c2w_NF44, dtype=np.float64)
    if poses.ndim < 3 or poses.shape[-2:] != (4, 4) or poses.shape[-3] == 0:
        raise TrajectoryError(f"chunk poses have shape {poses.shape}, need [..., latent frames, 4, 4]")
    if not np.isfinite(poses).all():
        raise TrajectoryError(f"chunk poses of shape {poses.shape} hold values that are not finite")
    mean: Floats = poses.mean(axis=-3)
    if not parity:
        mean[..., :3, :3] = nearest_rotation(mean[..., :3, :3])
    return mean


def mean_pose_distance(pose_N44: Floats, query_44: Floats, *, parity: bool = False, turn: Turn | None = None) -> Floats:
    """Distance in [0, 1] of each mean pose to the query's, both from `mean_pose` with the same `parity`.

    For callers that keep the mean poses; O(N). Only comparable among the candidates of one call. `turn` takes the
    place of `angle`.
    """
    if len(pose_N44) == 0:
        return np.zeros(0)
    length_sq_N = length_sq(pose_N44, query_44)
    turn_N = turn(pose_N44, query_44) if turn else angle(pose_N44, query_44, parity=parity)
    if parity:
        return combined(length_sq_N, turn_N, Maxima(float(length_sq_N.max()), float(turn_N.max())))
    extent = max(float(np.abs(pose_N44[:, :3, 3]).max()), float(np.abs(query_44[:3, 3]).max()))
    return combined(length_sq_N, turn_N, moving(float(length_sq_N.max()), float(turn_N.max()), extent))


def mean_pose_distances(
    pose_N44: Floats, query_Q44: Floats, allowed_QN: NDArray[np.bool_], *, by_yaw: bool = False
) -> Floats:
    """Row q is `mean_pose_distance` of the candidates allowed to query q, and infinite at the others. [Q, N], O(Q N).

    `by_yaw`: |yaw| + |pitch| in place of the angle.
    """
    if not allowed_QN.size:
        return np.full(allowed_QN.shape, np.inf)
    length_sq_QN = _sum_of_squares(pose_N44[:, :3, 3].T[:, None] - query_Q44[:, :3, 3].T[:, :, None])
    turn_QN = _yaw_and_pitches(pose_N44, query_Q44) if by_yaw else _angles(pose_N44, query_Q44)
    extent_N = np.abs(pose_N44[:, :3, 3]).max(axis=1)
    extent_Q = np.maximum((extent_N * allowed_QN).max(axis=1), np.abs(query_Q44[:, :3, 3]).max(axis=1))
    length_sq_Q, turn_Q = (length_sq_QN * allowed_QN).max(axis=1), (turn_QN * allowed_QN).max(axis=1)
    moved_Q = length_sq_Q > (STILL_RELATIVE_LENGTH * extent_Q) ** 2
    turned_Q = turn_Q > STILL_RADIANS
    # Divided, not multiplied by the inverse: the same to the last bit as for one query.
    length_sq_QN /= np.where(moved_Q, length_sq_Q, np.inf)[:, None]
    turn_QN /= np.where(turned_Q, turn_Q, np.inf)[:, None]
    distance_QN: Floats = np.where(allowed_QN, 0.5 * length_sq_QN + 0.5 * turn_QN, np.inf)
    return distance_QN


def length_sq(pose_N44: Floats, query_44: Floats) -> Floats:
    """Squared distance [N] in place. A row's value does not depend on the other rows."""
    return _sum_of_squares((pose_N44[:, :3, 3] - query_44[:3, 3]).T)


def views_apart_sq(pose_N44: Floats, query_44: Floats, depth: float) -> Floats:
    """Squared distance [N] of the points `depth` before the cameras. A row's value depends on no other row."""
    point_N3 = pose_N44[:, :3, 3] + depth * pose_N44[:, :3, 2]
    return _sum_of_squares((point_N3 - (query_44[:3, 3] + depth * query_44[:3, 2])).T)


def angle(pose_N44: Floats, query_44: Floats, *, parity: bool = False) -> Floats:
    """Angle [N] between rotations in radians. A row's value does not depend on the other rows."""
    rotation_N33, rotation_33 = pose_N44[:, :3, :3], query_44[:3, :3]
    if parity:
        cosine_N = (np.einsum("nij,ij->n", rotation_N33, rotation_33) - 1) / 2
        return np.asarray(np.arccos(cosine_N.clip(-1, 1)))
    # The chord form keeps its digits near zero, where arccos(trace) loses half of them.
    chord_N = np.sqrt(_sum_of_squares((rotation_N33 - rotation_33).reshape(-1, 9).T))
    return np.asarray(2 * np.arcsin(np.minimum(chord_N / SQRT_8, 1.0)))


def yaw_and_pitch(pose_N44: Floats, query_44: Floats) -> Floats:
    """|yaw| + |pitch| [N] from the query's view to others, in radians.

    It counts the turns that actions made, left or right and up or down; roll, which no action makes and which only
    errors of integration bring about, does not count. Ours; no published source.
    """
    yaw_N, pitch_N = yaw_pitch(pose_N44)
    query_yaw, query_pitch = yaw_pitch(query_44[None])
    yaw_N = np.abs((yaw_N - query_yaw + np.pi) % (2 * np.pi) - np.pi)
    turn_N: Floats = yaw_N + np.abs(pitch_N - query_pitch)
    return turn_N


def yaw_pitch(pose_N44: Floats) -> Floats:
    """Yaw and pitch [2, N] in radians: 0 looks along +z, right and up are positive; straight up, yaw is arbitrary."""
    x_N, y_N, z_N = pose_N44[:, :3, 2].T
    return np.stack([np.arctan2(x_N, z_N), np.arctan2(-y_N, np.hypot(x_N, z_N))])


class Maxima(NamedTuple):
    """What the two parts of the distance are divided by; 0 where all candidates count as equally near."""

    length_sq: float
    turn: float


def moving(length_sq: float, turn: float, extent: float) -> Maxima:
    """The maxima over the candidates, 0 for a camera that stood still; `extent` is the largest coordinate."""
    moved = length_sq > (STILL_RELATIVE_LENGTH * extent) ** 2
    return Maxima(length_sq if moved else 0.0, turn if turn > STILL_RADIANS else 0.0)


def combined(length_sq_N: Floats, turn_N: Floats, maxima: Maxima) -> Floats:
    """The distance of candidates, or of some of them, given the maxima over all."""
    return 0.5 * _by_maximum(length_sq_N, maxima.length_sq) + 0.5 * _by_maximum(turn_N, maxima.turn)


def pose_distance(
    c2w_NF44: NDArray[np.floating], query_c2w_F44: NDArray[np.floating], *, parity: bool = False
) -> Floats:
    """Distance in [0, 1] of each candidate chunk to the query chunk, from all their poses."""
    return mean_pose_distance(
        mean_pose(c2w_NF44, parity=parity), mean_pose(query_c2w_F44, parity=parity), parity=parity
    )


def rank(distance_N: Floats, chunk_N: Sequence[int] | range | Ints) -> Ints:
    """The chunk indices, nearest first; of equally near chunks the newer (higher index) comes first.

    Does not depend on the order in which the candidates are listed.
    """
    index_N = np.asarray(chunk_N, dtype=np.int64)
    if distance_N.shape != index_N.shape:
        raise ConfigError(f"{distance_N.shape} distances for {index_N.shape} chunks: the shapes must agree")
    order: Ints = index_N[np.lexsort((-index_N, distance_N))]
    return order


def select(distance_N: Floats, chunk_N: Sequence[int] | range | Ints, count: int) -> Ints:
    """The `count` nearest chunk indices, nearest first; all of them where there are fewer."""
    return rank(distance_N, chunk_N)[: checked(count)]


def nearest_rotation(matrix_N33: Floats) -> Floats:
    """The rotation nearest to each matrix [..., 3, 3], by polar decomposition."""
    u, _, vt = np.linalg.svd(matrix_N33)
    rotation_N33: Floats = u @ vt
    mirrored_N = np.linalg.det(rotation_N33) < 0
    if mirrored_N.any():
        u[..., :, 2] *= np.where(mirrored_N, -1.0, 1.0)[..., None]
        rotation_N33 = u @ vt
    return rotation_N33


def _angles(pose_N44: Floats, query_Q44: Floats) -> Floats:
    rotation_9N, query_9Q = pose_N44[:, :3, :3].reshape(-1, 9).T, query_Q44[:, :3, :3].reshape(-1, 9).T
    chord_QN = np.sqrt(_sum_of_squares(rotation_9N[:, None] - query_9Q[:, :, None]))
    return np.asarray(2 * np.arcsin(np.minimum(chord_QN / SQRT_8, 1.0)))


def _yaw_and_pitches(pose_N44: Floats, query_Q44: Floats) -> Floats:
    (yaw_N, pitch_N), (yaw_Q, pitch_Q) = yaw_pitch(pose_N44), yaw_pitch(query_Q44)
    yaw_QN = np.abs((yaw_N - yaw_Q[:, None] + np.pi) % (2 * np.pi) - np.pi)
    return np.asarray(yaw_QN + np.abs(pitch_N - pitch_Q[:, None]))


def _by_maximum(distance_N: Floats, maximum: float) -> Floats:
    return distance_N / maximum if maximum > 0 else np.zeros_like(distance_N)


def _sum_of_squares(part_3N: Floats) -> Floats:
    # Not `sum(axis=...)`, whose order of additions depends on the array's layout.
    return np.asarray(functools.reduce(np.add, part_3N * part_3N))


def checked(count: int) -> int:
    if count < 0:
        raise ConfigError(f"count={count}: the number of chunks to retrieve must be 0 or more")
    return count
