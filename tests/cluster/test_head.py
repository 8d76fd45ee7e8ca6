"""The head of a cluster dies: what its drivers say, and that their jobs are resumed on a new one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import SETTINGS

from cluster.nodes import Node, started, stop

pytestmark = [pytest.mark.cluster, pytest.mark.long]
WITHIN_SECONDS = 120
# Ray itself would end the driver after sixty, with a line of its own.
TOLD_WITHIN_SECONDS = 45


@pytest.fixture
def environment() -> dict[str, str]:
    """Without what the other tests set for Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "disabled"}


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[Node]:
    """As `worldkv cluster up` starts it, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cluster", "cluster", "up", "--port", str(port), "--cpus", "2"]
    subprocess.run([*command, "--store-mib", "80"], check=True, timeout=WITHIN_SECONDS, env=environment)
    (node,) = (one for one in started() if one.address == f"127.0.0.1:{port}")
    try:
        yield node
    finally:
        stop(node)


def gcs_of(node: Node) -> int:
    """Process of Ray's global control service."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            if "gcs_server" in words and f"{node.folder}/" in words:
                return int(entry.name)
    raise AssertionError(f"no gcs_server of {node}")


def test_a_head_that_dies_ends_its_drivers_in_one_line_and_the_job_goes_on_in_a_new_cluster(
    environment, tiny_weights, undisturbed, tree, tmp_path
):
    overrides = ("trajectory.video_frames=240", "policies=sliding")
    settings = (*SETTINGS, f"model.weights={tiny_weights}", "output.folder=runs/one", *overrides)
    words = [word for setting in settings for word in ("--set", setting)]

    def start(*command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster", *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with cluster(environment) as node:
        driver = start("rollout", *words, "--address", node.address, "--checkpoint", "2")
        until = time.monotonic() + WITHIN_SECONDS
        while not list(tmp_path.glob("runs/.jobs/*/batches/*/checkpoint")):
            assert driver.poll() is None, driver.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(gcs_of(node), signal.SIGKILL)
        _, err = driver.communicate(timeout=TOLD_WITHIN_SECONDS)
    assert driver.returncode == 2, err
    assert f"error: address {node.address}: the head of the cluster is gone, and the cluster with it" in err
    assert "Traceback" not in err
    (job,) = (path.name for path in (tmp_path / "runs/.jobs").iterdir())
    with cluster(environment) as node:
        resumed = start("jobs", "resume", job, "--address", node.address)
        _, err = resumed.communicate(timeout=WITHIN_SECONDS)
    assert resumed.returncode == 0, err
    assert tree(tmp_path / "runs/one") == undisturbed(*overrides)
