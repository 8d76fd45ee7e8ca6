"""What a run came out as, in memory: the nouns that run, report, dataset and summary share.

Shapes: F video frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldkv.camera import Trajectory
from worldkv.rollout import ChunkRecord


@dataclass(frozen=True)
class PolicyRollout:
    """One world under one memory policy."""

    policy: str
    records: tuple[ChunkRecord, ...]
    psnr_F: NDArray[np.float32]
    """dB against the truth, per video frame; at most 60."""
    ssim_F: NDArray[np.float32]

    @property
    def frames_FHWC(self) -> NDArray[np.uint8]:
        """The whole video."""
        return np.concatenate([record.frames_FHWC for record in self.records])


@dataclass(frozen=True)
class WorldTruth:
    """One world and the camera's way through it, with what it really looks like."""

    name: str
    seed: int
    trajectory: Trajectory
    truth_FHWC: NDArray[np.uint8]
    revisit_F: NDArray[np.bool_]
    """Frames whose surfaces were seen before the recent window."""
    given_frames: int
    """First video frames, shown to the session instead of generated."""


@dataclass(frozen=True)
class WorldRollouts(WorldTruth):
    """One world under all policies of a run, along the same trajectory."""

    rollouts: tuple[PolicyRollout, ...]


@dataclass(frozen=True)
class RunResult:
    """Everything a report shows."""

    model: str
    epoch: str
    frames_per_chunk: int
    fps: int
    """Playback rate of the videos."""
    worlds: tuple[WorldRollouts, ...]
    frames_per_second: Mapping[str, float]
    """Per policy: generated video frames over wall-clock seconds of the batch, decoding included."""
    stage_seconds: Mapping[str, Mapping[str, float]]
    """Per policy and stage."""
    config_yaml: str
    """The resolved configuration."""
    command: str
    """How to make this run again."""
