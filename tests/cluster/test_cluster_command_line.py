"""The whole command line as a user runs it: another process, with a Ray of its own or on a cluster that it starts."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, SETTINGS

from cluster.nodes import started

pytestmark = [pytest.mark.cluster]
WITHIN_SECONDS = 120
Process = subprocess.CompletedProcess[str]


@pytest.fixture
def worldkv(tmp_path) -> Callable[..., Process]:
    """The command, in `tmp_path`, without what the other tests set for Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def run(*words: object, **more: str) -> Process:
        command = [sys.executable, "-m", "cluster", *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=WITHIN_SECONDS,
            cwd=tmp_path,
            env={**environment, "COLUMNS": "120", **more},
        )

    run.environment = environment
    return run


@pytest.fixture
def words(tiny_weights) -> list[str]:
    """Of a small rollout into runs/one."""
    settings = (*SETTINGS, f"model.weights={tiny_weights}", "output.folder=runs/one")
    return ["rollout", *(word for setting in settings for word in ("--set", setting))]


def error_line(process: Process) -> str:
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.splitlines()[-1]


def left_over(process: int) -> list[str]:
    """Processes of the embedded Ray of that driver."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"/tmp/wkv-{process}-" in line:
            found.append(line)
    return found


def test_help_loads_neither_ray_nor_torch():
    commands = ([], ["rollout"], ["jobs"], ["jobs", "resume"], ["cluster"], ["cluster", "up"])
    program = f"""
import sys
from cluster.cli import main
for words in {commands!r}:
    sys.argv = ["worldkv", *words, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    assert not {{"torch", "ray", "numpy"}} & set(sys.modules), words
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    for example in ("worldkv jobs resume demo-1a2b3c", "worldkv cluster up --host"):
        assert example in process.stdout


def test_a_driver_that_is_killed_leaves_no_process_and_its_job_is_resumed_to_the_same_bytes(
    worldkv, words, undisturbed, tree, tmp_path
):
    driver = subprocess.Popen(
        [sys.executable, "-m", "cluster", *words], cwd=tmp_path, env=worldkv.environment, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + WITHIN_SECONDS
    while not (tmp_path / "runs/one/dataset/meta/info.json").exists():
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    while left_over(driver.pid):
        assert time.monotonic() < until, left_over(driver.pid)
        time.sleep(0.1)
    (job,) = (tmp_path / "runs/.jobs").iterdir()
    resumed = worldkv("jobs", "resume", job.name)
    assert resumed.returncode == 0, resumed.stderr
    assert "more were there already" in resumed.stdout
    assert tree(tmp_path / "runs/one") == undisturbed()
    assert '"standing": "finished"' in (job / "state.json").read_text()
    again = worldkv(*words, "--resume")
    assert "nothing new: 8 episodes there already" in again.stdout, again.stdout + again.stderr
    assert not list(Path("/tmp").glob(f"wkv-{driver.pid}-*")), "the next start cleans up"


def test_ctrl_c_writes_down_what_is_under_way_and_resume_goes_on(worldkv, words, undisturbed, tree, tmp_path):
    long = [*words, "--set", "trajectory.video_frames=240", "--set", "policies=sliding"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "cluster", *long],
        cwd=tmp_path,
        env=worldkv.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + WITHIN_SECONDS
    while not (tmp_path / "runs/.jobs").exists():
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.5)
    # As a terminal does it: everyone in the foreground gets the signal.
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert said.splitlines()[-1].startswith("stopped: what was committed stays; go on with: worldkv rollout --set")
    assert "Traceback" not in said
    resumed = worldkv(*long, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    overrides = ("trajectory.video_frames=240", "policies=sliding")
    assert tree(tmp_path / "runs/one") == undisturbed(*overrides)


def test_mistakes_are_one_line_each(worldkv, words, tmp_path):
    assert "address 127.0.0.1:1: no cluster there: Connection refused" in error_line(
        worldkv(*words, "--address", "127.0.0.1:1")
    )
    assert "expected host:port" in error_line(worldkv(*words, "--address", "somewhere"))
    assert "job nothing: not in " in error_line(worldkv("jobs", "cancel", "nothing"))
    many = error_line(worldkv(*words, "--workers", "4096"))
    assert re.search(r"--workers 4096: there are \d+ CPU cores; ask for fewer, or --wait for more", many)
    weights = error_line(worldkv(*words, "--set", "model.weights=none"))
    assert "none/config.json: no such file" in weights
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def address(worldkv, tmp_path) -> Iterator[str]:
    """A cluster that `worldkv cluster up` started, with a token, and that `down` ends."""
    there = {node.address for node in started()}
    host = "127.0.0.1:6437"
    (tmp_path / "tenants.yaml").write_text("tenants: [{name: default}, {name: none, sessions: 0}]\n")
    up = worldkv(
        *("cluster", "up", "--port", "6437", "--cpus", "2", "--store-mib", "80"),
        *("--tenants", "tenants.yaml", "--token-file", "token", "--domain", "rack-1"),
    )
    try:
        assert up.returncode == 0, up.stderr
        yield host
    finally:
        if not there:
            assert f"node of {host} ended" in worldkv("cluster", "down").stdout
            assert started() == []


def test_a_cluster_with_a_token_and_tenants_runs_jobs_of_those_who_may(
    worldkv, words, address, undisturbed, tree, tmp_path
):
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    token = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = worldkv(*words, "--address", address, **token)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "runs/one") == undisturbed()
    shutil.rmtree(tmp_path / "runs")
    refused = error_line(worldkv(*words, "--address", address, "--set", "memory.tenant=none", **token))
    assert "its batches have 2 sessions, tenant none may have 0 at once" in refused
    status = worldkv("cluster", "status", "--address", address, "--token-file", "token")
    assert status.returncode == 0, status.stderr
    assert "alive" in status.stdout
    assert "rack-1" in status.stdout
    unknown = error_line(worldkv("cluster", "drain", "zzz", "--address", address, "--token-file", "token"))
    assert "node 'zzz': 0 living nodes are called so" in unknown
    wrong = error_line(worldkv(*words, "--address", address, RAY_AUTH_TOKEN="guess", RAY_AUTH_MODE="token"))
    assert f"address {address}: no Ray cluster answers there, or not to RAY_AUTH_MODE=token" in wrong
