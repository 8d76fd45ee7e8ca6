"""The command line as a user runs it: another process, the shipped weights. What can be shown faster is shown in
tests/unit/cli and tests/unit/runs."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worldkv.dataset import DatasetReader

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "worldkv" / "models" / "rooms" / "weights"
WITHIN_SECONDS = 240
ENVIRONMENT = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "2"}
SMALL = ("--set", "trajectory.video_frames=24", "--set", "sampling.denoise_steps=2", "--set", "policies=worldkv")
COMMANDS = (
    *((), ("rollout",), ("eval",), ("inspect",), ("trajectory",), ("trajectory", "make"), ("trajectory", "show")),
    *(("models",), ("models", "list"), ("models", "check"), ("models", "play")),
    *(("models", "fetch"), ("models", "encode")),
)
Process = subprocess.CompletedProcess[str]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "worldkv", *map(str, words)]


def worldkv(*words: object, **options: object) -> Process:
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=WITHIN_SECONDS, env=ENVIRONMENT, **options
    )


def rollout(folder: Path, *words: object, worlds: int = 1, **options: object) -> Process:
    where = ("--set", f"worlds.count={worlds}", "--set", f"output.folder={folder}")
    return worldkv("rollout", *SMALL, *where, *words, **options)


def the_error(process: Process) -> str:
    """The last line of stderr, which alone tells the fault."""
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    line = process.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert process.stderr.count("error:") == 1
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Process]:
    """A run that went through, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, rollout(folder)


def test_help_of_every_command_teaches_by_example_and_loads_nothing_heavy():
    program = f"""
import sys
from worldkv.cli import main
for words in {COMMANDS!r}:
    sys.argv = ["worldkv", *words, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    # Typer itself loads pydantic where it parses a command's options.
    heavy = {{"torch", "matplotlib", "pyarrow", "av", "scipy", "numpy", *(() if words else ["pydantic"])}}
    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))
"""
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert process.returncode == 0, process.stderr
    for example in (
        "rollout configs/demo.yaml",
        "eval --frames",
        "inspect runs/demo",
        "models list",
        "models check weights/",
    ):
        assert f"worldkv {example}" in process.stdout


def test_eval_needs_neither_pyav_nor_pyarrow(tmp_path):
    """A GPU machine that only measures has torch and little else."""
    rows = tmp_path / "rows.json"
    words = f"eval --policies sliding --paths back --frames 6 --worlds 1 --steps 1 --json {rows}".split()
    program = f"""
import sys
sys.modules |= dict.fromkeys(("av", "pyarrow"))
sys.argv = ["worldkv", *{words!r}]
from worldkv.cli import main
main()
"""
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WITHIN_SECONDS, env=ENVIRONMENT
    )
    assert process.returncode == 0, process.stderr
    assert [row["policy"] for row in json.loads(rows.read_text())] == ["sliding"]


def test_a_rollout_makes_a_run_folder_and_says_what_is_in_it(finished):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    for name in ("run.yaml", "video.mp4", "report.html", "summary.json", "dataset/meta/info.json"):
        assert (folder / name).stat().st_size > 0
    for line in ("1 world:", "made     1 episode", f"watch    {folder}/video.mp4", f"worldkv inspect {folder}"):
        assert line in process.stdout
    assert process.stderr.startswith("  0%  starting")
    (figures,) = json.loads((folder / "summary.json").read_text())["policies"]
    assert figures["policy"] == "worldkv"
    assert figures["psnr_mean_db"] > 20


def test_the_tiers_example_moves_chunks_through_all_tiers_and_keeps_some_for_the_next_run(tmp_path):
    words = ("rollout", ROOT / "configs/tiers.yaml", "--set", "worlds.count=2", "--set", "sampling.denoise_steps=1")
    for run in ("first", "second"):
        process = worldkv(*words, "--set", f"output.folder={run}", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        hits = dict(re.findall(r"(device|host|disk|durable) +│[^│]+│[^│]+│[^│]+│ +(\d+) │", process.stdout))
        assert list(hits) == ["device", "host", "disk", "durable"]
        assert int(hits["device"]) > 0
        # What was brought up was so mostly before it was asked for: then the lookup hit the device.
        moved = re.search(r"moved    \d+ chunks down, (\d+) up", process.stdout)
        assert moved is not None
        assert int(moved[1]) > 0
        kept = re.search(r"kept     (\d+) chunks in runs/tiers-durable", process.stdout)
        assert kept is not None
        assert len(list((tmp_path / "runs/tiers-durable").glob("??/*.wkv"))) == int(kept[1]) > 0
        assert list((tmp_path / "runs/tiers-disk").glob("??/*.wkv")) == []


def test_inspect_verifies_what_a_rollout_made(finished):
    process = worldkv("inspect", finished[0], "--verify")
    assert process.returncode == 0, process.stderr
    assert "rooms-0/worldkv" in process.stdout
    assert "verified: as written" in process.stdout


def test_a_folder_that_holds_a_run_is_not_taken_by_another(finished, tmp_path):
    folder, _ = finished
    assert f"{folder}: already holds a run; go on with it by --resume" in the_error(rollout(folder))
    other = the_error(rollout(folder, "--resume", worlds=2))
    assert f"{folder}: holds another run (worlds.count is 1 there, 2 here)" in other
    (tmp_path / "thesis.tex").write_text("years of work")
    assert f"{tmp_path}: holds thesis.tex, which is no run's" in the_error(rollout(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_ctrl_c_leaves_whole_episodes_and_resume_makes_the_rest(tmp_path):
    folder = tmp_path / "run"
    words = (*SMALL, "--set", "worlds.count=2", "--set", "batch_sessions=1", "--set", f"output.folder={folder}")
    process = subprocess.Popen(
        command("rollout", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        _wait_for(lambda: (folder / "dataset/meta/info.json").exists(), process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped: what was committed stays; go on with: worldkv rollout --set")
    reader = DatasetReader.open(folder / "dataset")
    assert reader.keys == ["rooms-0/worldkv"]
    assert reader.verify() == []
    resumed = worldkv("rollout", *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "made     1 episode; 1 more were there already" in resumed.stdout
    assert DatasetReader.open(folder / "dataset").keys == ["rooms-0/worldkv", "rooms-1/worldkv"]


def _wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + WITHIN_SECONDS
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "the first episode did not come"
        time.sleep(0.02)


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_no_half_episode(tmp_path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    line = the_error(rollout(tmp_path / "run", preexec_fn=small_files))
    assert str(tmp_path / "run") in line
    assert "File too large" in line
    assert not (tmp_path / "run/dataset/meta/info.json").exists()


@pytest.fixture
def weights(tmp_path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "weights"))


def test_truncated_weights_are_named(tmp_path, weights):
    shard = sorted(weights.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size // 2)
    line = the_error(rollout(tmp_path / "run", "--set", f"model.weights={weights}"))
    assert f"{shard}: truncated or not a safetensors file" in line
    assert not (tmp_path / "run").exists()


def test_weights_of_another_model_are_named(tmp_path, weights):
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    line = the_error(worldkv("eval", "--weights", weights))
    assert f"{weights / 'config.json'}: model_type is 'llama'" in line


def test_poses_that_are_missing_or_not_finite_are_named(tmp_path):
    made = worldkv("trajectory", "make", "R_L90_24", tmp_path / "way", "--turn-degrees", "10", "--rooms-camera")
    assert made.returncode == 0, made.stderr
    words = ("--set", "trajectory.kind=files", "--set", f"trajectory.folder={tmp_path / 'way'}")
    poses = tmp_path / "way" / "poses.npy"
    broken = np.load(poses)
    broken[4, 0, 0] = np.nan
    np.save(poses, broken)
    assert f"{poses}: frame 4 of 24: the pose has a value that is not finite" in the_error(
        rollout(tmp_path / "run", *words)
    )
    poses.unlink()
    assert f"{tmp_path / 'way'}: holds no poses.npy" in the_error(rollout(tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_eval_ends_with_a_table_rows_and_a_plot(tmp_path):
    words = ("--policies", "sliding,worldkv", "--paths", "back", "--frames", "24", "--worlds", "1", "--steps", "1")
    process = worldkv("eval", *words, "--json", tmp_path / "rows.json", "--plot", tmp_path / "plot.svg")
    assert process.returncode == 0, process.stderr
    assert "back 24 truth" in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 80
    assert [row["policy"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["sliding", "worldkv"]
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
