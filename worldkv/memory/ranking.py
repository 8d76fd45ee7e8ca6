"""How past chunks are ranked, by name; what `MemoryPolicy.ranking` chooses from. Pure, numpy only.

- `pose`: distance of mean poses, as published. Fast at any number of chunks (`worldkv.memory.index`).
- `overlap`: how much of what the camera will see a chunk saw, of those nearest by pose; nothing blocks the sight.
- `yaw`: distance in place, yaw and pitch, for poses integrated from actions. O(N).
- `random`: drawn without replacement, the baseline. O(N).

Shapes: N candidate chunks, F latent frames of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldkv.camera import Frustum, view_overlap
from worldkv.memory import retrieval
from worldkv.memory.index import PoseIndex
from worldkv.memory.retrieval import Floats, Maxima

Ranking = Literal["pose", "overlap", "yaw", "random"]

OVERLAP_SHORTLIST = 256
"""Chunks, nearest by pose, among which overlap decides: 10 us each, and a chunk behind 256 others sees little new."""
NEAR_SHARE = 1 / 64
"""Nearest depth of a frustum as a share of the farthest."""


class Query(NamedTuple):
    """The chunk to be made next."""

    c2w_F44: NDArray[np.float32]
    """Of its latent frames."""
    intrinsics_4: NDArray[np.float32]
    """fx, fy, cx, cy in pixels; cx, cy is taken for the middle of the picture."""
    chunk: int
    seed: int
    rollout: int


def choose(ranking: Ranking, index: PoseIndex, allowed: range, query: Query, count: int, *, sight: float) -> list[int]:
    """At most `count` of the indexed chunks within `allowed`, best first. `sight`: see `centred_frustum`."""
    if ranking == "pose":
        return index.nearest(allowed, query.c2w_F44, count)
    if ranking == "overlap":
        chunk_N = index.nearest(allowed, query.c2w_F44, max(count, OVERLAP_SHORTLIST))
        frustum = centred_frustum(query.intrinsics_4, sight)
        return by_overlap(chunk_N, index.mean_poses(chunk_N), retrieval.mean_pose(query.c2w_F44), frustum, count)
    chunk_N = index.candidates(allowed)
    if ranking == "yaw":
        distance_N = yaw_distance(index.mean_poses(chunk_N), retrieval.mean_pose(query.c2w_F44))
        return [int(chunk) for chunk in retrieval.select(distance_N, chunk_N, count)]
    picked = retrieval.select_random(chunk_N, count, seed=query.seed, rollout=query.rollout, current_chunk=query.chunk)
    return [int(chunk) for chunk in picked]


def by_overlap(chunk_N: Sequence[int], pose_N44: Floats, query_44: Floats, frustum: Frustum, count: int) -> list[int]:
    """The `count` chunks that see most of what the query sees; equal ones in the order given."""
    if not len(chunk_N):
        return []
    order_N = np.argsort(-view_overlap(query_44, pose_N44, frustum), kind="stable")
    return [chunk_N[place] for place in order_N[: retrieval.checked(count)].tolist()]


def centred_frustum(intrinsics_4: NDArray[np.floating], sight: float) -> Frustum:
    """What a camera sees up to `sight` world units away, its picture centred on cx, cy."""
    fx, fy, cx, cy = (float(value) for value in intrinsics_4)
    return Frustum(-cx / fx, cx / fx, -cy / fy, cy / fy, near=NEAR_SHARE * sight, far=sight)


def yaw_distance(pose_N44: Floats, query_44: Floats) -> Floats:
    """Distance [N] in [0, 1] of mean poses: the published form with |yaw| + |pitch| in place of the angle.

    It counts the turns that actions made, left or right and up or down; roll, which no action makes and which only
    errors of integration bring about, does not count. Ours; no published source.
    """
    if len(pose_N44) == 0:
        return np.zeros(0)
    yaw_N, pitch_N = yaw_pitch(pose_N44)
    query_yaw, query_pitch = yaw_pitch(query_44[None])
    yaw_N = np.abs((yaw_N - query_yaw + np.pi) % (2 * np.pi) - np.pi)
    turn_N = yaw_N + np.abs(pitch_N - query_pitch)
    length_sq_N = retrieval.length_sq(pose_N44, query_44)
    extent = max(float(np.abs(pose_N44[:, :3, 3]).max()), float(np.abs(query_44[:3, 3]).max()))
    maxima: Maxima = retrieval.moving(float(length_sq_N.max()), float(turn_N.max()), extent)
    return retrieval.combined(length_sq_N, turn_N, maxima)


def yaw_pitch(pose_N44: Floats) -> tuple[Floats, Floats]:
    """Yaw and pitch [N] in radians: 0 looks along +z, right and up are positive; straight up, yaw is arbitrary."""
    x_N, y_N, z_N = pose_N44[:, :3, 2].T
    return np.arctan2(x_N, z_N), np.arctan2(-y_N, np.hypot(x_N, z_N))
