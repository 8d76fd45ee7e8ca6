import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.forecast import Forecast, forecast
from scheduler.revisits import predict_revisits
from scheduler.snapshot import ChunkTable, Recall, SessionView
from worldkv.camera import Motion, integrate, out_and_back, wander
from worldkv.camera.nearness import candidates, mean_pose
from worldkv.camera.overlaps import centred_frustum
from worldkv.memory.index import PoseIndex
from worldkv.memory.ranking import Query, choose

FRAMES = 4
FRUSTUM = centred_frustum(np.ones(4), 8.0)


def scripted(c2w_F44, chunk, recall):
    """A session along a script, and what its memory's own index would choose for each chunk."""
    frame_CF44 = c2w_F44[: len(c2w_F44) // FRAMES * FRAMES].reshape(-1, FRAMES, 4, 4)
    table = ChunkTable(
        np.arange(chunk),
        mean_pose(frame_CF44[:chunk]),
        np.full(chunk, 1),
        np.ones(chunk, np.int64),
        np.zeros(chunk, bool),
        np.full(chunk, np.inf),
    )
    start = chunk * FRAMES
    return SessionView("s", "t", chunk, 5.0, 2.0, table, c2w_F44[:start], FRAMES, 1, c2w_F44[start:], recall)


def chosen(c2w_F44, chunk, recall):
    """What retrieval itself picks for the window of `chunk`."""
    index = PoseIndex(parity=False)
    for one in range(chunk):
        index.add(one, c2w_F44[one * FRAMES : (one + 1) * FRAMES])
    query = Query(c2w_F44[chunk * FRAMES : (chunk + 1) * FRAMES], np.ones(4), chunk, 0, 0)
    allowed = candidates(chunk, recall.sink_chunks, recall.recent_chunks)
    return set(choose(recall.ranking, index, allowed, query, recall.retrieved_chunks, sight=8.0))


@pytest.mark.parametrize("ranking", ["pose", "yaw", "overlap"])
@pytest.mark.parametrize("chunk", [3, 12, 40, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_script_says_exactly_what_retrieval_will_pick(ranking, chunk, seed):
    actions = wander(np.random.default_rng(seed), (chunk // 2 + 6) * FRAMES)
    c2w_F44 = out_and_back(integrate(actions, Motion(5.0, 0.3)))
    recall = Recall(ranking=ranking, frustum=FRUSTUM)
    view = scripted(c2w_F44, chunk, recall)
    revisits = predict_revisits(view, forecast(view, 4, ()))
    for ahead, chance_N in enumerate(revisits.chance_HN):
        assert set(np.flatnonzero(chance_N)) == {one for one in chosen(c2w_F44, chunk + ahead, recall) if one < chunk}
        assert set(chance_N) <= {0.0, 1.0}
    assert revisits.deadline_H.tolist() == [5.0, 7.0, 9.0, 11.0]


def test_a_camera_that_stands_still_is_given_the_newest():
    c2w_F44 = np.tile(np.eye(4), (4 * 400, 1, 1))
    for chunk in (10, 350):
        recall = Recall(retrieved_chunks=3)
        view = scripted(c2w_F44, chunk, recall)
        revisits = predict_revisits(view, forecast(view, 1, ()))
        assert set(np.flatnonzero(revisits.chance_HN[0])) == {chunk - 3, chunk - 4, chunk - 5}
        assert chosen(c2w_F44, chunk, recall) == {chunk - 3, chunk - 4, chunk - 5}


def test_ways_add_up_to_a_chance(make_session, walk):
    view = make_session(walk("R*40"), 9)
    pose_QH44 = view.table.pose_N44[[0, 1]][:, None]
    known = Forecast(pose_QH44, np.array([[0.6], [0.3]]), "test")
    revisits = predict_revisits(dataclasses.replace(view, recall=Recall(1, 0, 1)), known)
    assert np.allclose(revisits.chance_HN[0, :2], [0.6, 0.3])
    assert revisits.chance_HN[0, 2:].sum() == 0
    assert revisits.nearness_N[0] == revisits.nearness_N[1] == 1


def test_what_ways_that_are_guessed_will_see_adds_up_too(make_session, walk):
    view = make_session(walk("R*40"), 9, recall=Recall(1, 0, 1, "overlap", FRUSTUM))
    known = Forecast(view.table.pose_N44[[0, 4]][:, None], np.array([[0.6], [0.3]]), "test")
    revisits = predict_revisits(view, known)
    assert np.flatnonzero(revisits.chance_HN[0]).tolist() == [0, 4]
    assert np.allclose(revisits.chance_HN[0, [0, 4]], [0.6, 0.3])
    assert revisits.nearness_N[[0, 4]].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("recall", [Recall(0, 0, 1), Recall(2, 9, 1), Recall(2, 0, 10)])
def test_nothing_to_retrieve_is_no_chance(make_session, walk, recall):
    view = make_session(walk("R*40"), 9, recall=recall)
    revisits = predict_revisits(view, forecast(view, 2, ()))
    assert revisits.chance_HN.shape == (2, 9)
    assert not revisits.chance_HN.any()


@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 60), count=st.integers(0, 6))
def test_a_window_asks_for_no_more_than_it_retrieves(seed, chunk, count):
    c2w_F44 = integrate(wander(np.random.default_rng(seed), (chunk + 4) * FRAMES), Motion(5.0, 0.3))
    view = scripted(c2w_F44, chunk, Recall(count))
    revisits = predict_revisits(view, forecast(view, 3, ()))
    assert (revisits.chance_HN >= 0).all()
    assert (revisits.chance_HN.sum(axis=1) <= count + 1e-9).all()
    assert ((revisits.nearness_N >= 0) & (revisits.nearness_N <= 1)).all()
