"""What the rooms model is trained on: endless batches of short walks through worlds of their own, and their poses.

Shapes: B clips, F video frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from worldkv.models.rooms import layout, paths

# Worlds of training and validation, and of every benchmark (seeds below TRAIN_SEED), never meet.
TRAIN_SEED = 10**9
VALIDATION_SEED = layout.UNTRAINED_SEEDS
VALIDATION_CLIPS = 32


Walk = Callable[[layout.Layout, int, int], np.ndarray]
"""(layout, frames, seed) -> planar states [frames, 3]"""


class Clips(IterableDataset[dict[str, Tensor]]):
    """Endless batches of layouts and camera poses, dealt out to loader workers in turn."""

    def __init__(
        self, first_seed: int, batch: int, frames: int, skip: int = 0, stride: int = 1, walk: Walk = paths.training_clip
    ) -> None:
        """Batches skip, skip + stride, ... of the endless row, walked by `walk`."""
        self.first_seed, self.batch, self.frames = first_seed, batch, frames
        self.skip, self.stride, self.walk = skip, stride, walk

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for turn in itertools.count(worker, workers):
            yield self.make(self.skip + turn * self.stride)

    def make(self, number: int) -> dict[str, Tensor]:
        """Batch `number`: the fields of `layout.stack` and the poses `c2w_BF44`."""
        seeds = range(self.first_seed + number * self.batch, self.first_seed + (number + 1) * self.batch)
        worlds = [layout.draw(seed) for seed in seeds]
        walks = [self.walk(w, self.frames, seed) for w, seed in zip(worlds, seeds, strict=True)]
        batch = {name: torch.from_numpy(value) for name, value in layout.stack(worlds).items()}
        return batch | {"c2w_BF44": torch.from_numpy(paths.to_poses(np.stack(walks)))}


def first_frame_poses(c2w_BF44: Tensor, generator: torch.Generator | None) -> Tensor:
    """Poses relative to the first frame; with a generator, half of the clips are moved at random.

    The random half teaches the model places far from the origin, where long rollouts take it.
    """
    B = c2w_BF44.shape[0]
    rotation, centre = c2w_BF44[:, :1, :3, :3].transpose(-1, -2), c2w_BF44[:, :1, :3, 3:]
    relative = c2w_BF44.clone()
    relative[..., :3, :3] = rotation @ c2w_BF44[..., :3, :3]
    relative[..., :3, 3:] = rotation @ (c2w_BF44[..., :3, 3:] - centre)
    if generator is None:
        return relative
    draw = torch.rand(B, 3, device=c2w_BF44.device, generator=generator)
    offset = torch.where(draw[:, :1] < 0.5, 0.0, draw[:, 1:] * 12 - 6)
    relative[..., 0, 3] += offset[:, :1]
    relative[..., 2, 3] += offset[:, 1:]
    return relative


def held_out(frames: int) -> dict[str, dict[str, Tensor]]:
    """Clips to validate on: going and coming back the same way, and seeing the same room from elsewhere.

    In the first two a neighbour is at hand; in the third none is.
    """
    pace = paths.Pace()

    def returning(world: layout.Layout, frames: int, seed: int) -> np.ndarray:
        return paths.back(world, frames, pace, seed)

    def patrolling(world: layout.Layout, frames: int, seed: int) -> np.ndarray:
        return paths.patrol(world, frames, pace, seed)

    def scattering(world: layout.Layout, frames: int, seed: int) -> np.ndarray:
        return paths.scattered(paths.patrol, world, frames, pace, seed, per_chunk=3)

    clips = {"back": returning, "patrol": patrolling, "scattered": scattering}
    return {name: Clips(VALIDATION_SEED, VALIDATION_CLIPS, frames, walk=walk).make(0) for name, walk in clips.items()}
