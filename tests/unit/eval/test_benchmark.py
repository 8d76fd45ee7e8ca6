import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from worldkv.camera import Trajectory, planar_poses
from worldkv.errors import ConfigError
from worldkv.eval import benchmark, table
from worldkv.eval.benchmark import Row, Settings
from worldkv.geometry import KVGeometry
from worldkv.memory.codec import CODECS
from worldkv.memory.policy import PRESETS, parse_policy
from worldkv.models.rooms.layout import UNTRAINED_SEEDS
from worldkv.models.rooms.network import Shape

PER_CHUNK = 3
TINY = Settings(worlds=2, denoise_steps=1, batch=2, memory_bytes=2**30)
DEMANDED = {
    "policy",
    "path",
    "frames",
    "history",
    "psnr_mean",
    "psnr_ci95",
    "ssim_mean",
    "window_tokens_mean",
    "stored_bytes_per_chunk",
    "frames_per_second",
}
EXTRA = {"retrieved_mean", "worlds", "scored_frames_mean", "psnr_per_world"}
ROW = Row("full", "back", 96, "truth", 38.5, 0.25, 0.97, 4704.0, 2457600.0, 10.0, 0.0, 64, 46.3)


def along(*x: float) -> Trajectory:
    """Through these places, looking ahead."""
    poses = planar_poses(np.array(x), np.zeros(len(x)), np.zeros(len(x)))
    return Trajectory(poses, np.tile((1.0, 1.0, 1.0, 1.0), (len(x), 1)))


@pytest.fixture(scope="module")
def rows(tiny) -> dict[str, Row]:
    wanted = benchmark.cases(list(PRESETS.values()), ["back"], [48], ["truth"])
    return {row.policy: row for row in benchmark.run(tiny.model, TINY, wanted)}


def test_cases_come_path_by_path_and_length_by_length_so_that_worlds_are_drawn_once():
    full, sliding = PRESETS["full"], PRESETS["sliding"]
    cases = benchmark.cases([full, sliding], ["back", "roam"], [12, 24], ["truth", "own"])
    assert len(cases) == 16
    assert [case[:2] for case in cases[::4]] == [("back", 12), ("back", 24), ("roam", 12), ("roam", 24)]
    assert cases[:4] == [
        ("back", 12, "truth", full),
        ("back", 12, "truth", sliding),
        ("back", 12, "own", full),
        ("back", 12, "own", sliding),
    ]


def test_rows_come_in_the_order_of_their_cases_and_carry_all_demanded_figures(rows):
    assert list(rows) == ["full", "sliding", "worldkv"]
    for row in rows.values():
        assert set(row.as_json()) == DEMANDED | EXTRA
        assert (row.path, row.frames, row.history, row.worlds) == ("back", 48, "truth", 2)
        assert all(np.isfinite(value) for value in row.as_json().values() if isinstance(value, float))
        assert 0 < row.psnr_mean < 60
        assert np.mean(row.psnr_per_world) == pytest.approx(row.psnr_mean, abs=1e-3)
        assert len(row.psnr_per_world) == row.worlds
        assert row.frames_per_second > 0


def test_all_policies_are_scored_on_the_same_frames(rows):
    assert len({row.scored_frames_mean for row in rows.values()}) == 1


def test_sliding_attends_to_a_constant_number_of_tokens_and_full_to_all_so_far(tiny, rows):
    per_chunk, chunks = tiny.model.geometry.tokens_per_chunk, 48 // PER_CHUNK
    assert rows["sliding"].window_tokens_mean == (1 + 2 + 1) * per_chunk
    assert rows["worldkv"].window_tokens_mean == (1 + 4 + 2 + 1) * per_chunk
    assert rows["full"].window_tokens_mean == per_chunk * np.mean(np.arange(chunks // 2, chunks) + 1)


def test_only_worldkv_brings_chunks_back(rows):
    assert [rows[name].retrieved_mean for name in ("full", "sliding", "worldkv")] == [0, 0, 4]


def test_worldkv_stores_a_chunk_in_fewer_bytes_than_a_window_holds_it_in(tiny, rows):
    geometry = tiny.model.geometry
    live = geometry.kv_bytes(geometry.tokens_per_chunk, torch.float32)
    assert rows["full"].stored_bytes_per_chunk == rows["sliding"].stored_bytes_per_chunk == live
    shape = (geometry.layers, geometry.tokens_per_chunk, geometry.heads, geometry.head_dim)
    assert rows["worldkv"].stored_bytes_per_chunk == chunk_bytes("int4", shape) < live


def chunk_bytes(codec: str, shape: tuple[int, int, int, int]) -> int:
    """Of the codec's payload and the chunk's float32 poses."""
    return CODECS[codec].nbytes(shape) + PER_CHUNK * 4 * 4 * 4


def test_the_default_policy_stores_at_most_28_percent_of_bf16_at_the_shipped_geometry():
    shipped = Shape()
    tokens = shipped.frames_per_chunk * shipped.tokens_per_frame
    geometry = KVGeometry(shipped.layers, shipped.heads, shipped.head_dim, shipped.side, shipped.side, 3, 48)
    stored = chunk_bytes(PRESETS["worldkv"].codec, (shipped.layers, tokens, shipped.heads, shipped.head_dim))
    assert stored <= 0.28 * geometry.kv_bytes(tokens)


def test_a_world_is_scored_alike_alone_and_in_a_batch(tiny):
    case = [("back", 30, "truth", PRESETS["sliding"])]
    together = next(benchmark.run(tiny.model, TINY, case))
    apart = next(benchmark.run(tiny.model, replace(TINY, batch=1), case))
    assert together.psnr_mean == pytest.approx(apart.psnr_mean, abs=0.05)
    assert together.worlds == apart.worlds == 2


def test_a_frame_is_judged_only_by_what_the_first_half_showed(tiny):
    [world] = benchmark._draw(tiny.model, replace(TINY, worlds=1), "roam", 96, lambda *_: None)
    _, depth = world.scene.truth(world.trajectory)
    judged, seen = (
        world.scene.revisits(world.trajectory, depth, chunk=PER_CHUNK, recent_chunks=2, given=given)
        for given in (48, None)
    )
    np.testing.assert_array_equal(world.revisit_F, judged)
    assert 0 < judged[48:].sum() < seen[48:].sum()


def test_the_benchmark_repeats_but_for_its_speed(tiny):
    case = [("roam", 36, "own", parse_policy("worldkv/codec=int8"))]
    first, again = (next(benchmark.run(tiny.model, TINY, case)) for _ in range(2))
    same = {"frames_per_second": 0.0}
    assert json.dumps(first.as_json() | same) == json.dumps(again.as_json() | same)


def test_progress_names_the_case_and_never_goes_back(tiny):
    told: list[tuple[str, int, int]] = []
    settings = replace(TINY, batch=1)
    list(benchmark.run(tiny.model, settings, [("back", 12, "truth", PRESETS["full"])], lambda *step: told.append(step)))
    assert [name for name, _, _ in told[:2]] == ["drawing world 0, back 12", "drawing world 1, back 12"]
    assert [step for step in told if step[0] == "full back 12 truth"] == [
        ("full back 12 truth", done, 8) for done in range(1, 9)
    ]


@pytest.mark.parametrize("frames", [3, 9, 47, 94])
def test_frames_that_are_not_two_halves_of_whole_chunks_are_refused_before_anything_runs(tiny, frames):
    wanted = benchmark.cases([PRESETS["full"]], ["back"], [12, frames], ["truth"])
    with pytest.raises(ConfigError, match=rf"frames={frames}: must be a multiple of 6"):
        next(benchmark.run(tiny.model, TINY, wanted))


def test_own_revisits_pair_a_late_frame_with_the_first_visit_of_its_pose():
    out = list(range(15))
    late, first = benchmark.own_revisits(along(*out, *out[::-1]), PER_CHUNK)
    # Of the way back, frames whose first visit has left the window; the given first chunk says nothing.
    assert list(zip(late, first, strict=True)) == [(frame, 29 - frame) for frame in range(18, 27)]


def test_own_revisits_know_neither_the_first_half_nor_the_recent_window_nor_the_given_chunk():
    still = along(*[0.0] * 30)
    late, first = benchmark.own_revisits(still, PER_CHUNK)
    assert late.tolist() == list(range(15, 30))
    assert set(first.tolist()) == {PER_CHUNK}
    late, _ = benchmark.own_revisits(along(*range(30)), PER_CHUNK)
    assert late.size == 0


def test_own_revisits_take_a_turned_camera_for_another_pose():
    x, yaw = np.zeros(24), np.repeat([0.0, 90.0, 0.0], [9, 9, 6])
    late, first = benchmark.own_revisits(
        Trajectory(planar_poses(x, x, yaw), np.tile((1.0, 1.0, 1.0, 1.0), (24, 1))), PER_CHUNK
    )
    assert late.tolist() == list(range(18, 24))
    assert set(first.tolist()) == {PER_CHUNK}


def test_the_interval_is_students_and_a_single_world_has_none():
    values = np.array([30.0, 32.0, 34.0, 36.0])
    assert benchmark._half_interval(values) == pytest.approx(3.1824 * values.std(ddof=1) / 2, abs=1e-3)
    assert np.isnan(benchmark._half_interval(values[:1]))


def test_what_was_not_measured_is_null_in_json():
    row = replace(ROW, psnr_mean=float("nan"), psnr_ci95=float("nan"))
    text = json.dumps(row.as_json(), allow_nan=False)
    assert json.loads(text)["psnr_mean"] is None
    assert json.loads(text)["ssim_mean"] == 0.97


def shown(rows: list[Row], width: int = 80) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False, color_system=None)
    with console.capture() as capture:
        table.show(rows, console)
    return capture.get()


def test_the_table_shows_every_figure_within_80_columns():
    long = "worldkv/positions=original/codec=int8"
    text = shown([ROW, replace(ROW, policy=long, frames_per_second=1034.3), replace(ROW, path="roam")])
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("back 96 truth", "roam 96 truth", "38.50 ± 0.25", "0.970", "4704", "2400", "1034.3", "64 x 46"):
        assert figure in text
    assert long in "".join(line[:23].strip() for line in text.splitlines())


def test_the_table_says_where_nothing_was_scored():
    nothing = float("nan")
    row = replace(ROW, psnr_mean=nothing, psnr_ci95=nothing, ssim_mean=nothing, scored_frames_mean=nothing, worlds=0)
    text = shown([row])
    assert "none" in text
    assert "nan" not in text


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_plot_is_written_in_the_format_of_its_name(tmp_path, suffix):
    path = tmp_path / f"psnr{suffix}"
    table.plot([ROW, replace(ROW, frames=288, psnr_mean=30.0), replace(ROW, path="roam", psnr_mean=float("nan"))], path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_worlds_that_served_in_training_are_refused_before_anything_runs(tiny):
    wanted = benchmark.cases([PRESETS["full"]], ["back"], [12], ["truth"])
    settings = replace(TINY, seed=UNTRAINED_SEEDS - TINY.worlds + 1)
    with pytest.raises(ConfigError, match="served in training"):
        next(benchmark.run(tiny.model, settings, wanted))
