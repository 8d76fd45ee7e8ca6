"""A run so small that a test can make it many times: three 20 x 20 pixel worlds of four chunks, a random model."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from worldkv.config import RunConfig, load
from worldkv.runs import generate

SETTINGS = (
    "worlds.count=3",
    "batch_sessions=2",
    "trajectory.video_frames=12",
    "policies=[sliding, worldkv]",
    "sampling.denoise_steps=1",
)


@pytest.fixture
def config(tmp_path) -> Callable[..., RunConfig]:
    """The small run into `tmp_path / folder`, with further overrides."""

    def make(folder: str = "run", *overrides: str) -> RunConfig:
        return load(None, [*SETTINGS, f"output.folder={tmp_path / folder}", *overrides])

    return make


@pytest.fixture(autouse=True)
def _tiny_model(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "load_model", lambda config: tiny.model)


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder by its path."""

    def read(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return read
