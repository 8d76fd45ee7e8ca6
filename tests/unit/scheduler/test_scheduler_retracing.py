import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import retracing
from scheduler.habits import AT_REST, WAYS, Counts, Habits, motion_classes
from scheduler.retracing import Retracing, new_counts
from worldkv.camera import Motion, integrate, wander
from worldkv.camera.forecast import screws
from worldkv.camera.poses import relative_framewise


def told(c2w_F44, tenant_K2=None, parts=1):
    """A path learned in so many parts, the frames at rest left out."""
    kind_F = motion_classes(screws(relative_framewise(c2w_F44)[1:]))
    moved_F = kind_F != AT_REST
    path = Retracing(new_counts() if tenant_K2 is None else tenant_K2)
    places, kinds = c2w_F44[1:][moved_F], kind_F[moved_F]
    for place_n44, kind_n in zip(np.array_split(places, parts), np.array_split(kinds, parts), strict=True):
        path.learn(place_n44, kind_n)
    return path


def there_and_back(seed, frames, back):
    """A wander, a moment's rest, and so many frames of it backwards."""
    out = integrate(wander(np.random.default_rng(seed), frames), Motion(5.0, 0.3))
    return np.concatenate([out, out[::-1][:back]])


@given(seed=st.integers(0, 10**6), back=st.integers(8, 60), parts=st.integers(1, 7))
def test_who_goes_back_is_expected_where_he_came_from(seed, back, parts):
    c2w = there_and_back(seed, 120, back)
    whole = there_and_back(seed, 120, 90)
    found = told(c2w, parts=parts).ahead(20)
    moved = whole[len(c2w) :]
    # Rests on the way are not part of the path: the places follow one another without them.
    moved = moved[np.abs(np.diff(np.concatenate([c2w[-1:], moved]), axis=0)).max(axis=(1, 2)) > 1e-9]
    assert found is not None
    count = min(len(moved), 20)
    assert np.allclose(found.c2w_F44[:count], moved[:count], atol=1e-9)


@given(seed=st.integers(0, 10**6), parts=st.integers(2, 9))
def test_it_does_not_matter_in_which_parts_a_path_is_told(seed, parts):
    c2w = there_and_back(seed, 80, 70)
    whole, piecewise = told(c2w), told(c2w, parts=parts)
    assert (whole.at, whole.undone) == (piecewise.at, piecewise.undone)
    assert np.array_equal(whole.own_K2, piecewise.own_K2)


def test_every_motion_undone_makes_the_next_more_likely(walk):
    out = walk("W*6 R*5 W*7 L*4 W*6 D*5 W*6")
    chances = [told(np.concatenate([out, out[::-1][1 : 1 + back]])).ahead(1).probability for back in (3, 10, 20, 30)]
    assert chances == sorted(chances)
    assert chances[0] == 0.5
    assert told(out).ahead(4) is None


def test_who_turns_off_is_on_no_way_back(walk):
    out = walk("W*6 R*5 W*7")
    undone = np.concatenate([out, out[::-1][1:6]])
    off = undone[-1] @ walk("A*3")
    path = told(np.concatenate([undone, off]))
    assert path.ahead(4) is None
    assert path.own_K2[0].tolist() == [0.0, 1.0]


def test_at_the_begin_of_the_path_the_way_back_ends(walk):
    out = walk("W*6 R*5")
    assert told(np.concatenate([out, out[::-1][1:]])).ahead(4) is None
    near = told(np.concatenate([out, out[::-1][1:-4]]))
    rest = near.ahead(8)
    assert rest.c2w_F44.shape == (8, 4, 4)
    assert np.array_equal(rest.c2w_F44[-1], rest.c2w_F44[-2])


def test_a_fresh_session_goes_back_as_its_tenants_others_did(walk):
    tenant = new_counts()
    for seed in range(6):
        told(there_and_back(seed, 120, 110), tenant)
    c2w = there_and_back(99, 120, 12)
    assert told(c2w, tenant).ahead(12).probability > told(c2w).ahead(12).probability


@pytest.mark.parametrize("back", [10, 40])
def test_of_a_long_path_only_the_end_is_kept(monkeypatch, back):
    monkeypatch.setattr(retracing, "LONGEST_PATH", 32)
    c2w = there_and_back(3, 300, back)
    path = told(c2w, parts=40)
    assert path._length <= 64
    assert (path.ahead(4) is None) == (back > 32 and path.at is None)


def test_a_way_back_is_one_more_way_of_a_forecast(make_session, walk):
    out = walk("W*8 R*8 W*8 L*8 W*8")
    c2w = np.concatenate([out, out[::-1]])
    habits = Habits(Counts())
    habits.learn(c2w[:64])
    view = make_session(c2w, 16, recent_F44=c2w[:64])
    found = habits.predict(view, 1)
    assert found.probability_QH.shape == (WAYS + 1, 1)
    assert np.allclose(found.probability_QH.sum(axis=0), 1)
    assert np.allclose(found.pose_QH44[-1, 0, :3, 3], c2w[64:68, :3, 3].mean(axis=0), atol=1e-6)
