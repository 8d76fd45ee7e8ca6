"""One rooms world as a place to go: trajectories through it, its true frames, and which of them are revisits.

Shapes: F video frames, H W pixels, S seen frames, P probe pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from worldkv.camera import Trajectory, relative_to_first
from worldkv.errors import TrajectoryError
from worldkv.models.rooms import layout, paths
from worldkv.models.rooms.render import FAR, View, render

Floats = NDArray[np.float64]
PathKind = Literal["back", "roam", "wander"]
PATHS = {"back": paths.back, "roam": paths.roam, "wander": paths.wander}
# Every fourth pixel each way decides about a frame: 400 of 6,400.
PROBE_STRIDE = 4
# A seen surface may lie this much before or behind what the depth maps around its pixel say.
DEPTH_TOLERANCE = 0.03
REVISIT_SHARE = 0.95
# Directions tried at each free cell when a foreign trajectory looks for a place to begin.
START_HEADINGS = 8
LEVEL_TOLERANCE = 1e-3
RENDER_BATCH = {"cpu": 32, "cuda": 192}  # frames at once: what caches like here, what fills a GPU there


class Scene:
    """The world of `seed` seen by square pictures of `size` pixels and a 90 degree view."""

    def __init__(self, seed: int, size: int, device: torch.device | None = None) -> None:
        self.seed, self.device = seed, device or torch.device("cpu")
        self.view = View(size, size, size / 2)
        self.layout = layout.draw(seed)
        self._world = {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
            for name, value in layout.stack([self.layout]).items()
        }

    def trajectory(self, kind: PathKind, frames: int, pace: paths.Pace, seed: int = 0) -> Trajectory:
        """A walk of `frames` poses through this world."""
        walk = PATHS[kind](self.layout, frames, pace, seed=self.seed * 1000 + seed)
        return Trajectory(
            c2w_F44=paths.to_poses(walk).astype(np.float64),
            intrinsics_F4=np.tile(self.view.intrinsics, (frames, 1)),
            name=f"rooms-{self.seed}-{kind}-{frames}",
        )

    def place(self, trajectory: Trajectory) -> Trajectory:
        """The same way through this world, begun where it runs into nothing: at the world's start if it can.

        Raises TrajectoryError where it fits nowhere, or is not level: this world is walked, not flown.
        """
        relative_F44 = relative_to_first(trajectory.c2w_F44)
        _check_level(relative_F44, trajectory.name)
        farthest = -1
        for start_44 in self._starts():
            c2w_F44 = start_44 @ relative_F44
            blocked = self._first_blocked(c2w_F44)
            if blocked is None:
                return Trajectory(c2w_F44, trajectory.intrinsics_F4, trajectory.actions, trajectory.name)
            farthest = max(farthest, blocked)
        raise TrajectoryError(
            f"{trajectory.name}: fits nowhere into rooms world {self.seed}; wherever it begins, it runs into a wall or "
            f"an object by frame {farthest}. Try another world (worlds.first_seed), smaller moves, or turns only"
        )

    def _starts(self) -> Iterator[Floats]:
        """Poses to begin at: the world's own start, then every free cell looking every way."""
        yield paths.to_poses(paths.wander(self.layout, 1, paths.Pace(), seed=self.seed))[0].astype(np.float64)
        for x, z in np.argwhere(self.layout.cells_GG == layout.FREE) + 0.5:
            for yaw in np.linspace(0, 2 * np.pi, START_HEADINGS, endpoint=False):
                yield paths.to_poses(np.array([[x, z, yaw]]))[0].astype(np.float64)

    def _first_blocked(self, c2w_F44: Floats) -> int | None:
        """The first frame at which, or on the way to which, there is something in the way."""
        place_F2 = c2w_F44[:, [0, 2], 3]
        before = place_F2[0]
        for frame, place in enumerate(place_F2):
            # Between frames too: a long step must not jump through a wall.
            steps = 1 + int(np.hypot(*(place - before)) / paths.CLEARANCE)
            way = [before + (place - before) * step / steps for step in range(1, steps + 1)]
            if not all(paths.is_clear(self.layout, float(x), float(z)) for x, z in way):
                return frame
            before = place
        return None

    def truth(self, trajectory: Trajectory) -> tuple[NDArray[np.uint8], Tensor]:
        """True frames [F, H, W, 3] uint8 and depth [F, H, W] on the scene's device."""
        c2w = torch.from_numpy(trajectory.c2w_F44.astype(np.float32)).to(self.device)
        colours, depths = [], []
        for part in torch.split(c2w, RENDER_BATCH[self.device.type]):
            colour, depth = render(self._world, part[None], self.view)
            colours.append((colour[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu())
            depths.append(depth[0])
        return torch.cat(colours).numpy(), torch.cat(depths)

    def revisits(
        self, trajectory: Trajectory, depth_FHW: Tensor, *, chunk: int, recent_chunks: int, given: int | None = None
    ) -> NDArray[np.bool_]:
        """Which frames show, in at least REVISIT_SHARE of their pixels, surface seen before the recent window.

        Seen are those of the first `given` frames (default: of all) whose chunk (of `chunk` frames) is older than the
        frame's own chunk and the `recent_chunks` before that. The sky counts as a surface, infinitely far.
        """
        c2w = torch.from_numpy(trajectory.c2w_F44.astype(np.float32)).to(self.device)
        nearest, farthest = _depth_range(depth_FHW)
        shares = torch.zeros(len(c2w), device=self.device)
        for start in range(0, len(c2w), chunk):
            seen = min(len(c2w) if given is None else given, (start // chunk - recent_chunks) * chunk)
            if seen > 0:
                probes = [
                    self._probe(*view) for view in zip(c2w[start:][:chunk], depth_FHW[start:][:chunk], strict=True)
                ]
                shown = self._shown(torch.cat(probes), c2w[:seen], nearest[:seen], farthest[:seen])
                shares[start : start + len(probes)] = shown.view(len(probes), -1).float().mean(1)
        return (shares >= REVISIT_SHARE).cpu().numpy()

    def _probe(self, c2w_44: Tensor, depth_HW: Tensor) -> Tensor:
        """World points [P, 3] behind every PROBE_STRIDE-th pixel; sky lies FAR out."""
        view = self.view
        rows = torch.arange(PROBE_STRIDE // 2, view.height, PROBE_STRIDE, device=self.device)
        columns = torch.arange(PROBE_STRIDE // 2, view.width, PROBE_STRIDE, device=self.device)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        depth = depth_HW[y, x].flatten()
        across = (x.flatten() + 0.5 - view.width / 2) / view.focal
        down = (y.flatten() + 0.5 - view.height / 2) / view.focal
        ray = torch.stack([across, down, torch.ones_like(depth)], -1)
        return c2w_44[:3, 3] + (ray * depth[:, None]) @ c2w_44[:3, :3].T

    def _shown(self, points_P3: Tensor, c2w_S44: Tensor, nearest_SHW: Tensor, farthest_SHW: Tensor) -> Tensor:
        """Whether each point was visible in any of the seen frames, [P]."""
        local = torch.einsum("sji,spj->spi", c2w_S44[:, :3, :3], points_P3 - c2w_S44[:, None, :3, 3])
        z = local[..., 2]
        x = local[..., 0] / z * self.view.focal + self.view.width / 2
        y = local[..., 1] / z * self.view.focal + self.view.height / 2
        inside = (z > 0) & (x >= 0) & (x < self.view.width) & (y >= 0) & (y < self.view.height)
        pixel = y.clamp(0, self.view.height - 1).long() * self.view.width + x.clamp(0, self.view.width - 1).long()
        low = nearest_SHW.flatten(1).gather(1, pixel) * (1 - DEPTH_TOLERANCE)
        high = farthest_SHW.flatten(1).gather(1, pixel) * (1 + DEPTH_TOLERANCE)
        return (inside & (z >= low) & (z <= high)).any(0)


def _check_level(relative_F44: Floats, name: str) -> None:
    height_F, down_F3 = relative_F44[:, 1, 3], relative_F44[:, :3, 1]
    off_F = (np.abs(height_F) > LEVEL_TOLERANCE) | (np.abs(down_F3 - (0, 1, 0)).max(axis=1) > LEVEL_TOLERANCE)
    if off_F.any():
        raise TrajectoryError(
            f"{name}: frame {int(off_F.argmax())}: the camera tilts, rolls, or leaves the height of frame 0; "
            "in rooms worlds it may only move on the ground plane and turn about the vertical"
        )


def _depth_range(depth_FHW: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest depth among each pixel and its eight neighbours."""
    padded = fn.pad(depth_FHW[:, None], (1, 1, 1, 1), mode="replicate")
    farthest = fn.max_pool2d(padded, 3, stride=1)[:, 0]
    nearest = -fn.max_pool2d(-padded, 3, stride=1)[:, 0]
    return nearest, farthest.clamp(max=2 * FAR)
