"""`worldkv models fetch` as a user runs it, with the real library, from a hub on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, serving

pytest.importorskip("huggingface_hub", reason="the models extra is not installed")
pytestmark = pytest.mark.e2e

REPOSITORY, MODEL = "Skywork/Matrix-Game-2.0", "matrix-game-2-universal"
WEIGHTS, CONFIG = "base_distilled_model/base_distill.safetensors", "base_distilled_model/config.json"
VAE, CLIP = "Wan2.1_VAE.pth", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
CONTENT = {
    WEIGHTS: os.urandom(25_000_000),
    VAE: b"vae" * 1000,
    CLIP: b"clip" * 1000,
    CONFIG: b"{}",
    "other.bin": b"0" * 99,
}
WITHIN_SECONDS = 240
CUT_BYTES, LIBRARY_WRITES = 22_000_000, 10 * 2**20
"""Where a transfer breaks off, and in what pieces the library writes what has come."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    for name, data in CONTENT.items():
        path = tmp_path / "hub" / REPOSITORY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with serving(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def call(url: str, into: Path, *words: str, model: str = MODEL, **extra: str) -> dict[str, Any]:
    """What a process is started with."""
    home = {"HF_HOME": str(into.parent / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **home, "HF_ENDPOINT": url, "COLUMNS": "80", **extra}
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-m", "worldkv", "models", "fetch", model, "--into", str(into), *words]
    return {"args": command, "env": environment}


def fetch(url: str, into: Path, *words: str, **options: str) -> subprocess.CompletedProcess[str]:
    started = call(url, into, *words, **options)
    return subprocess.run(**started, capture_output=True, text=True, timeout=WITHIN_SECONDS)


def the_error(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.splitlines()[-1]


def test_what_is_needed_comes_and_no_more(hub: HubServer, into: Path):
    made = fetch(hub.url, into)
    assert made.returncode == 0, made.stderr
    assert "every file as the hub has it" in made.stdout
    assert "MIT: 4 files" in made.stdout
    for name in (WEIGHTS, VAE, CLIP, CONFIG):
        assert (into / name).read_bytes() == CONTENT[name]
    assert not (into / "other.bin").exists()
    before = len(hub.requests)
    assert fetch(hub.url, into).returncode == 0
    assert all(path.startswith("/api/") for _, path, _ in hub.requests[before:])


def test_a_transfer_that_broke_off_goes_on_where_it_stopped(hub: HubServer, into: Path):
    hub.cut_after[WEIGHTS] = CUT_BYTES
    made = fetch(hub.url, into, "--no-encoder")
    assert made.returncode == 0, made.stderr
    assert (into / WEIGHTS).read_bytes() == CONTENT[WEIGHTS]
    assert not (into / CLIP).exists()
    assert goes_on(hub)


def test_a_process_that_was_killed_leaves_what_the_next_one_goes_on_with(hub: HubServer, into: Path):
    hub.held_after[WEIGHTS] = CUT_BYTES
    process = subprocess.Popen(
        **call(hub.url, into, "--no-encoder"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert hub.holding.wait(WITHIN_SECONDS)
        assert wait_for_bytes(into, CUT_BYTES // LIBRARY_WRITES * LIBRARY_WRITES)
    finally:
        process.kill()
        process.wait()
    hub.let_go.set()
    assert not (into / WEIGHTS).exists()
    made = fetch(hub.url, into, "--no-encoder")
    assert made.returncode == 0, made.stderr
    assert (into / WEIGHTS).read_bytes() == CONTENT[WEIGHTS]
    assert goes_on(hub)


def goes_on(hub: HubServer) -> bool:
    """Whether the weights were first sent from their start, and then from a later byte to their end."""
    first, *later = (ranged.removeprefix("bytes=").partition("-")[0] for ranged in hub.sent_ranges(WEIGHTS))
    return first in ("", "0") and [int(start) > 0 for start in later] == [True]


def wait_for_bytes(into: Path, nbytes: int) -> bool:
    """Whether so much of the weights comes to lie on the disk, unfinished."""
    deadline = time.monotonic() + WITHIN_SECONDS
    while time.monotonic() < deadline:
        if any(path.stat().st_size >= nbytes for path in into.glob(".fetching/*/base_distilled_model/*")):
            return True
        time.sleep(0.05)
    return False


def test_other_bytes_than_promised_are_refused_and_removed(hub: HubServer, into: Path):
    hub.spoilt.add(WEIGHTS)
    said = the_error(fetch(hub.url, into))
    assert said.startswith(f"error: {REPOSITORY}, {WEIGHTS}: expected digest ")
    assert not (into / WEIGHTS).exists()
    hub.spoilt.clear()
    assert fetch(hub.url, into).returncode == 0
    assert (into / WEIGHTS).read_bytes() == CONTENT[WEIGHTS]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "gated: accept its terms on its page and log in there"),
        (401, "RepoNotFound", "no such repository, or one for which you must log in"),
        (500, "", "answers 500"),
    ],
)
def test_a_hub_that_refuses_is_told_in_one_line(hub: HubServer, into: Path, status: int, code: str, message: str):
    hub.refused[REPOSITORY] = (status, code)
    said = the_error(fetch(hub.url, into))
    assert said.startswith(f"error: {REPOSITORY}: ")
    assert message in said


def test_no_hub_offline_and_names_that_are_none(into: Path):
    said = the_error(fetch("http://127.0.0.1:9", into))
    assert said.startswith(f"error: {REPOSITORY}: the hub at http://127.0.0.1:9 cannot be reached: ")
    said = the_error(fetch("http://127.0.0.1:9", into, HF_HUB_OFFLINE="1"))
    assert said == f"error: {REPOSITORY}: cannot be fetched while HF_HUB_OFFLINE is set"
    assert "repository 'a/b': must be one of" in the_error(fetch("http://127.0.0.1:9", into, model="a/b"))


def test_a_disk_that_is_too_small_is_told_before_anything_comes(hub: HubServer, into: Path):
    hub.promised[VAE] = 2**60
    said = the_error(fetch(hub.url, into))
    assert "GiB are yet to come, the disk has" in said
    assert not hub.sent_ranges(WEIGHTS)
