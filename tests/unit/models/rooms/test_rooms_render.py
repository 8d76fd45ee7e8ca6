from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from worldkv.models.rooms import layout
from worldkv.models.rooms.layout import BALL, DOOR, EAST, GRID, NORTH, PILLAR, SOUTH, WALL, WEST, Layout
from worldkv.models.rooms.paths import to_poses
from worldkv.models.rooms.render import EYE, FAR, FOG_PER_CELL, LINTEL, WALL_TOP, View, render

SIZE = 24
VIEW = View(SIZE, SIZE, SIZE / 2)  # 90 degrees: a pixel's slope runs from -1 to 1
SLOPE = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
MIDDLE = SIZE // 2


def seen(world: Layout, *states: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Colours [F, R, C, 3] and depths [F, R, C] from states (x, z, yaw in degrees)."""
    walk = np.array(states, float) * (1, 1, np.pi / 180)
    tensors = {name: torch.from_numpy(value) for name, value in layout.stack([world]).items()}
    colour, depth = render(tensors, torch.from_numpy(to_poses(walk))[None], VIEW)
    return colour[0], depth[0]


def rows_of_wall(distance: float) -> np.ndarray:
    """Pixel rows that lie wholly on a wall so far ahead."""
    edge = SLOPE + np.sign(SLOPE) / SIZE
    return np.flatnonzero((edge * distance < EYE) & (-edge * distance < WALL_TOP - EYE))


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("yaw", [0, 90, 180, 270])
def test_a_wall_straight_ahead_has_its_distance_as_depth_everywhere(hall, distance, yaw):
    ahead = {0: (6.5, 12 - distance), 90: (12 - distance, 6.5), 180: (6.5, 1 + distance), 270: (1 + distance, 6.5)}
    _, depth = seen(hall(), (*ahead[yaw], yaw))
    wall = depth[0, rows_of_wall(distance)]
    assert wall.numel() > 0
    torch.testing.assert_close(wall, torch.full_like(wall, distance), atol=1e-4, rtol=0)


def test_walking_towards_a_wall_brings_it_nearer_by_the_step(hall):
    _, depth = seen(hall(), *((6.5, 8 + 0.1 * step, 0) for step in range(20)))
    ahead = depth[:, MIDDLE, MIDDLE]
    torch.testing.assert_close(ahead[:-1] - ahead[1:], torch.full((19,), 0.1), atol=1e-4, rtol=0)


def test_the_floor_lies_below_the_eye_and_the_sky_is_infinitely_far(hall):
    _, depth = seen(hall(), (6.5, 4.0, 0))
    # The nearest of a pixel's rays is the steepest, a quarter of a pixel below the middle.
    lowest = torch.tensor(EYE / (SLOPE[-1] + 0.5 / SIZE), dtype=torch.float32)
    torch.testing.assert_close(depth[0, -1], lowest.expand(SIZE), atol=1e-5, rtol=0)
    assert (depth[0, 0] == FAR).all()


@pytest.mark.parametrize(
    ("face", "cell", "state"),
    [
        (SOUTH, (6, 12), (6.5, 11, 0)),
        (WEST, (12, 6), (11, 6.5, 90)),
        (NORTH, (6, 0), (6.5, 2, 180)),
        (EAST, (0, 6), (2, 6.5, 270)),
    ],
)
def test_a_face_shows_its_own_colour_on_the_viewers_side(hall, face, cell, state):
    world = hall()
    black, pattern = np.zeros_like(world.face_base_GG43), np.zeros_like(world.face_pattern_GG4)
    black[*cell, face] = (1, 0, 0)
    world = replace(world, face_base_GG43=black, face_pattern_GG4=pattern, sky_43=np.zeros((4, 3), np.float32))
    colour, _ = seen(world, state)
    red, green, blue = colour[0, MIDDLE - 1, MIDDLE]
    assert red > 0.5 * np.exp(-FOG_PER_CELL)
    assert max(green, blue) < 1e-6
    # The neighbouring cells' faces are black.
    assert colour[0, MIDDLE - 1, [0, -1]].max() < 1e-6


def test_the_right_of_the_picture_is_the_right_of_the_camera(hall):
    world = hall()
    cells = world.cells_GG.copy()
    cells[8, 9] = WALL  # ahead and to the right (+x) of a camera that looks along +z
    _, depth = seen(replace(world, cells_GG=cells), (6.5, 6.5, 0))
    row = depth[0, MIDDLE]
    assert row[MIDDLE:].min() < 3
    assert row[:MIDDLE].min() > 5


def one_object(world: Layout, kind: int, x: float, z: float, radius: float, height: float) -> Layout:
    things, kinds = world.object_xzrh_K4.copy(), world.object_kind_K.copy()
    things[2], kinds[2] = (x, z, radius, height), kind
    return replace(world, object_xzrh_K4=things, object_kind_K=kinds)


@pytest.mark.parametrize(("kind", "height"), [(PILLAR, 0.9), (BALL, 1.0)])
def test_an_object_stands_before_the_wall_at_its_own_depth(hall, kind, height):
    radius = 0.5 if kind == BALL else 0.15  # a ball this large has its middle at eye height
    _, depth = seen(one_object(hall(), kind, 6.5, 9.0, radius, height), (6.5, 7.0, 0))
    middle = depth[0, MIDDLE - 1 : MIDDLE + 1, MIDDLE - 1 : MIDDLE + 1]
    torch.testing.assert_close(middle, torch.full((2, 2), 2.0 - radius), atol=0.01, rtol=0)
    torch.testing.assert_close(depth[0, MIDDLE, 0], torch.tensor(5.0), atol=1e-4, rtol=0)


def test_an_object_behind_the_camera_is_not_seen(hall):
    world = hall()
    _, with_pillar = seen(one_object(world, PILLAR, 6.5, 5.0, 0.15, 0.9), (6.5, 7.0, 0))
    _, without = seen(world, (6.5, 7.0, 0))
    assert torch.equal(with_pillar, without)


def test_through_a_doorway_one_sees_on_below_the_lintel(hall):
    world = hall()
    cells = world.cells_GG.copy()
    cells[:, 9] = WALL
    cells[6, 9] = DOOR
    _, depth = seen(replace(world, cells_GG=cells), (6.5, 8.0, 0))
    height = EYE - SLOPE * 1.0  # where the pixel's row meets the doorway's plane, one cell ahead
    column = depth[0, :, MIDDLE]
    above = (height - 1 / SIZE > LINTEL) & (height + 1 / SIZE < WALL_TOP)
    assert above.any()
    torch.testing.assert_close(column[above], torch.full((int(above.sum()),), 1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(column[MIDDLE], torch.tensor(4.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(depth[0, MIDDLE, 0], torch.tensor(1.0), atol=1e-4, rtol=0)


def test_a_whole_turn_shows_the_same_picture():
    world = layout.draw(3)
    x, z = np.argwhere(world.cells_GG == layout.FREE)[10] + 0.5
    colour, depth = seen(world, (x, z, 30), (x, z, 390), (x, z, -330))
    assert torch.equal(colour[0], colour[1])
    assert torch.equal(depth[0], depth[2])


def test_equal_poses_give_equal_frames_wherever_they_come_in_the_walk():
    world = layout.draw(4)
    x, z = np.argwhere(world.cells_GG == layout.FREE)[5] + 0.5
    states: Sequence[tuple[float, float, float]] = [(x, z, 10 * step) for step in range(4)]
    colour, depth = seen(world, *states, *reversed(states))
    assert torch.equal(colour, colour.flip(0))
    assert torch.equal(depth, depth.flip(0))
    assert not torch.equal(colour[0], colour[1])


def test_a_world_looks_the_same_in_any_batch():
    worlds = [layout.draw(seed) for seed in range(3)]
    tensors = {name: torch.from_numpy(value) for name, value in layout.stack(worlds).items()}
    walk = np.array([[(*(np.argwhere(w.cells_GG == layout.FREE)[3] + 0.5), 0.5)] for w in worlds])
    poses = torch.from_numpy(to_poses(walk))
    colour, depth = render(tensors, poses, VIEW)
    for b in range(3):
        alone = render({name: value[b : b + 1] for name, value in tensors.items()}, poses[b : b + 1], VIEW)
        assert torch.equal(colour[b], alone[0][0])
        assert torch.equal(depth[b], alone[1][0])


def test_colours_stay_within_range_and_depth_is_positive():
    for seed in range(5):
        world = layout.draw(seed)
        x, z = np.argwhere(world.cells_GG == layout.FREE)[0] + 0.5
        colour, depth = seen(world, *((x, z, yaw) for yaw in range(0, 360, 60)))
        assert colour.isfinite().all()
        assert colour.min() >= -1e-6
        assert colour.max() <= 1 + 1e-6
        assert depth.min() > 0
        assert depth.max() <= FAR


def test_intrinsics_are_those_of_a_centred_square_camera():
    assert VIEW.intrinsics == (12.0, 12.0, 12.0, 12.0)


def test_no_ray_leaves_the_outer_wall(hall):
    _, depth = seen(hall(), *((6.5, 6.5, yaw) for yaw in range(0, 360, 15)))
    horizon = depth[:, MIDDLE]
    assert horizon.max() <= np.hypot(GRID, GRID)
