import numpy as np
import pytest

from scheduler.habits import CLASSES, WAYS, Counts, Habits, motion_classes
from worldkv.camera.forecast import screws
from worldkv.camera.nearness import mean_pose
from worldkv.camera.poses import relative_framewise


def learned(c2w_F44, tenant=None):
    habits = Habits(tenant or Counts())
    habits.learn(c2w_F44)
    return habits


def test_nothing_learned_is_nothing_known(make_session, walk):
    view = make_session(walk("W*40"), 5)
    habits = Habits(Counts())
    habits.learn(view.recent_F44[:1])
    assert habits.predict(view, 2) is None
    assert learned(walk("W*40")).predict(view, 0) is None


def test_ways_have_probabilities_that_sum_to_one_and_repeat(make_session, walk):
    c2w = walk("W*6 R*6 W*6 L*6 A*6 R*6 W*6 L*6")
    view = make_session(c2w, 10)
    found = learned(c2w[:40]).predict(view, 2)
    assert found.probability_QH.shape == (WAYS, 2)
    assert np.allclose(found.probability_QH.sum(axis=0), 1)
    again = learned(c2w[:40]).predict(view, 2)
    assert again.pose_QH44.tobytes() == found.pose_QH44.tobytes()


def test_a_motion_that_always_lasted_is_expected_to_last(make_session, walk):
    c2w = walk("W*60")
    view = make_session(c2w, 12)
    found = learned(c2w[:48]).predict(view, 1)
    best = int(found.probability_QH[:, 0].argmax())
    assert found.probability_QH[best, 0] > 0.6
    assert np.allclose(found.pose_QH44[best, 0], mean_pose(c2w[48:52][None])[0], atol=1e-9)


def test_a_motion_about_to_end_by_habit_is_followed_by_what_followed_it(make_session, walk):
    # Always 8 frames ahead, then 8 to the right: after 8 ahead, the turn is due.
    c2w = walk("W*8 R*8 " * 12)
    frames = 8 * 22 + 1  # the last of eight frames ahead is the last one known
    view = make_session(c2w, frames // 4, recent_F44=c2w[:frames])
    found = learned(c2w[:frames]).predict(view, 1)
    turned = c2w[frames : frames + 4]
    expected = mean_pose(turned[None])[0]
    kept_on = found.probability_QH[0, 0]
    # In the middle of the eight the same motion is expected to go on.
    middle = frames - 5
    before = learned(c2w[:middle]).predict(make_session(c2w, middle // 4, recent_F44=c2w[:middle]), 1)
    assert kept_on < 0.4 < 0.6 < before.probability_QH[0, 0]
    distance_Q = np.abs(found.pose_QH44[1:, 0] - expected).max(axis=(1, 2))
    assert distance_Q.min() < 0.2


def test_a_fresh_session_is_forecast_as_its_tenant(make_session, walk):
    tenant = Counts()
    learned(walk("W*8 R*8 " * 20), tenant)
    fresh = learned(walk("W*8"), tenant)
    alone = learned(walk("W*8"))
    view = make_session(walk("W*8 R*8"), 2)
    assert fresh.predict(view, 1).probability_QH[0, 0] < alone.predict(view, 1).probability_QH[0, 0]


def test_motions_are_told_apart_by_the_way_they_go(walk):
    kinds = {key: motion_classes(screws(relative_framewise(walk(f"{key}*3"))[1:]))[0] for key in "WSADRL_"}
    assert len(set(kinds.values())) == 7
    assert max(kinds.values()) < CLASSES


@pytest.mark.parametrize("text", ["W*200", "_*200", "R*200"])
def test_runs_longer_than_the_table_are_counted_at_its_end(make_session, walk, text):
    c2w = walk(text)
    habits = learned(c2w[:196])
    assert habits.run.frames == 195
    found = habits.predict(make_session(c2w, 49), 2)
    assert np.isfinite(found.pose_QH44).all()
