"""What a world model must offer so that rollout, memory and cluster work with it unchanged.

A model is stateless between calls but for its weights. What a session needs beside its KV chunks (text and image
contexts, action caches, decoder state, first pose) lives in a `ModelState`, which the session owns, snapshots and
forks. Whatever does not depend on the denoise step is computed once per chunk, in `condition`.

How the published models fit: LingBot-World-Fast keeps text KV and the image latents in its state, and `condition`
holds its camera scale and shift; Matrix-Game-2.0 keeps its mouse and keyboard caches in its state, which
`clean_pass` extends and which stay recent-only, and the streaming VAE decoder its feature cache, extended by `decode`.

Shapes: B sessions in a batch, L layers, F latent frames of a chunk, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldkv.geometry import KVGeometry
from worldkv.models.ranks import Ranks


@dataclass(frozen=True)
class View:
    """What the camera does over one chunk, one entry per video frame."""

    c2w_F44: NDArray[np.float32]
    """Camera-to-world, OpenCV axes, float32; world coordinates of the trajectory."""
    intrinsics_F4: NDArray[np.float32]
    """fx, fy, cx, cy in pixels."""
    actions_FA: NDArray[np.float32] | None = None
    """Keys W S A D R L, 1 where held (`camera.ACTION_COLUMNS`); row i leads from frame i to frame i + 1. None where
    only the poses are known."""


@dataclass(frozen=True)
class Schedule:
    """Denoise steps of a distilled model: estimate clean latents, mix them with fresh noise, estimate again."""

    levels: tuple[float, ...]
    """Noise level that the model is told at each step, from high to low."""
    mixed: tuple[float, ...]
    """Share of fresh noise mixed in behind each step but the last: the next level, up to how a model looks it up."""


@dataclass
class ModelState:
    """What one session carries for its model from chunk to chunk; plain tensors, so it snapshots without pickle."""

    tensors: dict[str, Tensor] = field(default_factory=dict)


class ChunkKV(NamedTuple):
    """KV of a clean pass over one chunk of each session in the batch."""

    k_LBTHD: Tensor
    """Before rotation."""
    v_LBTHD: Tensor


class Window(Protocol):
    """What is attended to: past tokens already rotated, and room for the chunk in work behind them."""

    @property
    def past_tokens(self) -> int:
        """Tokens before the current chunk's."""
        ...

    def attend(self, layer: int, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor) -> Tensor:
        """Attention of the current chunk's queries over the past and the chunk itself, [B, T, H, D].

        Takes queries and keys un-rotated and rotates them to the current chunk's place.
        """
        ...


class WorldModel(Protocol):
    """One set of weights on one device, or one rank's part of it."""

    @property
    def name(self) -> str:
        """Short name for configs, metrics and datasets."""
        ...

    @property
    def epoch(self) -> str:
        """Digest of the weights; chunks of another epoch are never used."""
        ...

    @property
    def geometry(self) -> KVGeometry:
        """Shape of its KV, as this rank holds it."""
        ...

    @property
    def ranks(self) -> Ranks:
        """The processes it is shared out among, `ranks.ALONE` for one. All make the same calls in the same order."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one latent frame."""
        ...

    @property
    def video_frames_per_latent(self) -> int:
        """Decoded pictures per latent frame."""
        ...

    @property
    def device(self) -> torch.device:
        """Where weights, KV and latents live."""
        ...

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the KV that a clean pass returns and a window holds."""
        ...

    def open(self, view: View, context: Mapping[str, Tensor]) -> ModelState:
        """A fresh session's state, from its first camera view and its contexts (prompt, image)."""
        ...

    def condition(self, states: Sequence[ModelState], views: Sequence[View]) -> object:
        """All that the forwards over this chunk need of cameras, actions and contexts; opaque to the caller."""
        ...

    def estimate(self, latents_BFCHW: Tensor, noise: float, condition: object, window: Window) -> Tensor:
        """Clean latents as estimated at noise level `noise` in (0, 1]: one denoise step's forward."""
        ...

    def clean_pass(
        self,
        latents_BFCHW: Tensor,
        condition: object,
        window: Window,
        states: Sequence[ModelState],
        *,
        generated: bool,
    ) -> ChunkKV:
        """KV of finished latents (the forward at noise 0); extends the caches in `states`.

        `generated` is False where the latents were given; a model may mark in the KV which of the two they are.
        """
        ...

    def encode(self, frames_BFHWC: Tensor, states: Sequence[ModelState]) -> Tensor:
        """Latents [B, F, C, H, W] of given uint8 video frames: how a session is shown what it did not make."""
        ...

    def decode(self, latents_BFCHW: Tensor, states: Sequence[ModelState]) -> Tensor:
        """Video frames [B, F', H, W, 3] uint8 on the CPU; extends the decoder caches in `states`."""
        ...
