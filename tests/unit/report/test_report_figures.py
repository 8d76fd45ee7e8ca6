import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from made_up_runs import flat_world, run_of

from worldkv.report import policy_figures
from worldkv.report.figures import kv_series, psnr_band, psnr_so_far, revisit_share, telling_gap
from worldkv.results import RunResult

FULL = {"full": [60, 60, 60, 40, 30, 20]}
POOR = {"full": [60, 60, 60, 10, 10, 10]}


def test_fidelity_is_taken_from_generated_revisits_only() -> None:
    row = policy_figures(run_of([flat_world(FULL, revisits=(1, 4, 5), given=3)]))[0]
    assert row.psnr_mean_db == pytest.approx(25)
    assert row.ssim_mean == pytest.approx(0.25)
    assert (row.worlds, row.revisit_frames) == (1, 2)


def test_every_world_weighs_alike_however_many_revisits_it_has() -> None:
    worlds = [flat_world(FULL, (5,), given=3), flat_world(POOR, (3, 4, 5), given=3)]
    row = policy_figures(run_of(worlds))[0]
    assert row.psnr_mean_db == pytest.approx(15)
    assert row.psnr_deviation_db == pytest.approx(np.std([20, 10], ddof=1))


def test_a_world_without_revisits_is_left_out_of_fidelity() -> None:
    row = policy_figures(run_of([flat_world(FULL, (5,), given=3), flat_world(POOR, (), given=3)]))[0]
    assert (row.psnr_mean_db, row.psnr_deviation_db, row.worlds) == (pytest.approx(20), None, 1)


def test_a_run_without_revisits_has_no_fidelity() -> None:
    row = policy_figures(run_of([flat_world(FULL, (1,), given=3)]))[0]
    assert (row.psnr_mean_db, row.ssim_mean, row.revisit_frames) == (None, None, 0)


def test_costs_are_those_after_the_last_chunk_per_world_and_counts_add_up(result: RunResult) -> None:
    rows = {row.policy: row for row in policy_figures(result)}
    last = result.worlds[0].rollouts[2].records[-1]
    assert rows["worldkv"].window_bytes == last.live_bytes
    assert rows["worldkv"].memory_bytes == last.stored_bytes
    assert rows["worldkv"].window_tokens == last.window_tokens
    assert rows["worldkv"].missed_chunks == 2
    assert rows["full"].retrieved_chunks == 0


def test_figures_fit_into_json(result: RunResult) -> None:
    rows = [asdict(row) for row in policy_figures(result)]
    assert json.loads(json.dumps(rows)) == rows


def test_a_speed_that_was_not_measured_is_none(result: RunResult) -> None:
    rows = policy_figures(replace(result, frames_per_second={}))
    assert [row.frames_per_second for row in rows] == [None, None, None]


def test_a_band_spans_the_worlds_and_leaves_out_what_was_given() -> None:
    band = psnr_band(run_of([flat_world(FULL, (), given=3), flat_world(POOR, (), given=4)]), "full")
    np.testing.assert_allclose(band.mean_F, [np.nan, np.nan, np.nan, 40, 20, 15])
    np.testing.assert_allclose(band.low_F[3:], [40, 10, 10])
    np.testing.assert_allclose(band.high_F[3:], [40, 30, 20])


def test_frames_beyond_the_last_whole_chunk_are_no_revisits() -> None:
    world = flat_world(FULL, (5,), given=3)
    longer = replace(world, revisit_F=np.append(world.revisit_F, [True, True]))
    assert revisit_share(run_of([longer])).tolist() == [0, 0, 0, 0, 0, 1]


def test_kv_over_time_counts_frames_made_when_each_chunk_was_finished(result: RunResult) -> None:
    series = kv_series(result, "full")
    assert series.frame_N.tolist() == [3.0 * n for n in range(1, 17)]
    assert np.all(np.diff(series.window_bytes_N) > 0)
    assert not series.memory_bytes_N.any()


def test_the_running_score_starts_at_the_first_generated_revisit() -> None:
    world = flat_world(FULL, (1, 4, 5), given=3)
    np.testing.assert_allclose(psnr_so_far(world, world.rollouts[0]), [np.nan] * 4 + [30, 25])


def test_the_telling_frame_lies_deep_in_the_revisits() -> None:
    world = flat_world({"full": [60] * 6, "sliding": [60, 60, 60, 0, 40, 50]}, (3, 4, 5), given=3)
    assert telling_gap(world).tolist() == [0, 0, 0, 0, 20, 10]
