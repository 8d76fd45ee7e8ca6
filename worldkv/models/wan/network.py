"""The causal Wan DiT: latents of one chunk at some noise level in, their flow out. Stateless but for its weights.

It is given all else: the image condition, the context's keys and values, the camera terms, and `attend`, which
knows the window. Flow is noise minus clean, so clean = x - level * flow.

Over several ranks each is given the same and returns the same, with its own part of the weights and its own heads;
all of them must be called alike.

Shapes: B sessions, L layers, F latent frames, S tokens per latent frame, T = F * S tokens, C context tokens or
channels of a latent frame of H rows and W columns, E width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from worldkv.models.ranks import ALONE, Ranks, check_heads
from worldkv.models.wan.layers import (
    MODULATIONS,
    Attend,
    CameraTerms,
    Condition,
    ContextKV,
    Layer,
    modulate,
)
from worldkv.models.wan.parts import LayerNorm, Linear, Linear32
from worldkv.models.wan.shape import ImageShape, TextShape, WanShape
from worldkv.models.wan.tokens import Tokens

LONGEST_PERIOD = 10000.0
"""Of the sinusoids that tell the noise level."""


class WanNetwork(nn.Module):
    """Weights and the forward pass."""

    def __init__(self, shape: WanShape, ranks: Ranks = ALONE) -> None:
        """Raises ModelError where the heads cannot be shared out among the ranks."""
        super().__init__()
        check_heads(shape.heads, ranks)
        self.shape, self.ranks = shape, ranks
        E = shape.width
        self.patch_embedding = nn.Conv3d(shape.in_channels, E, shape.patch, shape.patch)
        if isinstance(shape.context, TextShape):
            self.text_embedding = nn.Sequential(
                Linear(shape.context.width, E), nn.GELU(approximate="tanh"), Linear(E, E)
            )
        else:
            self.img_emb = ImageEmbedding(shape.context, E)
        if shape.camera_channels is not None:
            self.patch_embedding_wancamctrl = Linear(shape.camera_channels * shape.patch_latents, E)
            self.c2ws_hidden_states_layer1, self.c2ws_hidden_states_layer2 = Linear(E, E), Linear(E, E)
        self.time_embedding = nn.Sequential(Linear32(shape.noise_features, E), nn.SiLU(), Linear32(E, E))
        self.time_projection = nn.Sequential(nn.SiLU(), Linear32(E, MODULATIONS * E))
        self.blocks = nn.ModuleList(Layer(shape, layer, ranks) for layer in range(shape.layers))
        self.head = Head(shape)

    def context(self, tokens_BCW: Tensor) -> ContextKV:
        """Keys and values, of this rank's heads, of the prompt's embeddings or the image's tokens, once per session.

        A prompt may be shorter than the model's length.
        """
        if isinstance(self.shape.context, TextShape):
            missing = self.shape.context.tokens - tokens_BCW.shape[1]
            embedded = self.text_embedding(fn.pad(tokens_BCW, (0, 0, 0, missing)))
        else:
            embedded = self.img_emb(tokens_BCW)
        pairs = [layer.cross_attn.keys_values(embedded) for layer in self._layers()]
        return ContextKV(*map(torch.stack, zip(*pairs, strict=True)))

    def camera(self, map_BCFHW: Tensor) -> CameraTerms:
        """The camera's part in every layer from its map at latent resolution, once per chunk."""
        frames, places = map_BCFHW.shape[2] // self.shape.patch[0], map_BCFHW[0, 0, 0].numel()
        tokens = Tokens(self.ranks, frames, places // math.prod(self.shape.patch[1:]))
        stem = self.patch_embedding_wancamctrl(tokens.own(to_patches(map_BCFHW, self.shape.patch)))
        stem = stem + self.c2ws_hidden_states_layer2(fn.silu(self.c2ws_hidden_states_layer1(stem)))
        whole = tokens.all(stem)
        # Not stacked: at full size they are gigabytes, and would be there twice.
        scales, shifts = zip(*(layer.camera_terms(stem, whole, tokens) for layer in self._layers()), strict=True)
        return CameraTerms(scales, shifts)

    def forward(self, latents_BCFHW: Tensor, timestep_BF: Tensor, condition: Condition, attend: Attend) -> Tensor:
        """Flow [B, C, F, H, W] in float32; `timestep_BF` is a thousand times the noise level."""
        x = torch.cat([latents_BCFHW, condition.image_BCFHW.to(latents_BCFHW.dtype)], dim=1)
        x = self.patch_embedding(x.to(self.patch_embedding.weight.dtype))
        grid = x.shape[2:]
        tokens = Tokens(self.ranks, grid[0], grid[1] * grid[2])
        x = tokens.own(x.flatten(2).transpose(1, 2)).float()
        level = self.time_embedding(sinusoids(timestep_BF, self.shape.noise_features))
        levels = torch.unflatten(self.time_projection(level), -1, (MODULATIONS, -1))
        for number, layer in enumerate(self.blocks):
            x = layer(x, levels, condition, tokens, number, attend)
        return from_patches(tokens.all(self.head(x, level)), grid, self.shape)

    def _layers(self) -> list[Layer]:
        return list(self.blocks)  # type: ignore[arg-type]


class ImageEmbedding(nn.Module):
    """From an image encoder's tokens to the network's width."""

    def __init__(self, shape: ImageShape, width: int) -> None:
        super().__init__()
        inside = Linear(shape.width, shape.width)
        self.proj = nn.Sequential(
            LayerNorm(shape.width), inside, nn.GELU(), Linear(shape.width, width), LayerNorm(width)
        )

    def forward(self, tokens_BCW: Tensor) -> Tensor:
        """[B, C, E]."""
        return self.proj(tokens_BCW)  # type: ignore[no-any-return]


class Head(nn.Module):
    """From the residual stream to the patches of the flow."""

    def __init__(self, shape: WanShape) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 2, shape.width))
        self.norm = LayerNorm(shape.width, shape.eps, elementwise_affine=False)
        self.head = Linear32(shape.width, shape.out_channels * shape.patch_latents)

    def forward(self, x_BTE: Tensor, level_BFE: Tensor) -> Tensor:
        """[B, T, patch values]."""
        shift, scale = (level_BFE[:, :, None] + self.modulation.float()).unbind(2)
        patches: Tensor = self.head(modulate(self.norm(x_BTE), shift, scale))
        return patches


def sinusoids(timestep_BF: Tensor, features: int) -> Tensor:
    """How the noise level is told: cosines, then sines, [B, F, features] float32, computed in float64."""
    half = features // 2
    step = torch.arange(half, dtype=torch.float64, device=timestep_BF.device)
    angle = timestep_BF.double()[..., None] * LONGEST_PERIOD ** (-step / half)
    return torch.cat([angle.cos(), angle.sin()], -1).float()


def to_patches(x_BCFHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Tokens [B, T, C * patch values] in the order of the network's own; within a token, channel first."""
    B, C, F, H, W = x_BCFHW.shape
    f, h, w = patch
    x = x_BCFHW.reshape(B, C, F // f, f, H // h, h, W // w, w)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(B, -1, C * f * h * w)


def from_patches(patches_BTP: Tensor, grid: torch.Size, shape: WanShape) -> Tensor:
    """Latents [B, C, F, H, W]; within a token, channel last."""
    f, h, w = shape.patch
    x = patches_BTP.reshape(-1, *grid, f, h, w, shape.out_channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(-1, shape.out_channels, grid[0] * f, grid[1] * h, grid[2] * w)
