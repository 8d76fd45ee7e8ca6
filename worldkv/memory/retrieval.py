"""Ranking of past chunks as the memory uses it: by pose distance (`worldkv.camera.nearness`), or at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldkv.camera.nearness import (
    Floats,
    Ints,
    Maxima,
    Turn,
    angle,
    candidates,
    checked,
    combined,
    length_sq,
    mean_pose,
    mean_pose_distance,
    moving,
    pose_distance,
    rank,
    select,
    views_apart_sq,
    yaw_and_pitch,
    yaw_pitch,
)

__all__ = [
    "Floats",
    "Ints",
    "Maxima",
    "Turn",
    "angle",
    "candidates",
    "checked",
    "combined",
    "length_sq",
    "mean_pose",
    "mean_pose_distance",
    "moving",
    "pose_distance",
    "rank",
    "select",
    "select_random",
    "views_apart_sq",
    "yaw_and_pitch",
    "yaw_pitch",
]


def select_random(
    chunk_N: Sequence[int] | range | Ints, count: int, *, seed: int, rollout: int, current_chunk: int
) -> Ints:
    """`count` of the chunks drawn without replacement: the baseline that pose distance must beat.

    A pure function of (seed, rollout, current chunk) and of the set of candidates, so a resumed run repeats
    it.
    """
    index_N = np.asarray(chunk_N, dtype=np.int64)
    if (index_N[1:] < index_N[:-1]).any():  # sorting what is sorted costs as much as the draw
        index_N = np.sort(index_N)
    drawn = min(checked(count), len(index_N))
    if not drawn:
        return index_N[:0]
    key = np.array([seed, rollout], dtype=np.uint64)
    counter = np.array([0, 0, 0, current_chunk], dtype=np.uint64)
    draw_N = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(len(index_N))
    low_n = np.flatnonzero(draw_N <= np.partition(draw_N, drawn - 1)[drawn - 1])
    chosen: Ints = index_N[low_n[np.argsort(draw_N[low_n], kind="stable")[:drawn]]]
    return chosen
