"""Walks through a layout: training clips, and the `back` and `roam` paths of the memory benchmark.

A walk is an array of planar states [F, 3] = (x, z, yaw in radians; yaw 0 looks along +z, positive turns right).
Everything here is a pure function of the layout and a seed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldkv.errors import TrajectoryError
from worldkv.models.rooms.layout import FREE, GRID, WALL, Layout

# Nearer than this the image is one flat colour, which nobody can tell from another.
CLEARANCE = 0.32
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pace:
    """How far one video frame goes."""

    turn_degrees: float = 6.0
    distance: float = 0.1


def to_poses(walk_F3: Floats) -> NDArray[np.float32]:
    """Camera-to-world matrices [F, 4, 4] of a walk, OpenCV axes, camera at y = 0."""
    x, z, yaw = np.moveaxis(np.asarray(walk_F3, np.float64), -1, 0)
    c2w = np.zeros((*x.shape, 4, 4))
    c2w[..., 0, 0] = c2w[..., 2, 2] = np.cos(yaw)
    c2w[..., 0, 2], c2w[..., 2, 0] = np.sin(yaw), -np.sin(yaw)
    c2w[..., 1, 1] = c2w[..., 3, 3] = 1.0
    c2w[..., 0, 3], c2w[..., 2, 3] = x, z
    return c2w.astype(np.float32)


def is_clear(layout: Layout, x: float, z: float) -> bool:
    """Whether the camera may stand at (x, z): inside the world, away from walls and objects."""
    if not (1 <= x <= GRID - 1 and 1 <= z <= GRID - 1):
        return False
    for dx in (-CLEARANCE, 0.0, CLEARANCE):
        for dz in (-CLEARANCE, 0.0, CLEARANCE):
            if layout.cells_GG[int(x + dx), int(z + dz)] == WALL:
                return False
    thing = layout.object_xzrh_K4
    gap = np.hypot(thing[:, 0] - x, thing[:, 1] - z) - thing[:, 2]
    return bool(np.all((gap > 0.2) | (thing[:, 2] == 0)))


def wander(layout: Layout, frames: int, pace: Pace, seed: int) -> Floats:
    """A random walk [frames, 3]: turns and strides of random length, never into a wall."""
    rng = np.random.default_rng([0x3A11, seed])
    state = _start(layout, rng)
    walk, turn, stride, left = [state], 0.0, 0.0, 0
    for _ in range(frames - 1):
        if left <= 0:
            turn, stride, left = _next_move(rng)
        x, z, yaw = state
        yaw += turn * np.radians(pace.turn_degrees)
        ahead = (x + stride * pace.distance * np.sin(yaw), z + stride * pace.distance * np.cos(yaw))
        if stride and not is_clear(layout, *ahead):
            turn, stride, left = float(rng.choice([-1, 1])), 0.0, int(rng.integers(8, 20))
        elif stride:
            x, z = ahead
        state = (float(x), float(z), float(yaw))
        walk.append(state)
        left -= 1
    return np.array(walk)


def _next_move(rng: np.random.Generator) -> tuple[float, float, int]:
    """(turn, stride, frames): look around, walk on, or walk a curve."""
    kind = rng.random()
    if kind < 0.4:
        return float(rng.choice([-1, 1])), 0.0, int(rng.integers(4, 24))
    if kind < 0.75:
        return 0.0, float(rng.choice([1, 1, 1, -1])), int(rng.integers(4, 20))
    return float(rng.choice([-1, 1])) * rng.uniform(0.3, 1), 1.0, int(rng.integers(5, 20))


def _start(layout: Layout, rng: np.random.Generator) -> tuple[float, float, float]:
    """A clear spot; the middle of a random free cell, else anywhere that is clear."""
    free = np.argwhere(layout.cells_GG == FREE)
    for i, j in free[rng.permutation(len(free))]:
        if is_clear(layout, i + 0.5, j + 0.5):
            return (i + 0.5, j + 0.5, float(rng.uniform(0, 2 * np.pi)))
    raise TrajectoryError("this layout has no free cell with room to stand")


def back(layout: Layout, frames: int, pace: Pace, seed: int) -> Floats:
    """Out for the first half, then exactly back: frame `frames - 1 - i` has the pose of frame i."""
    if frames % 2:
        raise TrajectoryError(f"a there-and-back path needs an even number of frames, got {frames}")
    out = wander(layout, frames // 2, pace, seed)
    return np.concatenate([out, out[::-1]])


def roam(layout: Layout, frames: int, pace: Pace, seed: int) -> Floats:
    """Walk between a few places again and again, each time in another order and so from other directions.

    The places are visited in a first round, then revisited in shuffled rounds; between two places the camera
    takes the shortest way over the grid and looks where it goes, with a look around at each arrival.
    """
    rng = np.random.default_rng([0x0A3, seed])
    x, z, yaw = _start(layout, rng)
    # As many places as the first half has time for: some 40 frames go into reaching and viewing one.
    places = _places_near(layout, (int(x), int(z)), count=max(2, min(8, frames // 60 + 1)), rng=rng)
    walk = [(x, z, yaw)]
    while len(walk) < frames:
        for place in rng.permutation(len(places)):
            _go(layout, walk, places[place], pace)
            _look_around(walk, pace, rng)
    return np.array(walk[:frames])


def _places_near(
    layout: Layout, cell: tuple[int, int], *, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """The start cell and others a few steps away, so that a round fits into the first half."""
    steps = _steps_from(layout, cell)
    near = [c for c, n in steps.items() if 2 <= n <= 7 and is_clear(layout, c[0] + 0.5, c[1] + 0.5)]
    picked = [near[i] for i in rng.permutation(len(near))[: count - 1]]
    return [cell, *picked]


def _steps_from(layout: Layout, cell: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Breadth-first distance in cells from `cell` to every cell with room to stand in its middle."""
    steps, queue = {cell: 0}, deque([cell])
    while queue:
        i, j = queue.popleft()
        for step in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            inside = 0 < step[0] < GRID - 1 and 0 < step[1] < GRID - 1
            if inside and step not in steps and is_clear(layout, step[0] + 0.5, step[1] + 0.5):
                steps[step] = steps[i, j] + 1
                queue.append(step)
    return steps


def _go(layout: Layout, walk: list[tuple[float, float, float]], goal: tuple[int, int], pace: Pace) -> None:
    """Extend `walk` to the middle of `goal`, cell by cell down the breadth-first distance."""
    steps = _steps_from(layout, goal)
    cell = (int(walk[-1][0]), int(walk[-1][1]))
    while cell != goal and cell in steps:
        around = [(cell[0] + di, cell[1] + dj) for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        cell = min((c for c in around if c in steps), key=lambda c: steps[c])
        _walk_to(walk, (cell[0] + 0.5, cell[1] + 0.5), pace)


def _walk_to(walk: list[tuple[float, float, float]], target: tuple[float, float], pace: Pace) -> None:
    """Turn towards the target and walk; small turns are made while walking."""
    most = np.radians(pace.turn_degrees)
    while True:
        x, z, yaw = walk[-1]
        away = float(np.hypot(target[0] - x, target[1] - z))
        if away < 1e-6:
            return
        off = _wrap(np.arctan2(target[0] - x, target[1] - z) - yaw)
        turn = float(np.clip(off, -most, most))
        step = min(pace.distance, away) if abs(off) < np.radians(30) else 0.0
        walk.append((x + step * (target[0] - x) / away, z + step * (target[1] - z) / away, yaw + turn))


def _look_around(walk: list[tuple[float, float, float]], pace: Pace, rng: np.random.Generator) -> None:
    side, frames = float(rng.choice([-1, 1])), int(rng.integers(6, 16))
    for _ in range(frames):
        x, z, yaw = walk[-1]
        walk.append((x, z, yaw + side * np.radians(pace.turn_degrees)))


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def training_clip(layout: Layout, frames: int, seed: int) -> Floats:
    """A short walk at a random pace: wandering, or leaving and coming back."""
    rng = np.random.default_rng([0x7C11, seed])
    pace = Pace(turn_degrees=float(rng.uniform(2, 9)), distance=float(rng.uniform(0.03, 0.15)))
    kind = rng.random()
    if kind < 0.3:
        return wander(layout, frames, pace, seed)
    if kind < 0.5:
        return roam(layout, frames, pace, seed)
    # Out, back, and out again: what was seen early is seen again at every distance in time.
    out = wander(layout, int(rng.integers(frames // 6, max(frames - 6, frames // 6 + 1))), pace, seed)
    return np.concatenate([out, out[::-1], out, out[::-1], out, out[::-1]])[:frames]
