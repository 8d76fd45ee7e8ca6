"""Snapshots small enough to be read, and the few ways in which tests vary them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from scheduler.snapshot import ChunkTable, LinkView, MemoryView, Recall, SessionView, TierView
from worldkv.camera import Motion, integrate, parse_action
from worldkv.camera.nearness import mean_pose

FRAMES = 4
CHUNK_BYTES = 100


def keys(text: str) -> np.ndarray:
    """Poses of a walk: words such as `W*8 R*4`, a key held for so many frames."""
    actions = []
    for word in text.split():
        key, _, times = word.partition("*")
        actions += [parse_action(key)] * int(times or 1)
    return integrate(actions, Motion(10.0, 0.5))


def chunk_means(c2w_F44: np.ndarray) -> np.ndarray:
    """Mean pose of each whole chunk."""
    whole = len(c2w_F44) // FRAMES * FRAMES
    return mean_pose(c2w_F44[:whole].reshape(-1, FRAMES, 4, 4))


def session(c2w_F44: np.ndarray, chunk: int, *, tiers: Sequence[int] | None = None, **changes: object) -> SessionView:
    """A session about to make `chunk` of a walk; its past chunks lie in `tiers`, by default all in tier 1."""
    tier_N = np.array([1] * chunk if tiers is None else tiers)
    table = ChunkTable(
        chunk_N=np.arange(chunk),
        pose_N44=chunk_means(c2w_F44)[:chunk],
        nbytes_N=np.full(chunk, CHUNK_BYTES),
        tier_N=tier_N,
        committed_N=np.zeros(chunk, bool),
        arrives_N=np.full(chunk, np.inf),
    )
    view = SessionView(
        session="s",
        tenant="t",
        chunk=chunk,
        assembles_seconds=10.0,
        chunk_seconds=10.0,
        table=table,
        recent_F44=c2w_F44[: chunk * FRAMES],
        frames_per_chunk=FRAMES,
        recall=Recall(retrieved_chunks=2, sink_chunks=0, recent_chunks=1),
    )
    return dataclasses.replace(view, **changes)


def memory(*sessions: SessionView, tiers: Sequence[TierView] | None = None, **changes: object) -> MemoryView:
    """Three tiers, of which the first has room for four chunks more; a second brings ten chunks nearer by one tier."""
    tiers = tiers or (
        TierView("device", 10 * CHUNK_BYTES, 6 * CHUNK_BYTES),
        TierView("host", 100 * CHUNK_BYTES, 50 * CHUNK_BYTES),
        TierView("disk", 1000 * CHUNK_BYTES, 50 * CHUNK_BYTES),
    )
    links = tuple(LinkView(10.0 * CHUNK_BYTES) for _ in tiers[1:])
    view = MemoryView(0.0, tuple(tiers), links, sessions, staging_bytes=100 * CHUNK_BYTES)
    return dataclasses.replace(view, **changes)


@pytest.fixture(scope="session")
def walk() -> Callable[[str], np.ndarray]:
    return keys


@pytest.fixture(scope="session")
def make_session() -> Callable[..., SessionView]:
    return session


@pytest.fixture(scope="session")
def make_view() -> Callable[..., MemoryView]:
    return memory
