"""Which past chunks saw most of what the camera will see: ranking by overlap of views. Pure, numpy only.

Retrieval ranks by it, and so does whoever forecasts what retrieval will choose. Of the chunks that looked at a point
nearest to the one the camera will look at, those that see most of the probe points in its view; nothing blocks the
sight.

Shapes: N candidate chunks, n of them listed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worldkv.camera.frustum import Frustum, view_overlap
from worldkv.camera.nearness import Floats, Ints, checked, select, views_apart_sq

OVERLAP_SHORTLIST = 128
"""Chunks among which overlap decides. Four chosen out of 20,000 see on average 98 % or more of what the best four see
(`benchmarks/retrieval_index_cpu_202611.md`)."""
VIEW_MIDDLE = 5 / 8
"""How far before the camera lies the point that stands for its view, as a share of `sight`."""
OVERLAP_PROBES = 64
"""Points looked for in each view: with 512, which take 4 times as long, the chosen see less than 1 % more."""
NEAR_SHARE = 1 / 64
"""Nearest depth of a frustum as a share of the farthest."""


def centred_frustum(intrinsics_4: NDArray[np.floating], sight: float) -> Frustum:
    """What a camera sees up to `sight` world units away, its picture centred on cx, cy."""
    fx, fy, cx, cy = (float(value) for value in intrinsics_4)
    return Frustum(-cx / fx, cx / fx, -cy / fy, cy / fy, near=NEAR_SHARE * sight, far=sight)


def by_overlap(chunk_N: Sequence[int], pose_N44: Floats, query_44: Floats, frustum: Frustum, count: int) -> list[int]:
    """The `count` chunks that see most of what the query sees; equal ones in the order given."""
    if not len(chunk_N):
        return []
    order_N = np.argsort(-view_overlap(query_44, pose_N44, frustum, OVERLAP_PROBES), kind="stable")
    return [chunk_N[place] for place in order_N[: checked(count)].tolist()]


def overlapping(
    pose_N44: Floats, query_44: Floats, frustum: Frustum, count: int, *, shortlist: int = OVERLAP_SHORTLIST
) -> tuple[Ints, Floats]:
    """Rows of the `count` mean poses that see most of what the query sees, best first, and the share that they see.

    What retrieval chooses of chunks made in this order, ties included: with the default `shortlist`, exactly.
    """
    apart_sq_N = views_apart_sq(pose_N44, query_44, VIEW_MIDDLE * frustum.far)
    listed_n = select(apart_sq_N, range(len(pose_N44)), max(count, shortlist))
    share_n = view_overlap(query_44, pose_N44[listed_n], frustum, OVERLAP_PROBES)
    best_n = np.argsort(-share_n, kind="stable")[: checked(count)]
    return listed_n[best_n], share_n[best_n]
