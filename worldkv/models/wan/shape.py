"""Everything that fixes the tensors of a causal Wan DiT. Read from a checkpoint's config, never typed in code."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TextShape:
    """Prompt embeddings as the model takes them."""

    width: int
    tokens: int
    """Shorter prompts are padded with zero rows, which are attended to like the others."""


@dataclass(frozen=True)
class ImageShape:
    """Tokens of an image encoder as the model takes them."""

    width: int


@dataclass(frozen=True)
class WanShape:
    """The sizes of a network, and which of the optional parts it has."""

    width: int
    mlp_width: int
    heads: int
    layers: int
    noise_features: int
    in_channels: int
    """Latents and the image condition beside them."""
    out_channels: int
    """Of a latent frame."""
    context: TextShape | ImageShape
    """What cross-attention attends to."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns that make one token."""
    camera_channels: int | None = None
    """Channels of the camera map at latent resolution; None: no cameras."""
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def patch_latents(self) -> int:
        """Latent pixels that make one token."""
        return math.prod(self.patch)

    @property
    def image_channels(self) -> int:
        """Channels of the image condition."""
        return self.in_channels - self.out_channels
