"""Random floor plans: which cells are wall or doorway, how every face looks, what stands in the rooms.

A plan is a GRID x GRID grid of unit cells on the ground plane; cell (i, j) spans x in [i, i+1], z in [j, j+1].
Colours and patterns are drawn per wall face, so a model cannot know an unseen face from its weights: what it
shows there again must come from memory.

Shapes: G cells per side, K objects. Pure functions of a seed.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

GRID = 13
OBJECTS = 6
PATTERNS = 10

# Worlds below this seed are for runs and benchmarks: training and its validation draw theirs above.
UNTRAINED_SEEDS = 5 * 10**8

FREE, WALL, DOOR = 0, 1, 2
# Faces are named by the side of the cell on which the viewer stands.
WEST, EAST, SOUTH, NORTH = 0, 1, 2, 3  # -x, +x, -z, +z
BALL, PILLAR = 0, 1

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """One world as plain arrays; lengths in cells, colours in [0, 1], y up from the floor."""

    cells_GG: Ints
    face_base_GG43: Floats
    face_accent_GG43: Floats
    face_pattern_GG4: Ints
    floor_GG23: Floats
    object_xzrh_K4: Floats  # radius 0 means: no object
    object_kind_K: Ints
    object_base_K3: Floats
    object_accent_K3: Floats
    sky_43: Floats  # zenith, horizon, mountain, sun
    sky_angles_6: Floats  # sun azimuth, sun elevation, four mountain phases, radians


def stack(layouts: list[Layout]) -> dict[str, NDArray[np.generic]]:
    """The arrays of several layouts stacked along a new first axis, keyed by field name."""
    return {f.name: np.stack([getattr(x, f.name) for x in layouts]) for f in fields(Layout)}


def draw(seed: int) -> Layout:
    """The world of `seed`: always the same, on every machine."""
    rng = np.random.default_rng([0x9E37, seed])
    xs, zs = _room_lines(rng), _room_lines(rng)
    cells = _walls_and_doors(rng, xs, zs)
    room_of = _room_index(xs, zs)
    base, accent, pattern = _faces(rng, room_of)
    xzrh, kind, colour, band = _objects(rng, cells)
    return Layout(
        cells_GG=cells,
        face_base_GG43=base,
        face_accent_GG43=accent,
        face_pattern_GG4=pattern,
        floor_GG23=_floor(rng, room_of),
        object_xzrh_K4=xzrh,
        object_kind_K=kind,
        object_base_K3=colour,
        object_accent_K3=band,
        sky_43=_sky(rng),
        sky_angles_6=rng.uniform(0, 2 * np.pi, 6).astype(np.float32),
    )


def _hsv(h: float, s: float, v: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(h % 1.0, s, v)


def _room_lines(rng: np.random.Generator) -> list[int]:
    """Positions of the wall lines along one axis: the border and two jittered lines between."""
    return [0, int(rng.integers(3, 6)), int(rng.integers(7, 10)), GRID - 1]


def _walls_and_doors(rng: np.random.Generator, xs: list[int], zs: list[int]) -> Ints:
    cells = np.zeros((GRID, GRID), np.int64)
    cells[xs, :] = WALL
    cells[:, zs] = WALL
    for line in (1, 2):
        for room in range(3):
            _open(rng, cells[xs[line], :], zs[room] + 1, zs[room + 1])
            _open(rng, cells[:, zs[line]], xs[room] + 1, xs[room + 1])
    return cells


def _open(rng: np.random.Generator, line: Ints, start: int, stop: int) -> None:
    """Open one wall between two rooms: mostly a doorway, sometimes a wide gap, sometimes nothing."""
    kind = rng.random()
    if kind < 0.62:
        line[rng.integers(start, stop)] = DOOR
    elif kind < 0.80:
        line[start:stop] = FREE
    elif kind < 0.92 and stop - start >= 3:
        line[start + 1 : stop - 1] = FREE


def _room_index(xs: list[int], zs: list[int]) -> Ints:
    across = np.searchsorted(xs[1:3], np.arange(GRID), side="right")
    along = np.searchsorted(zs[1:3], np.arange(GRID), side="right")
    return (across[:, None] * 3 + along[None, :]).astype(np.int64)


def _faces(rng: np.random.Generator, room_of: Ints) -> tuple[Floats, Floats, Ints]:
    """Each room has a leading hue; each face strays from it, and every third one breaks with it."""
    hue_of_room = rng.random(9)
    shape = (GRID, GRID, 4)
    stray = np.where(rng.random(shape) < 0.35, rng.random(shape), rng.normal(0, 0.045, shape))
    hue = (hue_of_room[room_of][..., None] + stray) % 1.0
    saturation, value = rng.uniform(0.35, 0.85, shape), rng.uniform(0.55, 0.95, shape)
    accent_hue = hue + rng.choice([0.08, 0.33, 0.5, 0.62], shape)
    accent_value = np.where(rng.random(shape) < 0.5, rng.uniform(0.15, 0.35, shape), rng.uniform(0.85, 1, shape))
    base = _hsv_array(hue, saturation, value)
    accent = _hsv_array(accent_hue, rng.uniform(0.2, 0.9, shape), accent_value)
    return base, accent, rng.integers(0, PATTERNS, shape)


def _hsv_array(h: NDArray[np.float64], s: NDArray[np.float64], v: NDArray[np.float64]) -> Floats:
    """HSV to RGB, elementwise; the usual piecewise-linear formula."""
    k = (np.array([5.0, 3.0, 1.0]) + (h[..., None] % 1.0) * 6.0) % 6.0
    ramp = np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
    return np.asarray(v[..., None] * (1.0 - s[..., None] * ramp), np.float32)


def _floor(rng: np.random.Generator, room_of: Ints) -> Floats:
    """Two tile colours per room."""
    tiles = np.empty((9, 2, 3), np.float32)
    for room in range(9):
        hue, value = rng.random(), rng.uniform(0.35, 0.7)
        tiles[room, 0] = _hsv(hue, rng.uniform(0.1, 0.45), value)
        tiles[room, 1] = _hsv(hue + rng.normal(0, 0.06), rng.uniform(0.1, 0.45), value * rng.uniform(0.65, 0.9))
    return tiles[room_of]


def _objects(rng: np.random.Generator, cells: Ints) -> tuple[Floats, Ints, Floats, Floats]:
    """A few balls and pillars, each in a free cell of its own, away from the doorways' middle line."""
    free = np.argwhere(cells == FREE)
    spots = free[rng.permutation(len(free))[:OBJECTS]]
    xzrh = np.zeros((OBJECTS, 4), np.float32)
    kind = rng.integers(0, 2, OBJECTS)
    base, accent = np.zeros((OBJECTS, 3), np.float32), np.zeros((OBJECTS, 3), np.float32)
    for k, (i, j) in enumerate(spots):
        radius = rng.uniform(0.16, 0.27) if kind[k] == BALL else rng.uniform(0.1, 0.17)
        height = 2 * radius if kind[k] == BALL else rng.uniform(0.55, 1.0)
        xzrh[k] = (i + rng.uniform(0.35, 0.65), j + rng.uniform(0.35, 0.65), radius, height)
        hue = rng.random()
        base[k] = _hsv(hue, rng.uniform(0.7, 1.0), rng.uniform(0.75, 1.0))
        accent[k] = _hsv(hue + rng.choice([0.33, 0.5]), rng.uniform(0.1, 0.8), rng.uniform(0.7, 1.0))
    return xzrh, kind, base, accent


def _sky(rng: np.random.Generator) -> Floats:
    """Zenith, horizon, mountains, sun: one of a day, a dusk or a mint sky, jittered."""
    zenith_hue, horizon_hue = [(0.6, 0.55), (0.72, 0.05), (0.5, 0.42)][int(rng.integers(0, 3))]
    jitter = rng.normal(0, 0.02, 3)
    return np.array(
        [
            _hsv(zenith_hue + jitter[0], rng.uniform(0.5, 0.75), rng.uniform(0.65, 0.9)),
            _hsv(horizon_hue + jitter[1], rng.uniform(0.15, 0.4), rng.uniform(0.85, 1.0)),
            _hsv(zenith_hue + jitter[2], rng.uniform(0.25, 0.5), rng.uniform(0.4, 0.6)),
            _hsv(rng.uniform(0.08, 0.16), 0.25, 1.0),
        ],
        np.float32,
    )
