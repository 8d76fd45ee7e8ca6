"""Which past chunks retrieval will ask for: forecast poses, ranked against the stored ones as retrieval ranks them.

A chunk that is not made yet, or still lies in the window, takes part in the ranking: it may be what is nearest.

Shapes: Q ways the camera may go, H chunks ahead, N past chunks, M past chunks and those made on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scheduler.forecast import Forecast
from scheduler.snapshot import Bools, Floats, Ints, Recall, SessionView
from worldkv.camera.nearness import mean_pose_distances
from worldkv.camera.overlaps import OVERLAP_SHORTLIST, overlapping

SCREENED = 256
"""With more candidates only a shortlist is ranked exactly; with fewer that would cost more than it saves."""
SHORTLIST = 4
"""Candidates per query and retrieved chunk that float32 distances put first: their error is 1e-6."""

OVERLAP_GUESSED = 32
"""Chunks among which overlap decides along a way that is only guessed: its error weighs more than theirs."""
HALF_TRACE = np.diag([0.0, 0.0, 0.0, -0.5])
HALF_TRACE[:3, :3] = 0.5
# Times one pose, summed up with another: the cosine of the angle between them.


@dataclass(frozen=True, eq=False)
class Revisits:
    """What a session's next windows are likely to ask for."""

    chance_HN: Floats
    """Probability that each past chunk is retrieved for the window so many chunks ahead."""
    nearness_N: Floats
    """1 for a chunk seen from where the camera will be, 0 for the farthest: what may be asked for later."""
    deadline_H: Floats
    """When each of the windows is assembled, in seconds."""


def predict_revisits(session: SessionView, forecast: Forecast) -> Revisits:
    """Chance of each past chunk to be retrieved for each of the forecast windows. Pure.

    Ties go to the newer chunk, as in retrieval.
    """
    ahead, past = forecast.chunks, len(session.table)
    deadline_H: Floats = session.assembles_seconds + session.chunk_seconds * np.arange(float(ahead))
    nothing = Revisits(np.zeros((ahead, past)), np.zeros(past), deadline_H)
    if not ahead or not past or not session.recall.retrieved_chunks:
        return nothing
    chunk_M, pose_M44 = _candidates(session, forecast)
    # Ascending, so what may be retrieved for a window is a slice: neither sink nor recent.
    start = int(np.searchsorted(chunk_M, session.recall.sink_chunks))
    stop_H = np.searchsorted(chunk_M, session.chunk + np.arange(ahead) - session.recall.recent_chunks) - start
    if stop_H[-1] <= 0:
        return nothing
    ranked_n44 = pose_M44[start : start + int(stop_H[-1])]
    rank = _by_overlap if session.recall.ranking == "overlap" else _by_distance
    place_n, chosen_qn, near_n = rank(ranked_n44, forecast, stop_H, session.recall)
    place_n += start
    weight_q = forecast.probability_QH.reshape(-1)
    chance_Hn = (chosen_qn * weight_q[:, None]).reshape(-1, ahead, len(place_n)).sum(axis=0)
    known_n = place_n < past
    chance_HN, nearness_N = np.zeros((ahead, past)), np.zeros(past)
    chance_HN[:, place_n[known_n]] = chance_Hn[:, known_n]
    nearness_N[place_n[known_n]] = near_n[known_n]
    return Revisits(chance_HN, nearness_N, deadline_H)


class _Ranked(NamedTuple):
    """What retrieval would choose, of the candidates that come into question."""

    place_n: Ints
    chosen_qn: Bools
    near_n: Floats
    """To the query to which it is nearest: 1 seen from right there, 0 farthest."""


def _by_distance(pose_n44: Floats, forecast: Forecast, stop_H: Ints, recall: Recall) -> _Ranked:
    place_n, distance_qn = _distances(pose_n44, forecast.pose_QH44, stop_H, recall)
    near_n: Floats = 1 - np.minimum(distance_qn.min(axis=0), 1.0)
    return _Ranked(place_n, _nearest(distance_qn, recall.retrieved_chunks), near_n)


def _by_overlap(pose_n44: Floats, forecast: Forecast, stop_H: Ints, recall: Recall) -> _Ranked:
    assert recall.frustum is not None
    ahead, chosen_qn = forecast.chunks, np.zeros((forecast.probability_QH.size, len(pose_n44)), bool)
    near_n = np.zeros(len(pose_n44))
    sure = bool((forecast.probability_QH >= 1).all())
    for number, query_44 in enumerate(forecast.pose_QH44.reshape(-1, 4, 4)):
        found_n, share_n = overlapping(
            pose_n44[: stop_H[number % ahead]],
            query_44,
            recall.frustum,
            recall.retrieved_chunks,
            shortlist=OVERLAP_SHORTLIST if sure else OVERLAP_GUESSED,
        )
        chosen_qn[number, found_n] = True
        near_n[found_n] = np.maximum(near_n[found_n], share_n)
    return _Ranked(np.arange(len(pose_n44)), chosen_qn, near_n)


def _candidates(session: SessionView, forecast: Forecast) -> tuple[Ints, Floats]:
    """Past chunks, and as many of those on the likeliest way as will have left the window by the last one forecast."""
    table, made = session.table, max(0, forecast.chunks - 1 - session.recall.recent_chunks)
    if not made:
        return table.chunk_N, table.pose_N44
    likeliest = int(forecast.probability_QH[:, 0].argmax())
    coming_M = session.chunk + np.arange(made)
    return (
        np.concatenate([table.chunk_N, coming_M]),
        np.concatenate([table.pose_N44, forecast.pose_QH44[likeliest, :made]]),
    )


def _distances(pose_n44: Floats, pose_QH44: Floats, stop_H: Ints, recall: Recall) -> tuple[Ints, Floats]:
    """Candidates worth ranking, and their distances to each query [q, n]; infinite from `stop_H` on, and at others."""
    query_q44, by_yaw = pose_QH44.reshape(-1, 4, 4), recall.ranking == "yaw"
    listed_n = np.arange(len(pose_n44))
    if len(pose_n44) > max(SCREENED, 4 * SHORTLIST * recall.retrieved_chunks) and not by_yaw:
        listed_n = _shortlist(pose_n44, query_q44, stop_H, SHORTLIST * recall.retrieved_chunks)
        pose_n44 = pose_n44[listed_n]
    allowed_qn = np.tile(listed_n < stop_H[:, None], (len(pose_QH44), 1))
    return listed_n, mean_pose_distances(pose_n44, query_q44, allowed_qn, by_yaw=by_yaw)


def _shortlist(pose_n44: Floats, query_q44: Floats, stop_H: Ints, count: int) -> Ints:
    """Places of all that may be among the nearest to a query, or hold the maximum that distances are divided by."""
    middle_3 = query_q44[0, :3, 3]
    # Squared lengths and cosines each come out of one product: |n|2 - 2 q n + |q|2, and half the trace less a half.
    at_5n = np.ones((5, len(pose_n44)), np.float32)
    at_5n[:3] = pose_n44[:, :3, 3].T - middle_3[:, None]
    at_5n[3] = at_5n[0] * at_5n[0] + at_5n[1] * at_5n[1] + at_5n[2] * at_5n[2]
    at_q5 = np.ones((len(query_q44), 5), np.float32)
    at_q5[:, :3] = query_q44[:, :3, 3] - middle_3
    at_q5[:, 4] = (at_q5[:, :3] * at_q5[:, :3]).sum(axis=1)
    at_q5[:, :3] *= -2
    length_sq_qn = at_q5 @ at_5n
    turn_q16 = (query_q44 * HALF_TRACE).astype(np.float32).reshape(-1, 16)
    angle_qn = turn_q16 @ pose_n44.astype(np.float32).reshape(-1, 16).T
    np.clip(angle_qn, -1, 1, out=angle_qn)
    np.arccos(angle_qn, out=angle_qn)
    ahead = len(stop_H)
    for step, stop in enumerate(stop_H.tolist()):
        length_sq_qn[step::ahead, stop:] = angle_qn[step::ahead, stop:] = 0
    longest_q, widest_q = length_sq_qn.argmax(axis=1), angle_qn.argmax(axis=1)
    rows_q = np.arange(len(query_q44))
    length_sq_qn /= np.maximum(length_sq_qn[rows_q, longest_q], np.float32(1e-30))[:, None]
    angle_qn /= np.maximum(angle_qn[rows_q, widest_q], np.float32(1e-30))[:, None]
    score_qn = np.add(length_sq_qn, angle_qn, out=angle_qn)
    # Of a camera that stood still the newest come first, as in the ranking: a slope far below what tells poses apart.
    score_qn -= np.arange(len(pose_n44), dtype=np.float32) * np.float32(1e-6 / len(pose_n44))
    for step, stop in enumerate(stop_H.tolist()):
        score_qn[step::ahead, stop:] = np.inf
    # Of the best of twice as many groups at least `count` are as good as the limit: cheaper than sorting all.
    groups = 2 * count
    whole = len(pose_n44) // groups * groups
    best_qg = score_qn[:, :whole].reshape(len(query_q44), -1, groups).min(axis=1)
    limit_q = np.partition(best_qg, count - 1, axis=1)[:, count - 1]
    listed_n = (score_qn <= limit_q[:, None]).any(axis=0)
    listed_n[longest_q] = listed_n[widest_q] = True
    return np.flatnonzero(listed_n)


def _nearest(distance_qn: Floats, count: int) -> Bools:
    """The `count` nearest of each row; of equally near ones the later columns."""
    backwards_qn = distance_qn[:, ::-1]
    order_qn = np.argsort(backwards_qn, axis=1, kind="stable")[:, :count]
    chosen_qn = np.zeros(distance_qn.shape, bool)
    np.put_along_axis(chosen_qn, distance_qn.shape[1] - 1 - order_qn, True, axis=1)
    return np.asarray(chosen_qn & np.isfinite(distance_qn))
