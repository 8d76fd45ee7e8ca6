"""Made-up traces for the simulator: cameras steered by keys, or going out and exactly back.

Everything is a pure function of its seed. What people's cameras do is not made up here: record it.

Shapes: F video frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from scheduler.snapshot import Floats
from scheduler.trace import SessionTrace
from worldkv.camera import WORLD_MODEL_MOTION, integrate, out_and_back, wander
from worldkv.errors import ConfigError

PathKind = Literal["keys", "back", "look"]
"""keys: single keys held for up to two seconds; back: keys, then exactly the same way back; look: keys that mostly turn
on the spot, to and fro."""
LATENT_STRIDE = 4
"""Video frames per latent frame of the models the default figures are of."""


@dataclass(frozen=True)
class Load:
    """Sessions that arrive evenly over a time."""

    sessions: int
    chunks: int
    """Per session."""
    kind: PathKind = "keys"
    scripted_share: float = 0.5
    """Part of the sessions whose whole trajectory is known."""
    tenants: Sequence[str] = ("tenant-0",)
    """Taken in turn."""
    arrive_within_seconds: float = 0.0
    """All at once if 0."""
    chunk_seconds: float = 2.1
    chunk_bytes: int = 1_020_000_000
    frames_per_chunk: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(PathKind):
            raise ConfigError(f"kind={self.kind!r}: must be one of {', '.join(get_args(PathKind))}")
        if min(self.sessions, self.chunks, self.frames_per_chunk, len(self.tenants)) < 1:
            raise ConfigError(
                f"sessions={self.sessions}, chunks={self.chunks}, frames_per_chunk={self.frames_per_chunk}, "
                f"tenants={list(self.tenants)}: none may be 0 or empty"
            )
        if not 0 <= self.scripted_share <= 1:
            raise ConfigError(f"scripted_share={self.scripted_share}: must be from 0 to 1")


def made_up(load: Load) -> list[SessionTrace]:
    """The sessions of a load, in the order of their arrival."""
    digits = len(str(load.sessions - 1))
    return [
        SessionTrace(
            session=f"{load.kind}-{number:0{digits}d}",
            tenant=load.tenants[number % len(load.tenants)],
            c2w_F44=made_up_path(load.kind, load.chunks * load.frames_per_chunk, (load.seed, number)),
            frames_per_chunk=load.frames_per_chunk,
            chunk_seconds=load.chunk_seconds,
            chunk_bytes=load.chunk_bytes,
            arrives_seconds=load.arrive_within_seconds * number / load.sessions,
            # Spread evenly over the numbers, whatever the share.
            scripted=int((number + 1) * load.scripted_share) > int(number * load.scripted_share),
            latent_stride=min(LATENT_STRIDE, load.frames_per_chunk),
        )
        for number in range(load.sessions)
    ]


def made_up_path(kind: PathKind, frames: int, seed: Sequence[int]) -> Floats:
    """Poses [F, 4, 4] of one camera."""
    rng = np.random.default_rng([0x51A7, *seed])
    if kind == "back":
        out_F44 = integrate(wander(rng, frames // 2 + 1), WORLD_MODEL_MOTION)
        return out_and_back(out_F44)[:frames]
    actions = wander(rng, frames)
    if kind == "look":
        # Every walk is cut short: two frames of it, then a turn as long as the walk was.
        turns = wander(rng, frames, longest_hold=36)
        actions = tuple(
            action if frame % 24 < 4 else turn for frame, (action, turn) in enumerate(zip(actions, turns, strict=True))
        )
    return integrate(actions, WORLD_MODEL_MOTION)
