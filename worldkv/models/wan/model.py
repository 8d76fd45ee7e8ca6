"""A causal Wan DiT behind the model protocol. A family adds how a session opens and what conditions a chunk.

Shapes: B sessions, L layers, F latent frames, C channels or context tokens, H rows or heads, W columns, T tokens,
D head dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldkv.camera import PictureSize
from worldkv.errors import ModelError
from worldkv.geometry import KVGeometry
from worldkv.models.base import ChunkKV, ModelState, Schedule, View, Window
from worldkv.models.ranks import ALONE, Ranks
from worldkv.models.wan.layers import Condition, ContextKV
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.pictures import Pictures
from worldkv.models.wan.shape import WanShape

LATENT_SIDE = 8
"""Pixels along one side of a latent pixel."""
TRAIN_STEPS = 1000
"""Noise levels are told as timesteps out of so many."""
CONTEXT_K, CONTEXT_V, IMAGE, FRAMES = "context_k", "context_v", "image_latents", "latent_frames"
"""Names in a session's state; the last counts the latent frames that are finished."""


@dataclass(frozen=True)
class WanSettings:
    """How a set of weights is meant to be used."""

    name: str
    picture: PictureSize
    chunk_latent_frames: int
    trained_latent_frames: int
    """Longest window, in latent frames, at positions that the model knows."""
    schedule: Schedule


@dataclass(frozen=True)
class WanChunk:
    """What `condition` makes of a batch."""

    condition: Condition
    behind: tuple[dict[str, Tensor], ...]
    """Per session, what its state holds once the chunk is finished."""


class WanModel(ABC):
    """See `models.base.WorldModel`; computes in the dtype of its weights."""

    video_frames_per_latent = 4

    def __init__(self, network: WanNetwork, settings: WanSettings, epoch: str, pictures: Pictures | None) -> None:
        shape = network.shape
        self.network, self.settings, self.epoch, self.pictures = network, settings, epoch, pictures
        self.name = settings.name
        self.geometry = geometry_of(shape, settings, network.ranks)
        height, width = (side // LATENT_SIDE for side in settings.picture)
        self.latent_shape = (shape.out_channels, height, width)

    @property
    def schedule(self) -> Schedule:
        """The denoise steps it was distilled for: what `rollout` takes as `levels`."""
        return self.settings.schedule

    @property
    def device(self) -> torch.device:
        """See `WorldModel.device`."""
        return self.network.patch_embedding.weight.device

    @property
    def ranks(self) -> Ranks:
        """See `WorldModel.ranks`."""
        return self.network.ranks

    @property
    def kv_dtype(self) -> torch.dtype:
        """See `WorldModel.kv_dtype`."""
        return self.network.patch_embedding.weight.dtype

    @abstractmethod
    def open(self, view: View, context: Mapping[str, Tensor]) -> ModelState:
        """See `WorldModel.open`."""

    @abstractmethod
    def condition(self, states: Sequence[ModelState], views: Sequence[View]) -> WanChunk:
        """See `WorldModel.condition`."""

    @torch.inference_mode()
    def estimate(self, latents_BFCHW: Tensor, noise: float, condition: object, window: Window) -> Tensor:
        """See `WorldModel.estimate`. What is left of the noise is subtracted in float64, as published."""
        assert isinstance(condition, WanChunk)
        x = latents_BFCHW.transpose(1, 2)
        timestep_BF = torch.full(latents_BFCHW.shape[:2], self.timestep(noise), device=self.device)
        flow = self.network(x, timestep_BF, condition.condition, window.attend)
        clean: Tensor = x.double() - noise * flow.double()
        return clean.float().transpose(1, 2)

    @torch.inference_mode()
    def clean_pass(
        self,
        latents_BFCHW: Tensor,
        condition: object,
        window: Window,
        states: Sequence[ModelState],
        *,
        generated: bool,
    ) -> ChunkKV:
        """See `WorldModel.clean_pass`; these models are not told what was generated."""
        assert isinstance(condition, WanChunk)
        shape = (self.geometry.layers, len(states), self.geometry.tokens_per_chunk)
        size = (*shape, self.geometry.heads, self.geometry.head_dim)
        keys, values = (torch.empty(size, device=self.device, dtype=self.kv_dtype) for _ in range(2))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[layer], values[layer] = k, v
            return window.attend(layer, q, k, v)

        timestep_BF = torch.zeros(latents_BFCHW.shape[:2], device=self.device)
        self.network(latents_BFCHW.transpose(1, 2), timestep_BF, condition.condition, attend)
        for state, behind in zip(states, condition.behind, strict=True):
            state.tensors.update(behind)
        return ChunkKV(keys, values)

    @torch.inference_mode()
    def encode(self, frames_BFHWC: Tensor, states: Sequence[ModelState]) -> Tensor:
        """See `WorldModel.encode`."""
        pictures = self._pictures("shown video frames")
        return torch.stack([pictures.encode(*one) for one in zip(frames_BFHWC, states, strict=True)])

    @torch.inference_mode()
    def decode(self, latents_BFCHW: Tensor, states: Sequence[ModelState]) -> Tensor:
        """See `WorldModel.decode`; the first chunk of a session has three video frames less than the others."""
        pictures = self._pictures("decoded")
        return torch.stack([pictures.decode(*one) for one in zip(latents_BFCHW, states, strict=True)])

    def timestep(self, noise: float) -> float:
        """How the network is told a noise level."""
        return noise * TRAIN_STEPS

    def _opened(self, tokens_CW: Tensor, context: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """State of a fresh session: context KV of its tokens, image latents, no latent frames yet."""
        kv = self.network.context(tokens_CW[None].to(self.device))
        return {
            CONTEXT_K: kv.k_LBCHD[:, 0],
            CONTEXT_V: kv.v_LBCHD[:, 0],
            IMAGE: self._image_latents(context),
            FRAMES: torch.tensor(0),
        }

    def _image_latents(self, context: Mapping[str, Tensor]) -> Tensor:
        if "image_latents" in context:
            return context["image_latents"].to(self.device)
        if "image" not in context:
            raise ModelError(f"{self.name} starts from an image: its context must hold image or image_latents")
        return self._pictures("shown an image").image_latents(context["image"])

    def _image_condition(self, states: Sequence[ModelState]) -> Tensor:
        """Mask and image latents [B, C, F, H, W] of the next chunk: the mask is 1 on the very first latent frame."""
        shape = self.network.shape
        parts = []
        for state in states:
            image = state.tensors[IMAGE]
            start = int(state.tensors[FRAMES])
            frame_F = torch.arange(start, start + self.geometry.chunk_latent_frames, device=image.device)
            mask_F = (frame_F == 0).to(image.dtype)
            mask = mask_F[:, None, None].expand(shape.image_channels - len(image), -1, *image.shape[2:])
            parts.append(torch.cat([mask, image[:, frame_F.clamp(max=image.shape[1] - 1)]]))
        return torch.stack(parts)

    def _context_kv(self, states: Sequence[ModelState]) -> ContextKV:
        return ContextKV(*(stacked([state.tensors[name] for state in states], 1) for name in (CONTEXT_K, CONTEXT_V)))

    def _frames_behind(self, state: ModelState) -> Tensor:
        return state.tensors[FRAMES] + self.geometry.chunk_latent_frames

    def _pictures(self, purpose: str) -> Pictures:
        if self.pictures is None:
            raise ModelError(f"{self.name} was loaded without its VAE and cannot be {purpose}")
        return self.pictures


def geometry_of(shape: WanShape, settings: WanSettings, ranks: Ranks = ALONE) -> KVGeometry:
    """Shape of the KV of a network used in this way, as one rank holds it."""
    rows, columns = (
        side // LATENT_SIDE // patch for side, patch in zip(settings.picture, shape.patch[1:], strict=True)
    )
    return KVGeometry(
        layers=shape.layers,
        heads=shape.heads // ranks.size,
        head_dim=shape.head_dim,
        rows=rows,
        columns=columns,
        chunk_latent_frames=settings.chunk_latent_frames,
        trained_latent_frames=settings.trained_latent_frames,
    )


def stacked(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """As `torch.stack`, but one tensor alone is not copied."""
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(list(tensors), dim)
