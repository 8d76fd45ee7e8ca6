"""LingBot's denoise steps: rows of a table of 1,000 noise levels, looked up as its UniPC scheduler does.

The scheduler knows a step by its timestep, an integer, and near pure noise several rows share one. Which row is
meant then depends on who asks: the estimate takes the first, the mixing of noise the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worldkv.models.base import Schedule

STEPS = 1000
LARGEST_LEVEL = 1 - 1 / STEPS
"""Before the shift; the noisiest row is not quite pure noise."""


def noise_table(shift: float) -> NDArray[np.float64]:
    """Noise level of each row, [STEPS], falling."""
    even = np.linspace(LARGEST_LEVEL, 0, STEPS + 1)[:-1]
    table: NDArray[np.float64] = shift * even / (1 + (shift - 1) * even)
    return table


def lingbot_schedule(rows: Sequence[int], shift: float) -> Schedule:
    """The steps that stand at `rows` of the table."""
    table = noise_table(shift)
    timestep = (table * STEPS).astype(np.int64)
    alike = [np.flatnonzero(timestep == timestep[row]) for row in rows]
    single = table.astype(np.float32)
    return Schedule(
        levels=tuple(float(single[found[0]]) for found in alike),
        mixed=tuple(float(single[found[min(1, len(found) - 1)]]) for found in alike[1:]),
    )
