"""Weights that mean nothing but have the size and the speed of real ones, and keep activations finite."""

from __future__ import annotations

import torch
import xxhash
from torch import nn

UNIT_PARAMETERS = ("weight", "gamma")
"""Vectors of these names are scales of a norm."""


@torch.no_grad()
def randomise(network: nn.Module, seed: int) -> str:
    """Draw all parameters in place, where they are; returns the epoch to go by. Equal on devices of the same type.

    Matrices keep the variance of what passes through them, norms scale by one, biases are zero.
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            generator = torch.Generator(parameter.device)
            generator.manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
            fan_in = parameter[0].numel()
            parameter.normal_(0, fan_in**-0.5, generator=generator)
        else:
            parameter.fill_(float(name.rpartition(".")[2] in UNIT_PARAMETERS))
    return f"random-{seed}"
