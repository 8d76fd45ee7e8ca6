"""Histories for training: exact chunks, the model's own estimates of them, and noisy ones.

At inference memory holds chunks that a session was shown and chunks that it made. Taught on exact history alone, the
model leans on the chunk just before, which then was always right; over a rollout its own small errors come to stand
there, and grow. So in some clips its own estimates stand for the chunks, and others lose the recent past to noise: what
is asked for must then be found in the exact chunks, from wherever they were seen. Each chunk's level says what it is.

Shapes: B clips, F video frames, C chunks, L layers, T tokens, H heads, D head dim, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.models.rooms.network import MADE_LEVEL, Cameras, RoomsNetwork
from worldkv.window import rotary

# Shares of the clips by what their history is; the rest is exact, but told to be made: where nothing better is at hand,
# what the model made must do.
EXACT, MADE, NOISY = 0.35, 0.35, 0.2
# Of the chunks that noise takes away.
LEAST_NOISE = 0.2


class History(NamedTuple):
    """What a training step shows of the past."""

    pixels_BFCHW: Tensor
    """Before noise is mixed in."""
    noise_BF: Tensor
    """How much is mixed in."""
    level_BF: Tensor
    """What the model is told."""


def compose(
    clean_BFCHW: Tensor, made_BFCHW: Tensor, start_B: Tensor, per_chunk: int, generator: torch.Generator
) -> History:
    """Each clip's history by chance of a kind. `made_BFCHW` take the place of the clips from chunk `start_B` on."""
    B, F = clean_BFCHW.shape[:2]
    chunks = F // per_chunk
    kind_B1, first_B1, noise_BC = (
        torch.rand(B, n, device=clean_BFCHW.device, generator=generator) for n in (1, 1, chunks)
    )
    chunk_C = torch.arange(chunks, device=clean_BFCHW.device)
    made_BC = (kind_B1 >= EXACT) & (kind_B1 < EXACT + MADE) & (chunk_C >= start_B[:, None])
    lost_BC = (kind_B1 >= EXACT + MADE) & (kind_B1 < EXACT + MADE + NOISY) & (chunk_C >= 1 + first_B1 * (chunks - 2))
    told_BC = made_BC | (kind_B1 >= EXACT + MADE + NOISY)
    noise_BC = torch.where(lost_BC, LEAST_NOISE + (1 - LEAST_NOISE) * noise_BC, 0.0)
    made_BF, noise_BF, level_BF = (
        x.repeat_interleave(per_chunk, 1) for x in (made_BC, noise_BC, torch.where(told_BC, MADE_LEVEL, noise_BC))
    )
    return History(torch.where(made_BF[..., None, None, None], made_BFCHW, clean_BFCHW), noise_BF, level_BF)


@torch.no_grad()
def play_on(
    network: RoomsNetwork,
    clean_BFCHW: Tensor,
    cameras: Cameras,
    angles: tuple[Tensor, Tensor],
    start_B: Tensor,
    levels: Sequence[float],
    generator: torch.Generator,
) -> Tensor:
    """The clips as `network` goes on with them from chunk `start_B` each, every chunk from all before it: full KV.

    `angles` are cosine and sine [B, T, P] of the whole clip. Runs under the caller's autocast.
    """
    shape = network.shape
    per_chunk, tokens = shape.frames_per_chunk, shape.frames_per_chunk * shape.tokens_per_frame
    B, F = clean_BFCHW.shape[:2]
    at = _Cache(shape.layers, (B, F * shape.tokens_per_frame, shape.heads, shape.head_dim), clean_BFCHW.device, angles)
    video, first = clean_BFCHW.clone(), int(start_B.min())
    for chunk in range(F // per_chunk):
        frames = slice(chunk * per_chunk, (chunk + 1) * per_chunk)
        at.place = slice(chunk * tokens, (chunk + 1) * tokens)
        here = cameras.part(at.place)
        told = torch.zeros(B, per_chunk, device=video.device)
        if chunk >= first:
            made_B = chunk >= start_B
            x = torch.randn(video[:, frames].shape, device=video.device, generator=generator)
            for level, following in zip(levels, (*levels[1:], 0.0), strict=True):
                estimate, _ = network(x, told + level, here, at.attend)
                x = torch.lerp(estimate.float(), x, following / level)
            video[:, frames] = torch.where(made_B[:, None, None, None, None], x.clamp(-1, 1), video[:, frames])
            told += MADE_LEVEL * made_B[:, None]
        if frames.stop < F:
            network(video[:, frames], told, here, at.attend)
    return video


class _Cache:
    """Rotated keys and values of a clip up to the chunk in work."""

    def __init__(
        self, layers: int, shape_BTHD: tuple[int, ...], device: torch.device, angles: tuple[Tensor, Tensor]
    ) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.k_LBTHD, self.v_LBTHD = (torch.empty(layers, *shape_BTHD, device=device, dtype=dtype) for _ in range(2))
        self.cos_BTP, self.sin_BTP = angles
        self.place = slice(0, 0)

    def attend(self, layer: int, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor) -> Tensor:
        """Attention of the chunk at `place` over everything up to its end."""
        cos, sin = self.cos_BTP[:, self.place], self.sin_BTP[:, self.place]
        k, v = self.k_LBTHD[layer], self.v_LBTHD[layer]
        k[:, self.place], v[:, self.place] = rotary.rotate(k_BTHD, cos, sin), v_BTHD
        q = rotary.rotate(q_BTHD, cos, sin).to(k.dtype)
        q, k, v = (x.transpose(1, 2) for x in (q, k[:, : self.place.stop], v[:, : self.place.stop]))
        return fn.scaled_dot_product_attention(q, k, v).transpose(1, 2)
