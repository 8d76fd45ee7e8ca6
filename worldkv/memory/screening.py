"""Which rows can be among the nearest at all: float32 bounds that are cheap to compute and never wrong.

The published distance divides by the maxima over all candidates, so nothing can be ranked before all have been looked
at. They are looked at once, in float32, with two products of a vector and a matrix. From the results and their
largest possible error follow: the few rows that may hold a maximum; the maxima, exact, from those in float64; a
bound below which each row's distance cannot lie; and the rows whose bound is no higher than the exact distance of
`count` rows looked at already. Only these remain to be ranked.

Shapes: N rows of all parts together, R rows of one part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from worldkv.memory import retrieval
from worldkv.memory.pose_rows import Part, PoseRows, quaternion
from worldkv.memory.retrieval import Floats, Ints, Maxima, Turn

Singles = NDArray[np.float32]
Number = TypeVar("Number", np.float64, np.int64)

UNIT = 2.0**-24
"""Relative error of one float32 operation."""
LENGTH_UNITS = 12
"""Error of a squared length, in UNIT x (longest place + query's place) squared: 1 rounding of each factor, 5 of product
and sum; the rest is margin."""
COSINE_UNITS = 8
"""Error of a quaternion product, in UNIT: 1 rounding of each factor, 4 of product and sum; the rest is margin."""
YAW_PITCH_UNITS = 64
"""Error of |yaw| + |pitch|, in UNIT: none of its dozen roundings is of more than 2 pi, most of less."""
SCORE_RELATIVE_ERROR = 4e-6
"""Of the bound itself: below 16 float32 operations, each on terms that are not negative, four times over."""
UNDERFLOW = 1e-36
"""Above what ten float32 operations lose when their results are too small for it."""
LONGEST_SQ = 1e36
"""Squared lengths beyond come near the largest float32: not screened."""
FEW = 64
"""Rows of which repeated ones are not worth finding."""
SHORTEST_SQ = 1e-30
"""Squared lengths below come near the smallest float32: bounded by 0 instead."""
SAMPLE_COLUMNS = 1024
"""Among how many groups of rows the first candidates are sought; fewer rows than two per group are not screened."""


class Screened(NamedTuple):
    """What is left to rank."""

    row_N: Ints
    """Rows by number over all parts, ascending: every row that may be among the nearest, and some others."""
    maxima: Maxima
    """Over all rows, exact."""


class _Bounds(NamedTuple):
    length_sq_N: Singles
    """Squared distance in place, within `length_error`."""
    turn_N: Singles
    """By `TurnBound.write`: at most its true value, and at least that less `TurnBound.error`."""
    longest_sq: list[float]
    widest: list[float]
    """Largest of both in each part."""
    length_error: float


class TurnBound(NamedTuple):
    """How the turn between a query and each row of a part is bounded in float32."""

    write: Callable[[Part, Floats, Singles], None]
    """Writes what rises with the turn; may use the second row of its [2, R] as scratch."""
    error: float
    factor: float
    """The turn in radians is at least `factor` times what is written, or times its root."""
    root: bool


def screen(
    parts: Sequence[Part], query_44: Floats, count: int, scratch_3N: Singles, turn: Turn = retrieval.angle
) -> Screened | None:
    """The rows to rank for the `count` nearest; None where screening would not help.

    Poses must be rotations, `turn` a key of TURN_BOUNDS. `scratch_3N` is overwritten; it has room for all rows.
    """
    if sum(part.stop - part.start for part in parts) < 2 * max(SAMPLE_COLUMNS, 4 * count):
        return None
    bound = TURN_BOUNDS[turn]
    bounds = _bounds(parts, query_44, scratch_3N, bound)
    if bounds is None:
        return None
    maxima = _maxima(parts, query_44, bounds, turn)
    if not any(maxima):
        total = len(bounds.length_sq_N)
        return Screened(np.arange(total - count, total), maxima)  # all equally near: the newest
    value_N, scale, slack = _lower_bound(bounds, maxima, bound)
    sample_n = _sample(value_N, count)
    sample_n44 = poses(parts, sample_n)
    distance_n = retrieval.combined(retrieval.length_sq(sample_n44, query_44), turn(sample_n44, query_44), maxima)
    reached = float(np.partition(distance_n, count - 1)[count - 1]) if count else 0.0
    limit = np.nextafter(np.float32(scale * (reached + slack) * (1 + SCORE_RELATIVE_ERROR)), np.float32(np.inf))
    return Screened(np.flatnonzero(value_N <= limit), maxima)


def screen_views(parts: Sequence[Part], query_44: Floats, depth: float, count: int, scratch_3N: Singles) -> Ints:
    """Rows that may be among the `count` least by `retrieval.views_apart_sq`, ascending; all where that is cheaper.

    Poses must be rotations. `scratch_3N` is overwritten; it has room for all rows.
    """
    starts = _starts(parts)
    value_N, spread_sq = scratch_3N[0, : starts[-1]], 0.0
    for part, (start, stop) in zip(parts, itertools.pairwise(starts), strict=True):
        x, y, z = (query_44[:3, 3] + depth * query_44[:3, 2] - part.rows.origin_3).tolist()
        own_sq = x * x + y * y + z * z
        spread_sq = max(spread_sq, (part.rows.reach + own_sq**0.5 + depth) ** 2)
        if not spread_sq < LONGEST_SQ:
            return np.arange(starts[-1])
        # |place + depth forward - point|^2, multiplied out
        place_4 = np.array([-2 * x, -2 * y, -2 * z, 1.0], np.float32)
        forward_4 = np.array([-2 * depth * x, -2 * depth * y, -2 * depth * z, 2 * depth], np.float32)
        value_R, more_R = value_N[start:stop], scratch_3N[1, start:stop]
        np.matmul(place_4, part.rows.place_4R[:, part.used], out=value_R)
        np.matmul(forward_4, part.rows.forward_4R[:, part.used], out=more_R)
        np.add(value_R, more_R, out=value_R)
        np.add(value_R, np.float32(own_sq + depth * depth), out=value_R)
    if not count or starts[-1] < 2 * max(SAMPLE_COLUMNS, 4 * count):
        return np.arange(starts[-1])
    sample_n = _sample(value_N, count)
    apart_n = retrieval.views_apart_sq(poses(parts, sample_n), query_44, depth)
    error = 2 * LENGTH_UNITS * UNIT * spread_sq + UNDERFLOW
    limit = np.nextafter(np.float32(np.partition(apart_n, count - 1)[count - 1] + error), np.float32(np.inf))
    return np.flatnonzero(value_N <= limit)


def poses(parts: Sequence[Part], row_n: Ints) -> Floats:
    """Mean poses [n, 4, 4] of rows numbered over all parts, ascending."""
    return picked(parts, row_n, lambda rows: rows.pose_R44)


def picked(parts: Sequence[Part], row_n: Ints, column: Callable[[PoseRows], NDArray[Number]]) -> NDArray[Number]:
    """A column's values [n, ...] of rows numbered over all parts, ascending."""
    starts = _starts(parts)
    cuts = np.searchsorted(row_n, starts)
    taken = [
        column(part.rows)[row_n[low:high] - (first - part.start)]
        for part, first, (low, high) in zip(parts, starts, itertools.pairwise(cuts), strict=False)
        if high > low
    ]
    return taken[0] if len(taken) == 1 else np.concatenate(taken or [column(parts[0].rows)[:0]])


def _starts(parts: Sequence[Part]) -> list[int]:
    """Number of each part's first row over all parts, and the number of all rows."""
    return list(itertools.accumulate((part.stop - part.start for part in parts), initial=0))


def _versine(part: Part, query_44: Floats, out_2R: Singles) -> None:
    """1 - |cos(angle / 2)|, a little less."""
    turn_4 = quaternion(query_44[:3, :3]).astype(np.float32)
    out_R = out_2R[0]
    np.matmul(turn_4, part.rows.quaternion_4R[:, part.used], out=out_R)
    np.abs(out_R, out=out_R)
    np.subtract(np.float32(1 - COSINE_UNITS * UNIT), out_R, out=out_R)


def _yaw_and_pitch(part: Part, query_44: Floats, out_2R: Singles) -> None:
    """|yaw| + |pitch|, a little less."""
    (yaw,), (pitch,) = retrieval.yaw_pitch(query_44[None]).astype(np.float32)
    yaw_R, pitch_R = out_2R
    half_turn = np.float32(np.pi)
    np.subtract(part.rows.yaw_pitch_2R[0, part.used], yaw, out=yaw_R)
    np.abs(yaw_R, out=yaw_R)
    np.subtract(half_turn, yaw_R, out=yaw_R)
    np.abs(yaw_R, out=yaw_R)
    np.subtract(half_turn - np.float32(YAW_PITCH_UNITS * UNIT), yaw_R, out=yaw_R)
    np.subtract(part.rows.yaw_pitch_2R[1, part.used], pitch, out=pitch_R)
    np.abs(pitch_R, out=pitch_R)
    np.add(yaw_R, pitch_R, out=yaw_R)


# acos(1 - v)^2 = 2 v + v^2 / 3 + ..., no term of which is negative, so the first is a lower bound of the squared half
# of the angle: 0.6 % below at 45 degrees, 10 % at 180.
TURN_BOUNDS: Mapping[Turn, TurnBound] = {
    retrieval.angle: TurnBound(_versine, 2 * COSINE_UNITS * UNIT, factor=8**0.5, root=True),
    retrieval.yaw_and_pitch: TurnBound(_yaw_and_pitch, 2 * YAW_PITCH_UNITS * UNIT, factor=1.0, root=False),
}
"""What the distance may be made of."""


def _bounds(parts: Sequence[Part], query_44: Floats, scratch_3N: Singles, bound: TurnBound) -> _Bounds | None:
    starts = _starts(parts)
    bounds = _Bounds(scratch_3N[0, : starts[-1]], scratch_3N[1, : starts[-1]], [], [], UNDERFLOW)
    spread_sq = 0.0
    for part, (start, stop) in zip(parts, itertools.pairwise(starts), strict=True):
        length_sq_R, turn_R = bounds.length_sq_N[start:stop], bounds.turn_N[start:stop]
        x, y, z = (query_44[:3, 3] - part.rows.origin_3).tolist()
        own_sq = x * x + y * y + z * z
        spread_sq = max(spread_sq, (part.rows.reach + own_sq**0.5) ** 2)
        if not spread_sq < LONGEST_SQ:
            return None
        # |place - query|^2 = |place|^2 - 2 place . query + |query|^2
        query_4 = np.array([-2 * x, -2 * y, -2 * z, 1.0], np.float32)
        np.matmul(query_4, part.rows.place_4R[:, part.used], out=length_sq_R)
        np.add(length_sq_R, np.float32(own_sq), out=length_sq_R)
        bounds.longest_sq.append(float(length_sq_R.max()))
        bound.write(part, query_44, scratch_3N[1:, start:stop])
        bounds.widest.append(float(turn_R.max()))
    return bounds._replace(length_error=LENGTH_UNITS * UNIT * spread_sq + UNDERFLOW)


def _maxima(parts: Sequence[Part], query_44: Floats, bounds: _Bounds, turn: Turn) -> Maxima:
    """Exact maxima over all rows, 0 for a camera that stood still."""
    starts = _starts(parts)
    far_n = _largest(bounds.length_sq_N, bounds.longest_sq, 2 * bounds.length_error, starts)
    if len(far_n) > FEW:
        far_n = _distinct(far_n, picked(parts, far_n, lambda rows: rows.place_R), starts)
    length_sq = float(retrieval.length_sq(poses(parts, far_n), query_44).max())
    turned_n = _largest(bounds.turn_N, bounds.widest, 2 * TURN_BOUNDS[turn].error, starts)
    if len(turned_n) > FEW:
        turned_n = _distinct(turned_n, picked(parts, turned_n, lambda rows: rows.turn_R), starts)
    widest = float(turn(poses(parts, turned_n), query_44).max())
    # The extent only decides whether the camera moved. Mostly two cheap bounds of it decide the same.
    own = float(np.abs(query_44[:3, 3]).max())
    least = retrieval.moving(length_sq, widest, max(own, *(part.rows.extent for part in parts)))
    most = retrieval.moving(length_sq, widest, own)
    if least == most:
        return least
    extents = (float(np.abs(part.rows.pose_R44[part.used, :3, 3]).max()) for part in parts)
    return retrieval.moving(length_sq, widest, max(own, *extents))


def _largest(value_N: Singles, maxima: list[float], error: float, starts: Sequence[int]) -> Ints:
    """Rows that may hold the maximum when each value may be off by half of `error`; `maxima` are those of the parts."""
    limit = np.nextafter(np.float32(max(maxima) - error), np.float32(-np.inf))
    found = [
        np.flatnonzero(value_N[start:stop] >= limit) + start
        for maximum, (start, stop) in zip(maxima, itertools.pairwise(starts), strict=True)
        if maximum >= limit
    ]
    return np.concatenate(found)


def _distinct(row_n: Ints, number_n: Ints, starts: Sequence[int]) -> Ints:
    """One row of each run that shares a number within a part; keeps a camera that only walks, or only turns, cheap."""
    new_n = np.ones(len(row_n), bool)
    new_n[1:] = number_n[1:] != number_n[:-1]
    heads = np.searchsorted(row_n, starts[:-1])
    new_n[heads[heads < len(row_n)]] = True
    return row_n[new_n]


def _lower_bound(bounds: _Bounds, maxima: Maxima, bound: TurnBound) -> tuple[Singles, float, float]:
    """A value for each row, a scale and a slack: value / scale - slack is a lower bound of the distance.

    Overwrites `bounds`.
    """
    value_N, turn_N = bounds.length_sq_N, bounds.turn_N
    # Distance = 0.5 length_sq / maximum + 0.5 turn / maximum, times what makes the turn's part what was written.
    scale = 2 * maxima.turn / bound.factor if maxima.turn else 1.0
    slack = 0.0
    if maxima.length_sq > SHORTEST_SQ:
        weight = 0.5 / maxima.length_sq
        slack = 2 * weight * bounds.length_error  # twice what it is: room for its own rounding
        np.multiply(value_N, np.float32(scale * weight), out=value_N)
    else:
        value_N[:] = 0
    if maxima.turn:
        np.maximum(turn_N, 0, out=turn_N)
        if bound.root:
            np.sqrt(turn_N, out=turn_N)
        np.add(value_N, turn_N, out=value_N)
    return value_N, scale, slack


def _sample(value_N: Singles, count: int) -> Ints:
    """`count` rows of low value, ascending: the lowest of as many groups. Any rows would be right."""
    columns = max(SAMPLE_COLUMNS, 4 * count)
    # A group is every `columns`-th row, so that neighbours along the path, alike as they are, fall into different ones.
    grouped = value_N[: len(value_N) // columns * columns].reshape(-1, columns)
    best = np.argpartition(grouped.min(axis=0), count)[:count]
    return np.sort(grouped[:, best].argmin(axis=0) * columns + best)
