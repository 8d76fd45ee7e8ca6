"""A rollout as an episode of the dataset, and back: reports are made from what is on disk.

Shapes: F video frames, H W pixels, A action columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from worldkv.camera import Trajectory, planar_coordinates, relative_framewise
from worldkv.dataset import Episode
from worldkv.eval.fidelity import psnr, ssim
from worldkv.results import PolicyRollout, WorldRollouts, WorldTruth
from worldkv.rollout import ChunkRecord

TRUTH_VIDEO = "observation.images.truth"
ACTION_NAMES = ("right", "forward", "turn_degrees")
MIB = 2**20
# Per-frame figures of the memory; MiB because float32 counts bytes exactly only up to 16 million.
SCALARS = ("psnr", "ssim", "revisit", "generated", "missed", "window_tokens", "window_mib", "stored_mib")


def camera_actions(trajectory: Trajectory) -> NDArray[np.float32]:
    """Action i leads from frame i to frame i + 1, [F, A]: moves in world units along the camera's own axes, and its
    turn to the right in degrees. The last action is zero: nothing follows it."""
    step_F44 = relative_framewise(trajectory.c2w_F44)
    yaw_F = planar_coordinates(trajectory.c2w_F44).yaw_degrees_F
    turn_F = (np.diff(yaw_F) + 180) % 360 - 180
    actions_FA = np.zeros((len(trajectory), len(ACTION_NAMES)), np.float32)
    actions_FA[:-1] = np.stack([step_F44[1:, 0, 3], step_F44[1:, 2, 3], turn_F], axis=1)
    return actions_FA


def to_episode(
    world: WorldTruth, records: Sequence[ChunkRecord], *, fps: int, facts: Mapping[str, int | float | str]
) -> Episode:
    """The rollout of one policy as an episode; `facts` go into its metadata."""
    frames = np.concatenate([record.frames_FHWC for record in records])
    length = len(frames)
    per_frame = [record for record in records for _ in record.frames_FHWC]
    truth = world.truth_FHWC[:length]
    scalars = {
        "psnr": psnr(frames, truth),
        "ssim": ssim(frames, truth),
        "revisit": world.revisit_F[:length],
        "generated": [record.generated for record in per_frame],
        "missed": [record.missed for record in per_frame],
        "window_tokens": [record.window_tokens for record in per_frame],
        "window_mib": [record.live_bytes / MIB for record in per_frame],
        "stored_mib": [record.stored_bytes / MIB for record in per_frame],
    }
    return Episode(
        frames_FHWC=frames,
        c2w_F44=world.trajectory.c2w_F44[:length].astype(np.float32),
        intrinsics_F4=world.trajectory.intrinsics_F4[:length].astype(np.float32),
        action_FA=camera_actions(world.trajectory)[:length],
        action_names=ACTION_NAMES,
        task=f"walk through {world.trajectory.name}",
        fps=fps,
        retrieved=tuple(record.retrieved for record in per_frame),
        videos={TRUTH_VIDEO: truth},
        scalars={name: np.asarray(values, np.float32) for name, values in scalars.items()},
        metadata={
            "world": world.name,
            "world_seed": world.seed,
            "trajectory": world.trajectory.name,
            "given_frames": world.given_frames,
            **facts,
        },
    )


def to_worlds(episodes: Sequence[Episode], frames_per_chunk: int) -> tuple[WorldRollouts, ...]:
    """Episodes grouped by world, in order of appearance, each world with all its policies."""
    worlds: dict[str, list[Episode]] = {}
    for episode in episodes:
        worlds.setdefault(str(episode.metadata["world"]), []).append(episode)
    return tuple(_world(name, group, frames_per_chunk) for name, group in worlds.items())


def _world(name: str, group: Sequence[Episode], frames_per_chunk: int) -> WorldRollouts:
    first = group[0]
    return WorldRollouts(
        name=name,
        seed=int(first.metadata["world_seed"]),
        trajectory=Trajectory(
            c2w_F44=first.c2w_F44.astype(np.float64),
            intrinsics_F4=first.intrinsics_F4.astype(np.float64),
            name=str(first.metadata["trajectory"]),
        ),
        truth_FHWC=first.videos[TRUTH_VIDEO],
        revisit_F=first.scalars["revisit"] > 0,
        given_frames=int(first.metadata["given_frames"]),
        rollouts=tuple(_policy(episode, frames_per_chunk) for episode in group),
    )


def _policy(episode: Episode, frames_per_chunk: int) -> PolicyRollout:
    records = []
    for start in range(0, episode.length, frames_per_chunk):
        at = {name: float(episode.scalars[name][start]) for name in SCALARS}
        records.append(
            ChunkRecord(
                chunk=start // frames_per_chunk,
                frames_FHWC=episode.frames_FHWC[start : start + frames_per_chunk],
                generated=at["generated"] > 0,
                retrieved=episode.retrieved[start] if episode.retrieved else (),
                missed=round(at["missed"]),
                window_tokens=round(at["window_tokens"]),
                live_bytes=round(at["window_mib"] * MIB),
                stored_bytes=round(at["stored_mib"] * MIB),
            )
        )
    return PolicyRollout(
        policy=str(episode.metadata["policy"]),
        records=tuple(records),
        psnr_F=episode.scalars["psnr"],
        ssim_F=episode.scalars["ssim"],
    )
