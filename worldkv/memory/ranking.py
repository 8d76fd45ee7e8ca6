"""How past chunks are ranked, by name; what `MemoryPolicy.ranking` chooses from. Pure, numpy only.

- `pose`: distance of mean poses, as published. Fast at any number of chunks (`worldkv.memory.index`).
- `overlap`: how much of what the camera will see a chunk saw, of those that looked at a point nearest to the one it
  will look at; nothing blocks the sight. As fast.
- `yaw`: as `pose`, with |yaw| + |pitch| in place of the angle, for poses integrated from actions. As fast.
- `random`: drawn without replacement, the baseline. O(N).

Shapes: N candidate chunks, F latent frames of a chunk.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldkv.camera.overlaps import OVERLAP_SHORTLIST, VIEW_MIDDLE, by_overlap, centred_frustum
from worldkv.memory import retrieval
from worldkv.memory.index import PoseIndex

Ranking = Literal["pose", "overlap", "yaw", "random"]


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
