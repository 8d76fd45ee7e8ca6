"""Matrix-Game-2.0's denoise steps: rows of a table of 1,000 noise levels.

In float32 throughout, as published: a timestep is told to the network in full, and its last digits are heard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldkv.models.base import Schedule

STEPS = 1000


def noise_table(shift: float) -> Tensor:
    """Noise level of each row, [STEPS] float32, falling from 1."""
    even = torch.linspace(1.0, 0.0, STEPS + 1)[:-1]
    return shift * even / (1 + (shift - 1) * even)


def matrix_game_schedule(timesteps: Sequence[int], shift: float) -> Schedule:
    """The steps that a configuration names, counted from STEPS downwards. Fresh noise is mixed in at the next level."""
    levels = tuple(noise_table(shift)[[STEPS - timestep for timestep in timesteps]].tolist())
    return Schedule(levels=levels, mixed=levels[1:])
