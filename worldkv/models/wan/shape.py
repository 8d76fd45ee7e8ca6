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
class MouseShape:
    """The mouse's part of an action module."""

    values: int
    """Per video frame."""
    width: int


@dataclass(frozen=True)
class ActionShape:
    """Action modules: what some layers have between cross-attention and MLP."""

    layers: tuple[int, ...]
    """Those that have one."""
    heads: int
    keys: int
    """Of the keyboard."""
    embedding: int
    """Width of an embedded row of keys."""
    keyboard_width: int
    mouse: MouseShape | None
    window: int
    """Latent frames whose actions a latent frame is told: its own and those before it."""
    rows_per_latent: int
    """Video frames of a latent frame."""
    time_pairs: int
    """Pairs of channels that turn with time in the modules' rotary embedding; the others do not turn."""
    theta: float
    """Base of its frequencies."""
    reach: int
    """Latent frames that mouse and keyboard attend to, the current chunk's included."""

    @property
    def window_rows(self) -> int:
        """Rows of actions that a latent frame is told."""
        return self.window * self.rows_per_latent

    @property
    def values(self) -> int:
        """Of one row: mouse, then keyboard."""
        return self.keys + (self.mouse.values if self.mouse else 0)


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
    actions: ActionShape | None = None
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
