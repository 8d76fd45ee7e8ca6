"""The command line called in this process: what it says, where it says it, and how it ends."""

import json
import os
import re
from importlib.metadata import version

import numpy as np
import pytest
import torch
from dialogue import RUN, only_error
from PIL import Image
from safetensors.torch import save_file

from worldkv.cli.progress import Bar, bar
from worldkv.dataset import DatasetReader
from worldkv.models.rooms.model import RoomsModel
from worldkv.runs import generate


def test_without_a_command_the_help_is_shown(worldkv):
    assert "rollout" in worldkv().out + worldkv().err


def test_the_version_is_said_without_a_command(worldkv):
    said = worldkv("--version")
    assert (said.code, said.out, said.err) == (0, f"worldkv {version('worldkv')}\n", "")


def test_a_configuration_of_another_command_is_told_which(worldkv):
    said = worldkv("models", "play", "configs/demo.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.err == "error: configs/demo.yaml: is for rollouts of many worlds; use worldkv rollout\n"


def test_a_dry_run_prints_what_can_be_run_and_makes_nothing(worldkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = worldkv("rollout", "--dry-run", "--set", "worlds.count=7")
    assert said.code == 0
    (tmp_path / "resolved.yaml").write_text(said.out)
    assert worldkv("rollout", "resolved.yaml", "--dry-run").out == said.out
    assert [path.name for path in tmp_path.iterdir()] == ["resolved.yaml"]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("rollout", "none.yaml"), "error: none.yaml: no such configuration file"),
        (("rollout", "--set", "worlds.cuont=1"), "error: configuration: worlds.cuont: unknown key; allowed here are"),
        (("rollout", "--set", "policies=best"), "error: configuration: policies: policy 'best': 'best' is not one of"),
        (("eval", "--policies", "best"), "error: policy 'best': 'best' is not one of full, sliding, worldkv"),
        (("eval", "--paths", "back,up"), "error: --paths back,up: 'up' is not one of back, roam, wander"),
        (("eval", "--history", "none"), "error: --history none: 'none' is not one of truth, own"),
        (("eval", "--frames", "96,x"), "error: --frames 96,x: expected whole numbers separated by commas"),
        (("eval", "--frames", "0"), "error: --frames 0: must all be 1 or more"),
        (("eval", "--device", "tpu"), "error: --device tpu: must be one of auto, cpu, cuda"),
        (("eval", "--plot", "x.bmp"), "error: --plot x.bmp: the name must end in one of .png, .svg, .pdf"),
        (("eval", "--json", "."), "error: --json .: is a folder; name a file"),
        (("eval", "--weights", "none"), "error: none/config.json: no such file"),
        (("inspect", "none"), "error: none: no such file or folder; expected a run, a dataset, a tier or a chunk file"),
        (("inspect", "."), "error: .: no WorldKV dataset"),
        (("trajectory", "make", "XY", "t"), "error: notation 'XY': character 1 is 'X'"),
        (("trajectory", "show", "none", "x.png"), "error: none: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(worldkv, tmp_path, monkeypatch, words, fault):
    monkeypatch.chdir(tmp_path)
    said = worldkv(*words)
    line = said.err.splitlines()[-1]
    assert line.startswith(fault)
    # Before the last line there may be that of the progress.
    assert (said.code, said.out, said.err.count("error:")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_a_mistake_too(worldkv):
    said = worldkv("rollout", "--sett", "a=b")
    assert said.code == 2
    assert "--sett" in said.err


def test_a_message_is_shown_as_it_is_whatever_characters_it_holds(worldkv):
    line = only_error(worldkv("rollout", "[bold]a:smile:[/b].yaml"))
    assert line == "error: [bold]a:smile:[/b].yaml: no such configuration file"


def test_a_long_message_is_not_wrapped(worldkv):
    name = "a" * 200
    assert only_error(worldkv("rollout", f"{name}.yaml")).endswith("no such configuration file")


def test_a_full_disk_anywhere_is_one_line(worldkv, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "some/where")

    monkeypatch.setattr(generate, "generate", full)
    said = worldkv("rollout")
    assert said.err.splitlines()[-1] == "error: some/where: No space left on device"
    assert said.code == 2


def test_a_fault_of_ours_keeps_its_traceback(worldkv, monkeypatch):
    def wrong(*_: object, **__: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(generate, "generate", wrong)
    with pytest.raises(OSError, match="Bad file descriptor"):
        worldkv("rollout")


def test_a_rollout_tells_what_was_made_and_what_to_do_next(rollout, tmp_path):
    said = rollout()
    assert said.code == 0
    for word in (
        "1 world:",
        "sliding",
        "PSNR dB",
        "made     1 episode\n",
        "video.mp4",
        "report.html",
        "LeRobotDataset",
    ):
        assert word in said.out
    for name in ("run.yaml", "dataset", "video.mp4", "report.html", "summary.json", "timings.json"):
        assert (tmp_path / "run" / name).exists()
    assert said.err.splitlines()[0] == "  0%  starting"


def test_a_finished_run_says_that_nothing_was_left_to_make(rollout):
    rollout()
    said = rollout("--resume")
    assert said.code == 0
    assert "made     nothing new: 1 episode there already, which is all" in said.out


def test_ctrl_c_says_what_stays_and_how_to_go_on(rollout, tmp_path, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "generate", stopped)
        said = rollout()
    assert said.code == 130
    last = said.err.splitlines()[-1]
    assert last.startswith("stopped: what was committed stays; go on with: worldkv rollout --set worlds.count=1")
    assert last.endswith("--resume")
    assert rollout("--resume").code == 0


def test_ctrl_c_outside_a_long_command_is_one_line_too(worldkv, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DatasetReader, "open", stopped)
    assert worldkv("inspect", ".").code == 130
    assert only_error(worldkv("inspect", "."), 130) == "stopped: by Ctrl-C"


def test_eval_prints_a_table_and_writes_rows_and_plot(worldkv, tiny_rooms, tmp_path):
    rows, plot = tmp_path / "new" / "rows.json", tmp_path / "plot.png"
    words = ("--policies", "sliding, worldkv", "--paths", "back", "--frames", "30", "--worlds", "2", "--steps", "1")
    said = worldkv("eval", *words, "--json", rows, "--plot", plot)
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert "back 30 truth" in said.out
    assert [row["policy"] for row in json.loads(rows.read_text())] == ["sliding", "worldkv"]
    assert plot.stat().st_size > 1000
    assert "loading the model" in said.err


def test_eval_that_is_stopped_keeps_the_rows_so_far(worldkv, tiny_rooms, tmp_path, monkeypatch):
    from worldkv.eval import benchmark

    real = benchmark._case

    def case(*of: object) -> benchmark.Row:
        if of[4].name == "sliding":
            raise KeyboardInterrupt
        return real(*of)

    monkeypatch.setattr(benchmark, "_case", case)
    rows = tmp_path / "rows.json"
    said = worldkv("eval", "--paths", "back", "--frames", "24", "--worlds", "1", "--steps", "1", "--json", rows)
    assert said.code == 130
    assert said.err.splitlines()[-1] == f"stopped: the rows so far are in {rows}"
    (row,) = json.loads(rows.read_text())
    assert row["policy"] == "full"
    assert row["psnr_ci95"] is None


def test_eval_leaves_earlier_rows_alone_when_it_cannot_begin(worldkv, tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    assert worldkv("eval", "--json", tmp_path / "rows.json", "--weights", tmp_path / "none").code == 2
    assert (tmp_path / "rows.json").read_text() == "[]"


def test_trajectory_make_and_show_go_together(worldkv, tmp_path):
    said = worldkv("trajectory", "make", "R_L90_96", tmp_path / "look", "--turn-degrees", "6", "--rooms-camera")
    assert (said.code, said.err) == (0, "")
    assert "96 poses" in said.out
    assert np.load(tmp_path / "look/intrinsics.npy")[0].tolist() == list(RoomsModel.load().intrinsics)
    said = worldkv("trajectory", "show", tmp_path / "look", tmp_path / "look.png")
    assert said.code == 0
    assert (tmp_path / "look.png").stat().st_size > 1000


def test_a_trajectory_is_never_overwritten(worldkv, tmp_path):
    worldkv("trajectory", "make", "W_24", tmp_path / "t")
    line = only_error(worldkv("trajectory", "make", "S_24", tmp_path / "t"))
    assert line.startswith(f"error: {tmp_path / 't'}: already holds a trajectory")


def test_on_a_terminal_a_long_name_gives_way_and_the_figures_stay(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with bar(2) as progress:
        progress.step("world 0 to 3, worldkv/positions=original/codec=int8/retrieved_chunks=4", 1, 2)
        progress.advance()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"50 % 0:00:0\d .* world 0 to 3, worldkv/.*…", plain)


def test_a_log_gets_a_line_at_once_and_then_now_and_then(monkeypatch, capsys):
    from rich.console import Console

    now = [100.0]
    monkeypatch.setattr("worldkv.cli.progress.time.monotonic", lambda: now[0])
    progress = Bar(2, None, Console(stderr=True))
    progress.step("first", 0, 4)
    progress.step("too soon", 1, 4)
    progress.advance()
    now[0] += 20
    progress.step("later", 1, 4)
    assert capsys.readouterr().err.splitlines() == ["  0%  first", " 62%  later"]


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_waits_passively_unless_the_user_wants_otherwise(worldkv, monkeypatch, given, used):
    monkeypatch.delenv("OMP_WAIT_POLICY") if given is None else monkeypatch.setenv("OMP_WAIT_POLICY", given)
    worldkv("--help")
    assert os.environ["OMP_WAIT_POLICY"] == used


def test_a_rollout_that_remembers_tells_what_its_tiers_held_and_what_stays(worldkv, tiny_rooms, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "pin_faults", lambda memory: ["tier host: 0 of 9 bytes pinned, then: [304]"])
    tier = f"memory.tiers=[{{name: durable, capacity_mib: 1, url: {tmp_path / 'chunks'}}}]"
    words = ("policies=worldkv", "trajectory.video_frames=18", f"output.folder={tmp_path / 'run'}", tier)
    said = worldkv("rollout", *RUN, *(word for text in words for word in ("--set", text)))
    assert said.code == 0
    assert re.search(r"3 lookups of remembered chunks", said.out)
    assert re.search(r"durable +│ +0\.0 +│ +1 +│ +3 +│ +3 +│ 0 ", said.out)
    assert f"kept     3 chunks in {tmp_path / 'chunks'}" in said.out
    assert "warning: tier host: 0 of 9 bytes pinned, then: [304]" in said.err.splitlines()
    assert max(map(len, said.out.splitlines())) <= 80 + len(str(tmp_path))


def test_a_rollout_that_remembers_nothing_says_nothing_of_memory(rollout):
    assert "lookups" not in rollout().out


@pytest.mark.parametrize(
    ("tier", "fault"),
    [
        (
            "{name: disk, capacity_mib: 9, folder: theirs}",
            "error: memory.tiers.0.folder = theirs: tier disk: folder theirs",
        ),
        (
            "{name: durable, capacity_mib: 9, url: 'nope://x'}",
            "error: memory.tiers.0.url = nope://x: tier durable: url",
        ),
        ("{name: disk, capacity_mib: 9, folder: run/chunks}", "error: memory.tiers.0.folder = run/chunks: lies in"),
    ],
)
def test_a_memory_that_cannot_be_had_is_one_line_and_leaves_nothing(
    worldkv, tiny_rooms, tmp_path, monkeypatch, tier, fault
):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    said = worldkv("rollout", *RUN, "--set", f"memory.tiers=[{tier}]", "--set", "output.folder=run")
    assert (said.code, said.out, said.err.count("error:")) == (2, "", 1)
    assert said.err.splitlines()[-1].startswith(fault)
    assert [path.name for path in tmp_path.rglob("*")] == ["theirs", "thesis.tex"]


class TestModels:
    def test_list_names_every_model_with_its_licence_and_size(self, worldkv, monkeypatch):
        monkeypatch.setenv("COLUMNS", "160")
        said = worldkv("models", "list")
        assert said.code == 0
        for words in (("lingbot-world-fast", "Apache-2.0", "18.54 e9"), ("lingbot-world-2", "CC-BY-NC-SA-4.0")):
            assert all(word in said.out for word in words)

    def test_check_of_a_folder_without_a_model_is_one_line_and_exit_code_2(self, worldkv, tmp_path):
        said = worldkv("models", "check", tmp_path)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith(f"error: {tmp_path}: holds none of the published models")

    def test_check_says_what_is_wrong_with_every_part(self, worldkv, tmp_path):
        (tmp_path / "lingbot_world_fast").mkdir()
        said = worldkv("models", "check", tmp_path)
        assert said.code == 2
        assert "LingBot-World-Fast (lingbot-world-fast), Apache-2.0" in said.out
        assert "Wan2.1_VAE.pth: no such file" in said.out
        assert "quick decoder: not there; it is optional" in said.out
        assert "cannot be used (2 faults)" in said.err

    @pytest.fixture
    def world(self, tmp_path):
        """A configuration with inputs that fit."""
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "first.png")
        save_file({"prompt": torch.zeros(2, 32)}, tmp_path / "prompt.safetensors")
        config = tmp_path / "play.yaml"
        config.write_text(
            f"model: {{name: lingbot-world-fast, folder: weights, size: tiny}}\n"
            f"inputs: {{image: {tmp_path}/first.png, embeddings: {tmp_path}/prompt.safetensors, trajectory: W_24}}\n"
            f"video: {tmp_path}/made.mp4\n"
        )
        return config

    def test_play_writes_a_video_and_says_where(self, worldkv, world, tmp_path):
        said = worldkv("models", "play", world, "--random-weights", 0)
        assert said.code == 0, said.err
        assert "made     2 chunks" in said.out
        assert (tmp_path / "made.mp4").stat().st_size > 0
        again = worldkv("models", "play", world, "--random-weights", 0)
        assert again.code == 2
        assert "already exists" in again.err

    def test_a_rollout_of_a_published_model_is_told_by_its_name(self, worldkv, world, tmp_path):
        weights = ("--set", "model.folder=null", "--set", "model.random_weights=0")
        shown = worldkv("rollout", world, "--dry-run", *weights)
        assert shown.code == 0, shown.err
        assert "ranks: 1" in shown.out
        several = worldkv("rollout", world, *weights, "--set", "model.ranks=2")
        assert several.code == 2
        assert "model.ranks = 2: this is one process; use worldkv rollout, or ranks = 1" in several.err
        uneven = worldkv("rollout", world, *weights, "--set", "model.ranks=3")
        assert uneven.code == 2
        assert "ranks = 3: must divide the 4 heads of lingbot-world-fast, so be one of 1, 2, 4" in uneven.err
        unknown = worldkv("rollout", world, "--set", "model.name=nothing")
        assert "model.name: 'nothing' must be one of lingbot-world-fast" in unknown.err
        made = worldkv("rollout", world, *weights)
        assert made.code == 0, made.err
        assert (tmp_path / "made.mp4").exists()
