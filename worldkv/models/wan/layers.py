"""One layer of a causal Wan DiT. Attribute names are those of the published checkpoints.

- What modulates (shift, scale and gate of every latent frame) is computed and applied in float32, and so are all
  norms; other matrix products run in the dtype of their weights. The residual stream is float32.
- Self-attention is left to the caller, who decides what is attended to and rotates.

Shapes: B sessions, L layers, F latent frames, S tokens per latent frame, T = F * S tokens, C context tokens,
H heads, D head dim, E = H * D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from worldkv.models.wan.actions import ActionChunk, ActionModule
from worldkv.models.wan.parts import LayerNorm, Linear, RMSNorm
from worldkv.models.wan.shape import WanShape

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BTHD, k_BTHD, v_BTHD), all un-rotated -> attended values [B, T, H, D]."""

MODULATIONS = 6
"""Shift, scale and gate of attention, then of the MLP."""


class ContextKV(NamedTuple):
    """What cross-attention attends to in every layer; fixed for a session."""

    k_LBCHD: Tensor
    v_LBCHD: Tensor


class CameraTerms(NamedTuple):
    """How every layer answers to the camera: x becomes (1 + scale) x + shift. Independent of the noise level."""

    scales_L: tuple[Tensor, ...]
    """[B, T, E] each."""
    shifts_L: tuple[Tensor, ...]


@dataclass(frozen=True)
class Condition:
    """All that the forwards over one chunk need beside latents and window; computed once per chunk."""

    image_BCFHW: Tensor
    """Concatenated to the latents."""
    context: ContextKV
    camera: CameraTerms | None = None
    actions: ActionChunk | None = None


class Projections(nn.Module):
    """Into queries, keys and values of an attention, and out of it."""

    def __init__(self, shape: WanShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.q, self.k, self.v, self.o = (Linear(shape.width, shape.width) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(shape.width, shape.eps) for _ in range(2))

    def queries(self, x_BTE: Tensor) -> Tensor:
        """[B, T, H, D]."""
        return self._split(self.norm_q(self.q(x_BTE)))

    def keys_values(self, x_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, H, D] each."""
        return self._split(self.norm_k(self.k(x_BTE))), self._split(self.v(x_BTE))

    def leave(self, attended_BTHD: Tensor) -> Tensor:
        """[B, T, E]."""
        projected: Tensor = self.o(attended_BTHD.flatten(-2))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.head_dim))


class Layer(nn.Module):
    """Self-attention, camera, cross-attention, actions, MLP."""

    def __init__(self, shape: WanShape, layer: int) -> None:
        super().__init__()
        E = shape.width
        self.modulation = nn.Parameter(torch.zeros(1, MODULATIONS, E))
        self.norm1 = LayerNorm(E, shape.eps, elementwise_affine=False)
        self.self_attn = Projections(shape)
        self.norm3 = LayerNorm(E, shape.eps)
        self.cross_attn = Projections(shape)
        self.norm2 = LayerNorm(E, shape.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(Linear(E, shape.mlp_width), nn.GELU(approximate="tanh"), Linear(shape.mlp_width, E))
        if shape.camera_channels is not None:
            self.cam_injector_layer1, self.cam_injector_layer2 = Linear(E, E), Linear(E, E)
            self.cam_scale_layer, self.cam_shift_layer = Linear(E, E), Linear(E, E)
        if shape.actions is not None and layer in shape.actions.layers:
            self.action_model = ActionModule(shape.actions, E)

    def camera_terms(self, camera_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's scale and shift, [B, T, E] each."""
        hidden = self.cam_injector_layer2(fn.silu(self.cam_injector_layer1(camera_BTE))) + camera_BTE
        return self.cam_scale_layer(hidden), self.cam_shift_layer(hidden)

    def forward(self, x_BTE: Tensor, levels_BF6E: Tensor, condition: Condition, layer: int, attend: Attend) -> Tensor:
        """The residual stream behind this layer, which is number `layer`."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (levels_BF6E + self.modulation.float()).unbind(2)
        normal = modulate(self.norm1(x_BTE), shift_a, scale_a)
        q, (k, v) = self.self_attn.queries(normal), self.self_attn.keys_values(normal)
        x = x_BTE + per_frame(self.self_attn.leave(attend(layer, q, k, v)), gate_a)
        if (camera := condition.camera) is not None:
            x = (1 + camera.scales_L[layer]) * x + camera.shifts_L[layer]
        x = x + self._look_up(x, condition.context.k_LBCHD[layer], condition.context.v_LBCHD[layer])
        if condition.actions is not None and hasattr(self, "action_model"):
            x = self.action_model(x, condition.actions, layer)
        return x + per_frame(self.ffn(modulate(self.norm2(x), shift_m, scale_m)), gate_m)

    def _look_up(self, x_BTE: Tensor, k_BCHD: Tensor, v_BCHD: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (self.cross_attn.queries(self.norm3(x_BTE)), k_BCHD, v_BCHD))
        return self.cross_attn.leave(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2))


def modulate(x_BTE: Tensor, shift_BFE: Tensor, scale_BFE: Tensor) -> Tensor:
    """Scale and shift the tokens of each latent frame by that frame's vectors."""
    x = torch.unflatten(x_BTE, 1, (scale_BFE.shape[1], -1))
    return (x * (1 + scale_BFE[:, :, None]) + shift_BFE[:, :, None]).flatten(1, 2)


def per_frame(x_BTE: Tensor, gate_BFE: Tensor) -> Tensor:
    """The tokens of each latent frame times that frame's vector."""
    return (torch.unflatten(x_BTE, 1, (gate_BFE.shape[1], -1)) * gate_BFE[:, :, None]).flatten(1, 2)
