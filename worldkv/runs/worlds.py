"""The worlds of a run: the camera's way through each, cut to whole chunks, and what it really looks like.

Shapes: F video frames.
"""

from __future__ import annotations

import numpy as np

from worldkv.camera import Motion, Trajectory, load_trajectory, trajectory_from_notation
from worldkv.camera import Pace as NotationPace
from worldkv.config import RunConfig
from worldkv.errors import TrajectoryError
from worldkv.memory.policy import MemoryPolicy
from worldkv.models.rooms.model import RoomsModel
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.results import WorldTruth


def check(config: RunConfig, model: RoomsModel) -> int:
    """The length of every world's trajectory in chunks. Raises TrajectoryError if any world can't be walked so."""
    chunk, seeds = model.geometry.chunk_latent_frames, range(config.worlds.first_seed, _end(config))
    # Only ways that come from outside can fail in one world and not in another.
    given = config.trajectory.kind in ("notation", "files")
    lengths = [len(_way(config, model, _scene(model, seed))) for seed in (seeds if given else seeds[:1])]
    return lengths[0] // chunk


def draw(config: RunConfig, model: RoomsModel, seed: int) -> WorldTruth:
    """World `seed`, rendered along its trajectory, with its revisits."""
    scene, chunk = _scene(model, seed), model.geometry.chunk_latent_frames
    trajectory = _way(config, model, scene)
    truth, depth = scene.truth(trajectory)
    # The recent window of the default policies; one definition of a revisit for all of them.
    recent = MemoryPolicy("").recent_chunks or 0
    half = len(trajectory) // 2 // chunk * chunk
    return WorldTruth(
        name=name_of(seed),
        seed=seed,
        trajectory=trajectory,
        truth_FHWC=truth,
        revisit_F=scene.revisits(trajectory, depth, chunk=chunk, recent_chunks=recent),
        given_frames=max(half, chunk) if config.history == "truth" else chunk,
    )


def name_of(seed: int) -> str:
    """What the world is called in the dataset."""
    return f"rooms-{seed}"


def _end(config: RunConfig) -> int:
    return config.worlds.first_seed + config.worlds.count


def _scene(model: RoomsModel, seed: int) -> Scene:
    return Scene(seed, model.latent_shape[1], model.device)


def _way(config: RunConfig, model: RoomsModel, scene: Scene) -> Trajectory:
    """The trajectory through one world in whole chunks, of which the first is shown and another must follow."""
    whole, chunk = _trajectory(config, model, scene), model.geometry.chunk_latent_frames
    if len(whole) < 2 * chunk:
        raise TrajectoryError(
            f"{whole.name}: has {len(whole)} poses, at least {2 * chunk} are needed: two chunks of {chunk}"
        )
    frames = len(whole) // chunk * chunk
    actions = None if whole.actions is None else whole.actions[:frames]
    return Trajectory(whole.c2w_F44[:frames], whole.intrinsics_F4[:frames], actions, whole.name)


def _trajectory(config: RunConfig, model: RoomsModel, scene: Scene) -> Trajectory:
    wanted = config.trajectory
    if wanted.kind == "notation":
        assert wanted.notation is not None
        motion = Motion(wanted.turn_degrees_per_frame, wanted.distance_per_frame)
        pace = NotationPace(motion, move_frames=max(1, round(1 / wanted.distance_per_frame)))
        return scene.place(trajectory_from_notation(wanted.notation, pace=pace, intrinsics=model.intrinsics))
    if wanted.kind == "files":
        return scene.place(_from_files(config, model))
    pace_of_walk = Pace(wanted.turn_degrees_per_frame, wanted.distance_per_frame)
    return scene.trajectory(wanted.kind, wanted.video_frames // 2 * 2, pace_of_walk)


def _from_files(config: RunConfig, model: RoomsModel) -> Trajectory:
    folder = config.trajectory.folder
    assert folder is not None
    if not folder.exists():
        raise TrajectoryError(f"{folder}: no such trajectory folder (trajectory.folder)")
    needed = 2 * model.geometry.chunk_latent_frames
    found = load_trajectory(folder, default_intrinsics=model.intrinsics, minimum_frames=needed)
    other_F = ~np.isclose(found.intrinsics_F4, model.intrinsics, rtol=1e-3).all(axis=1)
    if other_F.any():
        frame = int(other_F.argmax())
        raise TrajectoryError(
            f"{folder}: frame {frame} has intrinsics {_row(found.intrinsics_F4[frame])}, the {model.name} model "
            f"knows only {_row(model.intrinsics)}; without intrinsics.npy it takes its own"
        )
    return found


def _row(intrinsics: object) -> str:
    return " ".join(f"{value:g}" for value in np.asarray(intrinsics))
