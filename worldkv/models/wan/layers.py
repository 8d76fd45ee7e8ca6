"""One layer of a causal Wan DiT. Attribute names are those of the published checkpoints.

- What modulates (shift, scale and gate of every latent frame) is computed and applied in float32, and so are all
  norms; other matrix products run in the dtype of their weights. The residual stream is float32.
- Self-attention is left to the caller, who decides what is attended to and rotates.
- Over several ranks, a rank has all tokens of its own heads inside attention and of its own channels inside the MLP,
  and all channels of its own tokens elsewhere; so everything but the linears of action modules is held in parts.

Shapes: B sessions, L layers, F latent frames, S tokens per latent frame, T = F * S tokens, t those of this rank,
C context tokens, H this rank's heads, D head dim, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from worldkv.models.ranks import Ranks
from worldkv.models.wan.actions import ActionChunk, ActionModule
from worldkv.models.wan.parts import ColumnLinear, LayerNorm, RMSNorm, RowLinear
from worldkv.models.wan.shape import WanShape
from worldkv.models.wan.tokens import Tokens

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
    """[B, t, E] each."""
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

    def __init__(self, shape: WanShape, ranks: Ranks) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.q, self.k, self.v = (ColumnLinear(shape.width, shape.width, ranks) for _ in range(3))
        self.o = RowLinear(shape.width, shape.width, ranks)
        self.norm_q, self.norm_k = (RMSNorm(shape.width, shape.eps, ranks) for _ in range(2))

    def queries(self, x_BTE: Tensor) -> Tensor:
        """[B, T, H, D]."""
        return self._split(self.norm_q(self.q(x_BTE)))

    def keys_values(self, x_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, H, D] each."""
        return self._split(self.norm_k(self.k(x_BTE))), self._split(self.v(x_BTE))

    def leave(self, attended_BTHD: Tensor) -> Tensor:
        """[B, T, E], to be summed over ranks."""
        projected: Tensor = self.o(attended_BTHD.flatten(-2))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.head_dim))


class Layer(nn.Module):
    """Self-attention, camera, cross-attention, actions, MLP."""

    def __init__(self, shape: WanShape, layer: int, ranks: Ranks) -> None:
        super().__init__()
        E = shape.width
        self.modulation = nn.Parameter(torch.zeros(1, MODULATIONS, E))
        self.norm1 = LayerNorm(E, shape.eps, elementwise_affine=False)
        self.self_attn = Projections(shape, ranks)
        self.norm3 = LayerNorm(E, shape.eps)
        self.cross_attn = Projections(shape, ranks)
        self.norm2 = LayerNorm(E, shape.eps, elementwise_affine=False)
        widen, narrow = ColumnLinear(E, shape.mlp_width, ranks), RowLinear(shape.mlp_width, E, ranks)
        self.ffn = nn.Sequential(widen, nn.GELU(approximate="tanh"), narrow)
        if shape.camera_channels is not None:
            self.cam_injector_layer1, self.cam_injector_layer2 = ColumnLinear(E, E, ranks), RowLinear(E, E, ranks)
            self.cam_scale_layer, self.cam_shift_layer = RowLinear(E, E, ranks), RowLinear(E, E, ranks)
        if shape.actions is not None and layer in shape.actions.layers:
            self.action_model = ActionModule(shape.actions, E)

    def camera_terms(self, camera_BtE: Tensor, camera_BTE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """This layer's scale and shift, [B, t, E] each, from what the camera is at this rank's tokens and at all."""
        hidden_BtE = tokens.summed(self.cam_injector_layer2(fn.silu(self.cam_injector_layer1(camera_BTE)))) + camera_BtE
        hidden_BTE = tokens.all(hidden_BtE)
        scale, shift = (
            tokens.summed(linear(linear.own_inputs(hidden_BTE)))
            for linear in (self.cam_scale_layer, self.cam_shift_layer)
        )
        return scale, shift

    def forward(
        self, x_BtE: Tensor, levels_BF6E: Tensor, condition: Condition, tokens: Tokens, layer: int, attend: Attend
    ) -> Tensor:
        """The residual stream behind this layer, which is number `layer`."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (levels_BF6E + self.modulation.float()).unbind(2)
        normal = self._all(modulate(self.norm1(x_BtE), shift_a, scale_a), tokens)
        q, (k, v) = self.self_attn.queries(normal), self.self_attn.keys_values(normal)
        x = x_BtE + per_frame(tokens.summed(self.self_attn.leave(attend(layer, q, k, v))), gate_a)
        if (camera := condition.camera) is not None:
            x = (1 + camera.scales_L[layer]) * x + camera.shifts_L[layer]
        normal = self._all(self.norm3(x), tokens)
        x = x + tokens.summed(self._look_up(normal, *(part[layer] for part in condition.context)))
        if condition.actions is not None and hasattr(self, "action_model"):
            x = self.action_model(x, condition.actions, layer)
        normal = self._all(modulate(self.norm2(x), shift_m, scale_m), tokens)
        return x + per_frame(tokens.summed(self.ffn(normal)), gate_m)

    def _all(self, x_BtE: Tensor, tokens: Tokens) -> Tensor:
        """At all tokens, in the dtype in which it is multiplied: less to tell each other than float32."""
        return tokens.all(x_BtE.to(self.self_attn.q.weight.dtype))

    def _look_up(self, x_BTE: Tensor, k_BCHD: Tensor, v_BCHD: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (self.cross_attn.queries(x_BTE), k_BCHD, v_BCHD))
        return self.cross_attn.leave(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2))


def modulate(x_BTE: Tensor, shift_BFE: Tensor, scale_BFE: Tensor) -> Tensor:
    """Scale and shift the tokens of each latent frame by that frame's vectors."""
    x = torch.unflatten(x_BTE, 1, (scale_BFE.shape[1], -1))
    return (x * (1 + scale_BFE[:, :, None]) + shift_BFE[:, :, None]).flatten(1, 2)


def per_frame(x_BTE: Tensor, gate_BFE: Tensor) -> Tensor:
    """The tokens of each latent frame times that frame's vector."""
    return (torch.unflatten(x_BTE, 1, (gate_BFE.shape[1], -1)) * gate_BFE[:, :, None]).flatten(1, 2)
