"""The action module of Matrix-Game-2.0: mouse and keyboard inside a layer. Attribute names are the published ones.

- The mouse is told to every place of the picture, which then attends over time to itself; the keyboard is attended
  to by every token. Both see the last few latent frames only and have caches of their own.
- Keys are cached before rotation and rotated at their place in the window: only distances in time count, so the
  published table of 7,500 absolute frames gives the same numbers until it ends.
- The published norms of queries and keys own weights that they never apply; so do these.

Shapes: B sessions, F latent frames of the chunk, P past ones, S tokens per latent frame, T = F * S tokens, W rows of
actions in a window, A values of a row, H heads, D head dim, E width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from worldkv.models.wan.parts import LayerNorm, Linear, UnweightedNorm
from worldkv.models.wan.shape import ActionShape, MouseShape
from worldkv.window import rotary

HEAD_EPSILON = 1e-6


class ActionKV(NamedTuple):
    """Un-rotated keys and values of one layer over some latent frames; those of the mouse [B, S, P, H, D]."""

    keyboard_k_BPHD: Tensor
    keyboard_v_BPHD: Tensor
    mouse_k: Tensor | None = None
    mouse_v: Tensor | None = None


@dataclass(frozen=True)
class ActionChunk:
    """What the action modules need over one chunk."""

    keyboard_BFWA: Tensor
    mouse_BFWA: Tensor | None
    past: Mapping[int, ActionKV]
    """By layer; empty at the start of a session."""
    made: dict[int, ActionKV] = field(default_factory=dict)
    """By layer, what the last forward added to the past."""


class ActionModule(nn.Module):
    """Mouse, then keyboard; each adds to the residual stream."""

    def __init__(self, shape: ActionShape, width: int) -> None:
        super().__init__()
        self.shape = shape
        if shape.mouse is not None:
            self._add_mouse(shape, shape.mouse, width)
        hidden, inside = shape.embedding, shape.keyboard_width
        self.keyboard_embed = nn.Sequential(Linear(shape.keys, hidden), nn.SiLU(), Linear(hidden, hidden))
        self.mouse_attn_q = Linear(width, inside, bias=False)
        self.keyboard_attn_kv = Linear(hidden * shape.window_rows, 2 * inside, bias=False)
        self.key_attn_q_norm, self.key_attn_k_norm = (
            UnweightedNorm(inside // shape.heads, HEAD_EPSILON) for _ in range(2)
        )
        self.proj_keyboard = Linear(inside, width, bias=False)

    def _add_mouse(self, shape: ActionShape, mouse: MouseShape, width: int) -> None:
        inside = mouse.width
        told = Linear(width + mouse.values * shape.window_rows, inside)
        self.mouse_mlp = nn.Sequential(told, nn.GELU(approximate="tanh"), Linear(inside, inside), LayerNorm(inside))
        self.t_qkv = Linear(inside, 3 * inside, bias=False)
        self.img_attn_q_norm, self.img_attn_k_norm = (
            UnweightedNorm(inside // shape.heads, HEAD_EPSILON) for _ in range(2)
        )
        self.proj_mouse = Linear(inside, width, bias=False)

    def forward(self, x_BTE: Tensor, chunk: ActionChunk, layer: int) -> Tensor:
        """The residual stream behind the module; leaves the chunk's keys and values in `chunk.made`."""
        past, mouse = chunk.past.get(layer), None
        if chunk.mouse_BFWA is not None:
            x_BTE, mouse = self._mouse(x_BTE, chunk.mouse_BFWA, past)
        x_BTE, keyboard = self._keyboard(x_BTE, chunk.keyboard_BFWA, past)
        chunk.made[layer] = ActionKV(*keyboard, *(mouse or ()))
        return x_BTE

    def _mouse(self, x_BTE: Tensor, rows_BFWA: Tensor, past: ActionKV | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        frames = rows_BFWA.shape[1]
        x_BSFE = torch.unflatten(x_BTE, 1, (frames, -1)).transpose(1, 2)
        told = rows_BFWA.flatten(2)[:, None].expand(-1, x_BSFE.shape[1], -1, -1).to(x_BSFE.dtype)
        qkv = self.t_qkv(self.mouse_mlp(torch.cat([x_BSFE, told], dim=-1)))
        q, k, v = torch.unflatten(qkv, -1, (3, self.shape.heads, -1)).unbind(-3)
        q, k = self.img_attn_q_norm(q), self.img_attn_k_norm(k)
        k_all, v_all = with_past(k, past and past.mouse_k), with_past(v, past and past.mouse_v)
        seen = self._attend(*(part.flatten(0, 1) for part in (q, k_all, v_all)), repeat=1)
        added = torch.unflatten(self.proj_mouse(seen.flatten(-2)), 0, (len(x_BTE), -1))
        return x_BTE + added.transpose(1, 2).flatten(1, 2), (k, v)

    def _keyboard(
        self, x_BTE: Tensor, rows_BFWA: Tensor, past: ActionKV | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        frames = rows_BFWA.shape[1]
        kv = self.keyboard_attn_kv(self.keyboard_embed(rows_BFWA).flatten(2))
        k, v = torch.unflatten(kv, -1, (2, self.shape.heads, -1)).unbind(-3)
        q = self.key_attn_q_norm(torch.unflatten(self.mouse_attn_q(x_BTE), -1, (self.shape.heads, -1)))
        k = self.key_attn_k_norm(k)
        k_all = with_past(k, past and past.keyboard_k_BPHD)
        v_all = with_past(v, past and past.keyboard_v_BPHD)
        seen = self._attend(q, k_all, v_all, repeat=x_BTE.shape[1] // frames)
        added: Tensor = self.proj_keyboard(seen.flatten(-2))
        return x_BTE + added, (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, repeat: int) -> Tensor:
        """Attention of `repeat` queries per latent frame, those of the last ones, over one key per latent frame."""
        cos, sin = self.angles(torch.arange(k.shape[1], device=k.device))
        own = q.shape[1] // repeat
        q = rotary.rotate(q, *(table[-own:].repeat_interleave(repeat, dim=0) for table in (cos, sin)))
        q, k, v = (part.transpose(1, 2) for part in (q, rotary.rotate(k, cos, sin), v))
        return fn.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def angles(self, frame_F: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [F, pairs] of latent frames."""
        turning = self.shape.time_pairs
        radians = frame_F.double()[:, None] * rotary.frequencies(turning, theta=self.shape.theta, device=frame_F.device)
        radians = fn.pad(radians, (0, self.key_attn_k_norm.weight.shape[0] // 2 - turning))
        return radians.cos().float(), radians.sin().float()


def with_past(new: Tensor, past: Tensor | None) -> Tensor:
    """Past and new latent frames, [..., P + F, H, D]."""
    return new if past is None else torch.cat([past, new], dim=-3)
