"""From noise to clean latents: counter-based noise and the few-step sampler.

Shapes: B sessions, F latent frames, C H W of a latent frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from worldkv.models.base import Schedule, Window, WorldModel

# Second word of the Philox counter, so that noise never shares a stream with random retrieval (word 0).
NOISE_STREAM = 1


def noise_levels(steps: int, shift: float) -> tuple[float, ...]:
    """Noise levels of `steps` denoise steps, from 1 downwards, shifted towards noise (flow matching)."""
    even = [1 - step / steps for step in range(steps)]
    return tuple(shift * level / (1 + (shift - 1) * level) for level in even)


def gaussian(shape: Sequence[int], *, seed: int, rollout: int, chunk: int, step: int = 0) -> Tensor:
    """Standard normal float32 on the CPU: a pure function of its arguments, on every machine."""
    key = np.array([seed, rollout], np.uint64)
    counter = np.array([0, NOISE_STREAM, step, chunk], np.uint64)
    draw = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return torch.from_numpy(draw.standard_normal(tuple(shape), np.float32))


def denoise(
    model: WorldModel, start_BFCHW: Tensor, condition: object, window: Window, levels: Sequence[float]
) -> Tensor:
    """Clean latents from pure noise `start_BFCHW`: one forward per level, deterministic (Euler) steps between.

    With x = (1 - t) clean + t noise and an estimate of clean, the step from t to t' keeps the noise: x' = clean +
    (t' / t) (x - clean).
    """
    x = start_BFCHW
    for level, following in zip(levels, (*levels[1:], 0.0), strict=True):
        clean = model.estimate(x, level, condition, window)
        x = torch.lerp(clean, x, following / level)
    return x


def renoise(
    model: WorldModel, draw: Callable[[int], Tensor], condition: object, window: Window, schedule: Schedule
) -> Tensor:
    """Clean latents from pure noise, as distilled models are sampled: one forward per level, fresh noise between.

    `draw(step)` gives the noise [B, F, C, H, W] that step starts from (0) or is mixed with, float32.
    """
    x = draw(0)
    for step, level in enumerate(schedule.levels):
        clean = model.estimate(x, level, condition, window)
        if step == len(schedule.mixed):
            break
        share = torch.tensor(schedule.mixed[step])
        x = (1 - share) * clean + share * draw(step + 1)
    return clean
