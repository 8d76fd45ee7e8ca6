"""How past chunks are ranked, by name; what `MemoryPolicy.ranking` chooses from. Pure, numpy only.

- `pose`: distance of mean poses, as published. Fast at any number of chunks (`worldkv.memory.index`).
- `overlap`: how much of what the camera will see a chunk saw, of those that looked at a point nearest to the one it
  will look at; nothing blocks the sight. As fast.
- `yaw`: as `pose`, with |yaw| + |pitch| in place of the angle, for poses integrated from actions. As fast.
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
from worldkv.memory.retrieval import Floats

Ranking = Literal["pose", "overlap", "yaw", "random"]

OVERLAP_SHORTLIST = 128
"""Chunks among which overlap decides. Four chosen out of 20,000 see on average 98 % or more of what the best four see
(`benchmarks/retrieval_index_cpu_202611.md`)."""
VIEW_MIDDLE = 5 / 8
"""How far before the camera lies the point that stands for its view, as a share of `sight`."""
OVERLAP_PROBES = 64
"""Points looked for in each view: with 512, which take 4 times as long, the chosen see less than 1 % more."""
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
    if ranking == "yaw":
        return index.nearest(allowed, query.c2w_F44, count, turn=retrieval.yaw_and_pitch)
    if ranking == "overlap":
        shortlist = max(count, OVERLAP_SHORTLIST)
        chunk_N = index.nearest_views(allowed, query.c2w_F44, shortlist, depth=VIEW_MIDDLE * sight)
        frustum = centred_frustum(query.intrinsics_4, sight)
        return by_overlap(chunk_N, index.mean_poses(chunk_N), retrieval.mean_pose(query.c2w_F44), frustum, count)
    stored_N = index.candidates(allowed)
    picked: list[int] = retrieval.select_random(
        stored_N, count, seed=query.seed, rollout=query.rollout, current_chunk=query.chunk
    ).tolist()
    return picked


def by_overlap(chunk_N: Sequence[int], pose_N44: Floats, query_44: Floats, frustum: Frustum, count: int) -> list[int]:
    """The `count` chunks that see most of what the query sees; equal ones in the order given."""
    if not len(chunk_N):
        return []
    order_N = np.argsort(-view_overlap(query_44, pose_N44, frustum, OVERLAP_PROBES), kind="stable")
    return [chunk_N[place] for place in order_N[: retrieval.checked(count)].tolist()]


def centred_frustum(intrinsics_4: NDArray[np.floating], sight: float) -> Frustum:
    """What a camera sees up to `sight` world units away, its picture centred on cx, cy."""
    fx, fy, cx, cy = (float(value) for value in intrinsics_4)
    return Frustum(-cx / fx, cx / fx, -cy / fy, cy / fy, near=NEAR_SHARE * sight, far=sight)
