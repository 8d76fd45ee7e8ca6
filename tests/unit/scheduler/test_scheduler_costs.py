import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.costs import CostModel, LinkCost, Measured, calibrated
from worldkv.errors import ConfigError


def timed(nbytes, latency=0.01, rate=1e9):
    return Measured(nbytes, latency + nbytes / rate)


def test_latency_and_rate_are_told_apart_by_copies_of_different_sizes():
    link = calibrated(timed(nbytes) for nbytes in (1_000_000, 10_000_000, 100_000_000))
    assert link.latency_seconds == pytest.approx(0.01, rel=0.05)
    assert link.bytes_per_second == pytest.approx(1e9, rel=0.05)
    assert link.seconds(50_000_000) == pytest.approx(0.06, rel=0.05)


def test_copies_of_one_size_leave_the_latency_as_calibrated():
    link = calibrated(timed(nbytes) for nbytes in (1_000_000, 10_000_000, 100_000_000))
    for _ in range(300):
        link = link.after(timed(50_000_000, rate=0.5e9))
    assert link.seconds(50_000_000) == pytest.approx(0.11, rel=0.02)


def test_a_link_that_becomes_slower_is_noticed_within_a_minute_of_rollout():
    link = calibrated(timed(nbytes, 0.0) for nbytes in (1_000_000, 100_000_000))
    for _ in range(120):  # four chunks every two seconds
        link = link.after(timed(100_000_000, 0.0, rate=0.25e9))
    assert link.bytes_per_second == pytest.approx(0.25e9, rel=0.15)
    assert link.spread_ratio > 0.02


def test_one_hiccup_changes_little():
    link = calibrated(timed(nbytes) for nbytes in (1_000_000, 10_000_000, 100_000_000))
    for _ in range(50):
        link = link.after(timed(50_000_000))
    after = link.after(Measured(50_000_000, 10 * link.seconds(50_000_000)))
    assert after.seconds(50_000_000) < 1.35 * link.seconds(50_000_000)


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 10**10), min_size=1, max_size=40),
)
def test_whatever_is_measured_costs_stay_finite_and_above_zero(seed, sizes):
    rng = np.random.default_rng(seed)
    link = calibrated([Measured(sizes[0], float(rng.uniform(1e-6, 10)))])
    for nbytes in sizes:
        link = link.after(Measured(nbytes, float(rng.uniform(1e-6, 10))))
    assert 0 <= link.latency_seconds < np.inf
    assert 0 < link.bytes_per_second < np.inf
    assert 0 < link.seconds(10**9) < np.inf


@pytest.mark.parametrize("measured", [Measured(0, 1.0), Measured(1, 0.0), Measured(1, float("inf")), Measured(1, -1.0)])
def test_a_copy_that_cannot_be_is_refused(measured):
    with pytest.raises(ConfigError, match="both must be above 0"):
        LinkCost(0.0, 1e9).after(measured)


def test_a_link_without_a_measurement_cannot_be_calibrated():
    with pytest.raises(ConfigError, match="none was given"):
        calibrated([])


def test_a_model_learns_of_each_link_and_of_chunks_alone():
    model = CostModel((LinkCost(0.0, 1e9), LinkCost(0.0, 1e8)), chunk_seconds=2.0)
    later = model.after_transfer(1, timed(10**8, 0.0, 1e7))
    assert later.links[0] == model.links[0]
    assert later.links[1].bytes_per_second < 1e8
    assert model.after_chunk(3.0).chunk_seconds == pytest.approx(2.02)
    with pytest.raises(ConfigError, match=r"a chunk in 0.0 s"):
        model.after_chunk(0.0)


def test_links_are_viewed_with_the_time_when_they_are_free():
    model = CostModel((LinkCost(0.5, 1e9), LinkCost(0.25, 1e8)), chunk_seconds=2.0)
    views = model.views((3.0, 4.0))
    assert [(one.bytes_per_second, one.latency_seconds, one.free_seconds) for one in views] == [
        (1e9, 0.5, 3.0),
        (1e8, 0.25, 4.0),
    ]
