from dataclasses import fields

import numpy as np
import pytest

from worldkv.models.rooms import layout
from worldkv.models.rooms.layout import DOOR, FREE, WALL, Layout

SEEDS = range(200)


@pytest.fixture(scope="module")
def worlds() -> list[Layout]:
    return [layout.draw(seed) for seed in SEEDS]


def reachable(cells: np.ndarray) -> set[tuple[int, int]]:
    """All cells that one can walk to from the first free one."""
    start = tuple(np.argwhere(cells == FREE)[0])
    seen, todo = {start}, [start]
    while todo:
        i, j = todo.pop()
        for step in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if cells[step] != WALL and step not in seen:
                seen.add(step)
                todo.append(step)
    return seen


def test_a_seed_is_always_the_same_world():
    for seed in (0, 7, 10**9):
        first, again = layout.draw(seed), layout.draw(seed)
        for field in fields(Layout):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))


def test_another_seed_is_another_world(worlds):
    assert len({world.face_base_GG43.tobytes() for world in worlds}) == len(worlds)
    assert len({world.cells_GG.tobytes() for world in worlds}) > len(worlds) // 2


def test_every_world_is_walled_in(worlds):
    for world in worlds:
        border = np.concatenate([world.cells_GG[[0, -1]].ravel(), world.cells_GG[:, [0, -1]].ravel()])
        assert (border == WALL).all()
        assert set(np.unique(world.cells_GG)) <= {FREE, WALL, DOOR}


def test_most_of_every_world_can_be_walked_to_from_somewhere(worlds):
    largest = [len(reachable(world.cells_GG)) / (world.cells_GG != WALL).sum() for world in worlds]
    assert np.median(largest) == 1.0


def test_doorways_lead_from_room_to_room(worlds):
    for world in worlds:
        for i, j in np.argwhere(world.cells_GG == DOOR):
            across = world.cells_GG[i - 1, j] != WALL and world.cells_GG[i + 1, j] != WALL
            along = world.cells_GG[i, j - 1] != WALL and world.cells_GG[i, j + 1] != WALL
            assert across or along


def test_colours_are_colours_and_patterns_exist(worlds):
    for world in worlds:
        for name in ("face_base_GG43", "face_accent_GG43", "floor_GG23", "object_base_K3", "sky_43"):
            values = getattr(world, name)
            assert values.dtype == np.float32
            assert values.min() >= 0
            assert values.max() <= 1
        assert set(np.unique(world.face_pattern_GG4)) <= set(range(layout.PATTERNS))


def test_each_object_stands_alone_inside_a_free_cell(worlds):
    for world in worlds:
        x, z, radius, height = world.object_xzrh_K4.T
        cells = list(zip(x.astype(int), z.astype(int), strict=True))
        assert len(set(cells)) == len(cells)
        assert all(world.cells_GG[cell] == FREE for cell in cells)
        assert (np.minimum(x % 1, 1 - x % 1) >= radius).all()
        assert (np.minimum(z % 1, 1 - z % 1) >= radius).all()
        assert (radius > 0).all()
        assert (height > 0).all()


def test_stacking_keeps_every_field_of_every_world(worlds):
    stacked = layout.stack(worlds[:3])
    assert set(stacked) == {field.name for field in fields(Layout)}
    for name, values in stacked.items():
        for row, world in zip(values, worlds[:3], strict=True):
            np.testing.assert_array_equal(row, getattr(world, name))
