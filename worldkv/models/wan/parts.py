"""Building blocks of Wan networks that fix in which dtype something is computed.

Shapes: [..., E], the last axis being channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as fn


class Linear(nn.Linear):
    """A matrix product in the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return fn.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Linear32(nn.Linear):
    """A matrix product in float32 whatever the dtype of its weights: for what modulates."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        return fn.linear(x.float(), self.weight.float(), self.bias.float())


class RMSNorm(nn.Module):
    """Over all heads together, as Wan does; computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
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
