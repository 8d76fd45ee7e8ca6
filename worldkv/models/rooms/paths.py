"""Walks through a layout: training clips, and the `back` and `roam` paths of the memory benchmark.

A walk is an array of planar states [F, 3] = (x, z, yaw in radians; yaw 0 looks along +z, positive turns right).
Everything here is a pure function of the layout and a seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldkv.errors import TrajectoryError
from worldkv.models.rooms.layout import FREE, GRID, WALL, Layout

# Nearer than this the image is one flat colour, which nobody can tell from another.
CLEARANCE = 0.32
# A straight way is tried every so many cells.
WAY_STEP = 0.03
# How far from a place, in cells, `roam` strays when it comes back to it.
NEARBY = 0.9
# Share of the training clips whose chunks lie scattered over a walk so many times as long.
SCATTERED, SCATTERED_FROM = 0.5, 3
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
    return bool(_clear(layout, np.array([x]), np.array([z])))


def _clear(layout: Layout, x_N: Floats, z_N: Floats, clearance: float = CLEARANCE) -> bool:
    """Whether the camera may stand at all of the places."""
    if not (np.all((x_N >= 1) & (x_N <= GRID - 1)) and np.all((z_N >= 1) & (z_N <= GRID - 1))):
        return False
    around = np.array([-clearance, 0.0, clearance])
    i, j = (x_N[:, None, None] + around[:, None]).astype(int), (z_N[:, None, None] + around).astype(int)
    if (layout.cells_GG[i, j] == WALL).any():
        return False
    thing = layout.object_xzrh_K4
    gap = np.hypot(thing[:, 0] - x_N[:, None], thing[:, 1] - z_N[:, None]) - thing[:, 2]
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
    """See a few places all round in the first half; in the second, come back to them and see them from elsewhere.

    Between two places the camera takes the shortest way over the grid and looks where it goes. At a place it strafes
    about: the first time through a full circle, later looking where chance will have it.
    """
    rng = np.random.default_rng([0x0A3, seed])
    walk = [_start(layout, rng)]
    places = _places_near(layout, (int(walk[0][0]), int(walk[0][1])), count=max(1, frames // 200), rng=rng)
    half, met = max(1, frames // 2), 0
    while len(walk) < half:
        place = places[met % len(places)]
        _go(layout, walk, place, pace)
        met += 1
        turned, side = 0.0, rng.choice([-1, 1])
        while turned < 2 * np.pi:
            turn = rng.uniform(0.3, 1) * np.pi
            _drift(walk, _in_sight(layout, walk[-1][:2], place, NEARBY, rng), side * turn, pace)
            turned += turn
    del walk[half:]
    while len(walk) < frames:
        for place in rng.permutation(max(1, min(met, len(places)))):
            _go(layout, walk, places[place], pace)
            for _ in range(rng.integers(2, 5)):
                _drift(walk, _in_sight(layout, walk[-1][:2], places[place], NEARBY, rng), _any_turn(rng), pace)
    return np.array(walk[:frames])


def _places_near(
    layout: Layout, cell: tuple[int, int], *, count: int, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """The middles of the start cell and of others a few steps away."""
    steps = _steps_from(layout, cell)
    near = [c for c, n in steps.items() if 2 <= n <= 5 and is_clear(layout, c[0] + 0.5, c[1] + 0.5)]
    picked = [near[i] for i in rng.permutation(len(near))[: count - 1]]
    return [(i + 0.5, j + 0.5) for i, j in (cell, *picked)]


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


def _go(layout: Layout, walk: list[tuple[float, float, float]], place: tuple[float, float], pace: Pace) -> None:
    """Extend `walk` to the cell of `place`, cell by cell down the breadth-first distance."""
    goal = (int(place[0]), int(place[1]))
    steps = _steps_from(layout, goal)
    cell = (int(walk[-1][0]), int(walk[-1][1]))
    if cell != goal and cell in steps:  # from elsewhere in the cell, the way to the next would cut a corner
        _walk_to(walk, (cell[0] + 0.5, cell[1] + 0.5), pace)
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


def _drift(walk: list[tuple[float, float, float]], goal: tuple[float, float], turn: float, pace: Pace) -> None:
    """Extend `walk` straight to `goal` while the camera turns by `turn` radians."""
    x, z, yaw = walk[-1]
    away = float(np.hypot(goal[0] - x, goal[1] - z))
    frames = max(1, int(np.ceil(max(away / pace.distance, abs(turn) / np.radians(pace.turn_degrees)))))
    shares = np.arange(1, frames + 1) / frames
    walk += [(x + s * (goal[0] - x), z + s * (goal[1] - z), yaw + s * turn) for s in shares]


def _any_turn(rng: np.random.Generator) -> float:
    return float(rng.uniform(-np.pi, np.pi) * rng.choice([0.3, 1.0]))


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def patrol(layout: Layout, frames: int, pace: Pace, seed: int) -> Floats:
    """Criss-cross a small area, looking where chance will have it: the same surfaces from ever new places [frames, 3].

    Unlike in the other walks the camera looks independently of where it goes: it strafes and backs up.
    """
    rng = np.random.default_rng([0x9A7, seed])
    walk = [_start(layout, rng)]
    home, reach = walk[0][:2], float(rng.uniform(0.5, 3.0))
    while len(walk) < frames:
        _drift(walk, _in_sight(layout, walk[-1][:2], home, reach, rng), _any_turn(rng), pace)
    return np.array(walk[:frames])


def _in_sight(
    layout: Layout, here: tuple[float, float], home: tuple[float, float], reach: float, rng: np.random.Generator
) -> tuple[float, float]:
    """A place within `reach` of home to which a straight line leads; `here` when a few tries find none."""
    for _ in range(12):
        goal = (home[0] + rng.uniform(-reach, reach), home[1] + rng.uniform(-reach, reach))
        away = float(np.hypot(goal[0] - here[0], goal[1] - here[1]))
        share_N = np.linspace(0, 1, 2 + int(away / WAY_STEP))
        x_N, z_N = (here[axis] + share_N * (goal[axis] - here[axis]) for axis in (0, 1))
        # Between two places tried it may come a little nearer to a corner.
        if _clear(layout, x_N[1:], z_N[1:], CLEARANCE + WAY_STEP):
            return goal
    return here


def scattered(
    walk: Callable[[Layout, int, Pace, int], Floats], layout: Layout, frames: int, pace: Pace, seed: int, per_chunk: int
) -> Floats:
    """Chunks picked here and there from a longer walk, in any order [frames, 3].

    No neighbour is at hand to lean on: what one chunk shows must be found in others that saw it from afar.
    """
    chunks = walk(layout, SCATTERED_FROM * frames, pace, seed).reshape(-1, per_chunk, 3)
    return np.random.default_rng([0x5CA7, seed]).permutation(chunks)[: frames // per_chunk].reshape(-1, 3)


def training_clip(layout: Layout, frames: int, seed: int, per_chunk: int = 3) -> Floats:
    """A short walk at a random pace [frames, 3]: mostly one that sees the same surfaces again from elsewhere."""
    rng = np.random.default_rng([0x7C11, seed])
    pace = Pace(turn_degrees=float(rng.uniform(2, 13)), distance=float(rng.uniform(0.03, 0.25)))
    kind = rng.random()
    if kind < SCATTERED:
        return scattered(patrol if kind < 0.7 * SCATTERED else roam, layout, frames, pace, seed, per_chunk)
    if kind < 0.65:
        return patrol(layout, frames, pace, seed)
    if kind < 0.75:
        return roam(layout, frames, pace, seed)
    if kind < 0.83:
        return wander(layout, frames, pace, seed)
    # Out, back, and out again: what was seen early is seen again at every distance in time.
    out = wander(layout, int(rng.integers(frames // 6, max(frames - 6, frames // 6 + 1))), pace, seed)
    return np.concatenate([out, out[::-1], out, out[::-1], out, out[::-1]])[:frames]
