"""Camera trajectories that the scheduler's benchmarks share: tuning seeds, and held-out ones that tuned nothing.

`keys` are single keys held at random in open space. `wander`, `roam` and `patrol` walk through rooms as people do: they
avoid walls, look round, come back; `patrol` looks independently of where it goes. `back` goes out and exactly back.
"""

import numpy as np

from scheduler.trace import SessionTrace
from worldkv.camera import WORLD_MODEL_MOTION, integrate, wander
from worldkv.models.rooms import layout, paths

SETS = ("keys", "wander", "roam", "patrol", "back")
TUNING, HELD_OUT = 9_000, 40_000
"""First seeds."""
FRAMES, STRIDE = 12, 4
CHUNK_SECONDS, CHUNK_BYTES = 2.1, 1_020_000_000
"""LingBot-World-Fast at 480x832 on one H200: a chunk takes 2.1 s (the sketch measured there, 32,760 tokens of window);
stored as int4 it has 26.7 % of 3.83 GB."""


def path(kind: str, chunks: int, seed: int) -> np.ndarray:
    """Poses [F, 4, 4] of a camera at 2 degrees and 1 / 24 of a unit per video frame."""
    if kind == "keys":
        return integrate(wander(np.random.default_rng([0xCA3, seed]), FRAMES * chunks), WORLD_MODEL_MOTION)
    pace = paths.Pace(WORLD_MODEL_MOTION.turn_degrees_per_frame, WORLD_MODEL_MOTION.distance_per_frame)
    walk = getattr(paths, kind)(layout.draw(seed), FRAMES * chunks, pace, seed=seed)
    return paths.to_poses(walk).astype(np.float64)


def traces(kind: str, count: int, chunks: int, first_seed: int, *, scripted: bool) -> list[SessionTrace]:
    """`count` sessions of one set."""
    return [
        SessionTrace(
            f"{kind}-{seed}",
            kind,
            path(kind, chunks, seed),
            FRAMES,
            CHUNK_SECONDS,
            CHUNK_BYTES,
            scripted=scripted,
            latent_stride=STRIDE,
        )
        for seed in range(first_seed, first_seed + count)
    ]
