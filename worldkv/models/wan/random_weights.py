"""Weights that mean nothing but have the size and the speed of real ones, and keep activations finite."""

from __future__ import annotations

import torch
import xxhash
from torch import nn

from worldkv.models.ranks import slices_of

UNIT_PARAMETERS = ("weight", "gamma")
"""Vectors of these names are scales of a norm."""


@torch.no_grad()
def randomise(network: nn.Module, seed: int) -> str:
    """Draw all parameters in place, where they are; returns the epoch to go by. Equal on devices of the same type.

    Matrices keep the variance of what passes through them, norms scale by one, biases are zero. A rank's part is that
    of the whole, which is drawn for it.
    """
    slices = slices_of(network)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            generator = torch.Generator(parameter.device)
            generator.manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
            part = slices.get(name)
            whole = parameter if part is None else parameter.new_empty(part.whole_shape(parameter.shape))
            whole.normal_(0, whole[0].numel() ** -0.5, generator=generator)
            if part is not None:
                parameter.copy_(part.cut(whole))
        else:
            parameter.fill_(float(name.rpartition(".")[2] in UNIT_PARAMETERS))
    return f"random-{seed}"
