"""The camera as LingBot takes it: per latent frame a map of rays, in the frame of the latent frame before.

All in float32 and in the published order of operations, where `worldkv.camera` would have more digits: the rays are
rounded to bfloat16 afterwards, and one that lies on a border between two would go to the other side.

Shapes: F video frames, N latent frames, P pixels, C channels, H rows, W columns at latent resolution.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldkv.camera import ACTION_COLUMNS, LINGBOT_MOVE_COLUMNS, LINGBOT_SIZE, PictureSize, Trajectory, fold_pixels
from worldkv.camera.poses import VIDEO_FRAMES_PER_LATENT_FRAME
from worldkv.errors import ModelError
from worldkv.models.base import View

Control = Literal["cam", "act"]
"""cam: centres and directions of rays; act: directions, and the move keys."""
FOLD = 8
"""Pixels along one side of a latent pixel, folded into channels."""
PIXEL_CENTRE = 0.5
MOVES = [ACTION_COLUMNS.index(key) for key in LINGBOT_MOVE_COLUMNS]


def latent_poses(c2w_F44: NDArray[np.floating]) -> Tensor:
    """Poses of the latent frames of whole chunks, [N, 4, 4] float32."""
    return torch.from_numpy(np.array(c2w_F44[::VIDEO_FRAMES_PER_LATENT_FRAME], np.float32))


def longest_step(trajectory: Trajectory) -> float:
    """Farthest way between two latent frames in a row, the unit of length the model thinks in; 1 where none moves."""
    c2w_N44 = latent_poses(trajectory.c2w_F44)
    longest = float(_steps(c2w_N44[0], c2w_N44, starts=True)[:, :3, 3].norm(dim=-1).max())
    return longest if longest > 0 else 1.0


def camera_map(
    view: View, first_44: Tensor, before_44: Tensor | None, unit: float, size: PictureSize, control: Control
) -> NDArray[np.float32]:
    """Map [C, N, H, W] of one chunk.

    `first_44` is the pose of the rollout's first latent frame, `before_44` that of the one before the chunk, None
    where there is none; `unit` is a length. As published, the first row of the view's intrinsics serves all its frames;
    it belongs to LINGBOT_SIZE. Raises ModelError where `act` has no actions.
    """
    c2w_N44 = latent_poses(view.c2w_F44)
    if before_44 is not None:
        c2w_N44 = torch.cat([before_44[None], c2w_N44])
    steps_N44 = _steps(first_44, c2w_N44, starts=before_44 is None)
    direction_NP3 = _directions(view.intrinsics_F4[0], size) @ steps_N44[:, :3, :3].transpose(-1, -2)
    if control == "cam":
        centre_NP3 = (steps_N44[:, :3, 3] / unit)[:, None].expand_as(direction_NP3)
        return _folded(torch.cat([centre_NP3, direction_NP3], dim=-1), size)
    directions = _folded(direction_NP3, size)
    return np.concatenate([directions, _moves(view, directions.shape[2:])])


def _steps(first_44: Tensor, c2w_N44: Tensor, *, starts: bool) -> Tensor:
    """Each pose in the frame of the one before, by way of the first frame's.

    Where the rollout `starts` here the first step leads nowhere; else it is left out, and N - 1 are given.
    """
    relative = _inverse(first_44[None]) @ c2w_N44
    if starts:
        relative[0] = torch.eye(4)
    steps = torch.bmm(_inverse(relative[:-1]), relative[1:])
    return torch.cat([relative[:1], steps]) if starts else steps


def _inverse(c2w_N44: Tensor) -> Tensor:
    back_N33 = c2w_N44[:, :3, :3].transpose(-1, -2)
    inverse = torch.eye(4).repeat(len(c2w_N44), 1, 1)
    inverse[:, :3, :3] = back_N33
    inverse[:, :3, 3:] = -torch.bmm(back_N33, c2w_N44[:, :3, 3:])
    return inverse


def _directions(intrinsics_4: NDArray[np.floating], size: PictureSize) -> Tensor:
    """Unit directions through all pixels in the camera's frame, [P, 3]."""
    fx, fy, cx, cy = torch.from_numpy(np.array(intrinsics_4, np.float32))
    across, down = size.width / LINGBOT_SIZE.width, size.height / LINGBOT_SIZE.height
    column, row = (torch.arange(side, dtype=torch.float32) + PIXEL_CENTRE for side in (size.width, size.height))
    y, x = torch.meshgrid((row - cy * down) / (fy * down), (column - cx * across) / (fx * across), indexing="ij")
    directions = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
    unit: Tensor = directions / directions.norm(dim=-1, keepdim=True)
    return unit


def _folded(rays_NPC: Tensor, size: PictureSize) -> NDArray[np.float32]:
    return fold_pixels(torch.unflatten(rays_NPC, 1, tuple(size)).numpy(), FOLD)


def _moves(view: View, grid: tuple[int, ...]) -> NDArray[np.float32]:
    """The move keys of each latent frame, the same everywhere, [C, N, H, W]."""
    if view.actions_FA is None:
        raise ModelError("LingBot weights of the act kind need the actions of the trajectory, which has only poses")
    held_NA = view.actions_FA[::VIDEO_FRAMES_PER_LATENT_FRAME, MOVES]
    moves_CN = np.repeat(held_NA.T, FOLD**2, axis=0)
    return np.broadcast_to(moves_CN[..., None, None], (*moves_CN.shape, *grid)).astype(np.float32)
