"""Building blocks of Wan networks that fix in which dtype something is computed.

Shapes: [..., E], the last axis being channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from worldkv.models.ranks import Ranks, Slice, Sliced, total


class Linear(nn.Linear):
    """A matrix product in the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return fn.linear(x.to(self.weight.dtype), self.weight, self.bias)


class ColumnLinear(Sliced, Linear):
    """Makes this rank's share of the outputs."""

    def __init__(self, inputs: int, outputs: int, ranks: Ranks) -> None:
        own = Slice.own(0, outputs, ranks)
        super().__init__(inputs, own.length)
        self.slices = {"weight": own, "bias": own}


class RowLinear(Sliced, Linear):
    """Takes this rank's share of the inputs: the outputs of all ranks are to be summed. The bias is added by one."""

    def __init__(self, inputs: int, outputs: int, ranks: Ranks) -> None:
        own = Slice.own(1, inputs, ranks)
        super().__init__(own.length, outputs)
        self.slices, self.adds_bias = {"weight": own}, ranks.rank == 0

    def own_inputs(self, x: Tensor) -> Tensor:
        """This rank's share of [..., inputs]."""
        own = self.slices["weight"]
        return x[..., own.start : own.stop]

    def forward(self, x: Tensor) -> Tensor:
        """[..., own inputs] -> [..., outputs]."""
        return fn.linear(x.to(self.weight.dtype), self.weight, self.bias if self.adds_bias else None)


class Linear32(nn.Linear):
    """A matrix product in float32 whatever the dtype of its weights: for what modulates."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        return fn.linear(x.float(), self.weight.float(), self.bias.float())


class RMSNorm(Sliced):
    """Over all heads together, as Wan does, those of other ranks included; computed in float32."""

    def __init__(self, width: int, eps: float, ranks: Ranks) -> None:
        super().__init__()
        own = Slice.own(0, width, ranks)
        self.weight, self.eps, self.ranks = nn.Parameter(torch.ones(own.length)), eps, ranks
        self.slices = {"weight": own}

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        if self.ranks.size > 1:
            wide = x.float()
            mean = total(self.ranks, wide.square().sum(-1, keepdim=True)) / self.slices["weight"].whole
            return (wide * torch.rsqrt(mean + self.eps) * self.weight.float()).to(x.dtype)
        return fn.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Computed in float32 whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, float32."""
        if not self.elementwise_affine:
            return fn.layer_norm(x.float(), self.normalized_shape, eps=self.eps)
        return fn.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class UnweightedNorm(nn.Module):
    """A root mean square norm whose weight is part of the checkpoint and of nothing else."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype, computed in float32."""
        return fn.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
