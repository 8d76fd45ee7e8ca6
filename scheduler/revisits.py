"""Which past chunks retrieval will ask for: forecast poses, ranked against the stored ones as retrieval ranks them.

A chunk that is not made yet, or still lies in the window, takes part in the ranking: it may be what is nearest.

Shapes: Q ways the camera may go, H chunks ahead, N past chunks, M past chunks and those made on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.forecast import Forecast
from scheduler.snapshot import Bools, Floats, Ints, SessionView
from worldkv.camera.nearness import mean_pose_distances

SCREENED = 256
"""With more candidates only a shortlist is ranked exactly; with fewer that would cost more than it saves."""
SHORTLIST = 4
"""Candidates per query and retrieved chunk that float32 distances put first: their error is 1e-6."""


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
    query_44 = forecast.pose_QH44.reshape(-1, 4, 4)
    first = session.recall.sink_chunks
    stop_H = session.chunk + np.arange(ahead) - session.recall.recent_chunks
    allowed_HM = (chunk_M >= first) & (chunk_M < stop_H[:, None])
    allowed_qM = np.tile(allowed_HM, (len(forecast.pose_QH44), 1))
    recall = session.recall
    place_n, distance_qn = _distances(
        pose_M44, query_44, allowed_qM, recall.retrieved_chunks, by_yaw=recall.ranking == "yaw"
    )
    if not len(place_n):
        return nothing
    chosen_qn = _nearest(distance_qn, session.recall.retrieved_chunks)
    weight_q = forecast.probability_QH.reshape(-1)
    chance_Hn = (chosen_qn * weight_q[:, None]).reshape(-1, ahead, len(place_n)).sum(axis=0)
    known_n = place_n < past
    chance_HN, nearness_N = np.zeros((ahead, past)), np.zeros(past)
    chance_HN[:, place_n[known_n]] = chance_Hn[:, known_n]
    finite_qn = np.where(np.isfinite(distance_qn), distance_qn, 1.0)
    nearness_N[place_n[known_n]] = 1 - finite_qn[:, known_n].min(axis=0)
    return Revisits(chance_HN, nearness_N, deadline_H)


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


def _distances(
    pose_M44: Floats, query_q44: Floats, allowed_qM: Bools, count: int, *, by_yaw: bool
) -> tuple[Ints, Floats]:
    """Candidates worth ranking, and their distances to each query [q, n]; infinite where not allowed."""
    place_n = np.flatnonzero(allowed_qM.any(axis=0))
    if len(place_n) > max(SCREENED, 4 * SHORTLIST * count) and not by_yaw:
        listed = _shortlist(pose_M44[place_n], query_q44, allowed_qM[:, place_n], SHORTLIST * count)
        place_n = place_n[listed]
    return place_n, mean_pose_distances(pose_M44[place_n], query_q44, allowed_qM[:, place_n], by_yaw=by_yaw)


def _shortlist(pose_n44: Floats, query_q44: Floats, allowed_qn: Bools, count: int) -> Ints:
    """Places of all that may be among the nearest to a query, or hold the maximum that distances are divided by."""
    middle_3 = query_q44[0, :3, 3]
    at_n3 = (pose_n44[:, :3, 3] - middle_3).astype(np.float32)
    at_q3 = (query_q44[:, :3, 3] - middle_3).astype(np.float32)
    turn_n9 = pose_n44[:, :3, :3].reshape(-1, 9).astype(np.float32)
    turn_q9 = query_q44[:, :3, :3].reshape(-1, 9).astype(np.float32)
    length_sq_qn = (at_q3 * at_q3).sum(axis=1)[:, None] + (at_n3 * at_n3).sum(axis=1) - 2 * (at_q3 @ at_n3.T)
    angle_qn = np.arccos(np.clip((turn_q9 @ turn_n9.T - 1) / 2, -1, 1))
    length_sq_qn *= allowed_qn
    angle_qn *= allowed_qn
    longest_q, widest_q = length_sq_qn.argmax(axis=1), angle_qn.argmax(axis=1)
    rows_q = np.arange(len(query_q44))
    length_sq_qn /= np.maximum(length_sq_qn[rows_q, longest_q], np.float32(1e-30))[:, None]
    angle_qn /= np.maximum(angle_qn[rows_q, widest_q], np.float32(1e-30))[:, None]
    score_qn = length_sq_qn + angle_qn
    # Of a camera that stood still the newest come first, as in the ranking: a slope far below what tells poses apart.
    score_qn -= np.arange(len(pose_n44), dtype=np.float32) * np.float32(1e-6 / len(pose_n44))
    score_qn[~allowed_qn] = np.inf
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
