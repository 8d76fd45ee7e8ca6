import dataclasses

import numpy as np
import pytest

from scheduler.forecast import Forecast, Planned, Steady, forecast
from worldkv.camera.nearness import mean_pose

WALK = "W*20 R*20"


class Bad:
    """A predictor that does what it is told."""

    name = "bad"

    def __init__(self, answer):
        self.answer = answer

    def predict(self, session, chunks):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def live(make_session, walk):
    return make_session(walk(WALK), 5)


@pytest.fixture
def scripted(live, walk):
    return dataclasses.replace(live, script_F44=walk(WALK)[20:])


def test_a_script_is_read_exactly(scripted, walk):
    found = forecast(scripted, 2, ())
    assert found.source == "script"
    assert found.pose_QH44.tobytes() == mean_pose(walk(WALK)[20:28].reshape(1, 2, 4, 4, 4)).tobytes()
    assert found.probability_QH.tolist() == [[1.0, 1.0]]


def test_a_script_near_its_end_gives_whole_chunks_only(scripted):
    shorter = dataclasses.replace(scripted, script_F44=scripted.script_F44[:7])
    assert forecast(shorter, 4, ()).chunks == 1
    ended = dataclasses.replace(scripted, script_F44=scripted.script_F44[:3])
    assert forecast(ended, 4, ()).source == "steady"


def test_latent_frames_alone_count(scripted):
    strided = dataclasses.replace(scripted, latent_stride=2)
    expected = mean_pose(scripted.script_F44[:4][None, ::2])
    assert np.array_equal(forecast(strided, 1, ()).pose_QH44[0], expected)


def test_a_planner_goes_before_habit_and_behind_a_script(live, scripted):
    planned = Planned(scripted.script_F44[:8], 0.7)
    assert forecast(scripted, 2, (planned,)).source == "script"
    found = forecast(live, 3, (planned,))
    assert (found.source, found.chunks, found.probability_QH.tolist()) == ("planner", 2, [[0.7, 0.7]])
    too_short = Planned(scripted.script_F44[:3], 0.7)
    assert forecast(live, 3, (too_short,)).source == "steady"


def test_a_steady_camera_is_forecast_along_its_way(make_session, walk):
    straight = walk("W*40")
    view = make_session(straight, 5)
    found = Steady().predict(view, 3)
    assert np.allclose(found.pose_QH44[0], mean_pose(straight[20:32].reshape(3, 4, 4, 4)), atol=1e-9)
    assert found.probability_QH.tolist() == [[0.5, 0.25, 0.125]]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (KeyError("kaput"), "raised KeyError: 'kaput'"),
        (Planned(np.full((8, 4, 4), np.nan), 0.5).c2w_F44, "has no attribute"),
        (Forecast(np.tile(np.eye(4), (1, 2, 1, 1)), np.array([[2.0, 0.5]]), "bad"), "no probabilities"),
        (Forecast(np.tile(np.eye(4), (1, 2, 1, 1)), np.array([[-0.1, 0.5]]), "bad"), "no probabilities"),
        (Forecast(np.tile(np.eye(4), (1, 2, 1, 1)), np.array([[np.nan, 0.5]]), "bad"), "no probabilities"),
        (Forecast(np.zeros((1, 2, 4, 4)), np.ones((1, 2)), "bad"), "last row"),
        (Forecast(np.tile(np.eye(4), (1, 3, 1, 1)), np.ones((1, 2)), "bad"), "do not go with"),
    ],
)
def test_a_predictor_that_raises_or_makes_no_sense_is_ignored_and_named(live, answer, fault):
    found = forecast(live, 2, (Bad(answer),))
    assert found.source == "steady"
    assert len(found.ignored) == 1
    assert "session s: predictor bad was ignored" in found.ignored[0]
    assert fault in found.ignored[0]


def test_a_planner_with_unsound_poses_is_ignored(live):
    found = forecast(live, 2, (Planned(np.full((8, 4, 4), np.nan), 0.5),))
    assert found.source == "steady"
    assert "not finite" in found.ignored[0]


def test_where_no_predictor_knows_anything_nothing_is_forecast(live):
    broken = dataclasses.replace(live, recent_F44=np.empty((0, 4, 4)))
    found = forecast(broken, 2, ())
    assert (found.source, found.chunks) == ("nothing", 0)
    assert "steady" in found.ignored[0]
