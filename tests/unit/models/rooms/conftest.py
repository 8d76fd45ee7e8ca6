"""Hand-made layouts: one empty hall, to which a test adds what it is about; and a tiny model that guesses depths."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from worldkv.models.rooms import layout
from worldkv.models.rooms.layout import FREE, GRID, WALL, Layout
from worldkv.models.rooms.model import RoomsModel


def empty_hall(seed: int = 0) -> Layout:
    """The colours of world `seed`, but nothing in it: floor from 1 to GRID - 1 both ways, no objects."""
    cells = np.full((GRID, GRID), FREE)
    cells[[0, -1], :] = cells[:, [0, -1]] = WALL
    drawn = layout.draw(seed)
    return replace(drawn, cells_GG=cells, object_xzrh_K4=np.zeros_like(drawn.object_xzrh_K4))


@pytest.fixture(scope="session")
def hall() -> Callable[..., Layout]:
    return empty_hall


@pytest.fixture(scope="session")
def deep(tiny, make_network):
    """As `tiny`, but deep enough for a surface to be guessed after layer 2 and attended with in layer 3."""
    shallow = tiny.model
    network = make_network(replace(shallow.network.shape, layers=4))
    return replace(tiny, model=RoomsModel(network, shallow.tangent, shallow.epoch, shallow.device))
