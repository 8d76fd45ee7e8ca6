"""Small episodes and whole trees of bytes, for all tests of the dataset."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worldkv.dataset import DatasetSchema, EncoderOptions, Episode

LENGTHS = (3, 2, 4)
TASKS = ("walk a loop", "turn round", "walk a loop")


def build_episode(seed: int, *, length: int | None = None, size: tuple[int, int] = (16, 16)) -> Episode:
    """An episode that is a function of its seed; three in a row share two tasks."""
    rng, frames = np.random.default_rng(seed), length or LENGTHS[seed % 3]
    c2w_F44 = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    c2w_F44[:, :3] = rng.normal(size=(frames, 3, 4))
    return Episode(
        frames_FHWC=rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8),
        c2w_F44=c2w_F44,
        intrinsics_F4=rng.uniform(1, 9, (frames, 4)).astype(np.float32),
        action_FA=rng.normal(size=(frames, 2)).astype(np.float32),
        action_names=("forward", "turn"),
        task=TASKS[seed % 3],
        fps=12,
        retrieved=tuple(tuple(range(frame % 3)) for frame in range(frames)),
        videos={"observation.images.truth": rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)},
        scalars={"psnr": rng.uniform(10, 40, frames).astype(np.float32)},
        metadata={"seed": seed, "policy": "retrieve", "gap_seconds": 0.5 * seed},
    )


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    return build_episode


@pytest.fixture(scope="session")
def schema() -> DatasetSchema:
    """The schema of `make_episode`, lossless so that pixels can be compared."""
    lossless = EncoderOptions(codec="ffv1", gop=1)
    return DatasetSchema.of(build_episode(0), retrieved_width=3, encoder=lossless)


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder by its path."""

    def read(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return read


@pytest.fixture(scope="session")
def same() -> Callable[[Episode, Episode], bool]:
    """Whether two episodes are equal in every part."""

    def compare(one: Episode, other: Episode) -> bool:
        arrays = ("frames_FHWC", "c2w_F44", "intrinsics_F4", "action_FA")
        return (
            all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
            and all(
                list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)
                for a, b in ((one.videos, other.videos), (one.scalars, other.scalars))
            )
            and (one.task, one.fps, one.retrieved, one.action_names)
            == (other.task, other.fps, other.retrieved, other.action_names)
            and dict(one.metadata) == dict(other.metadata)
        )

    return compare


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a real disk proves nothing here; that files are flushed is shown by counting steps."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
