"""The rooms network behind the model protocol. Its latent frames are video frames; it needs no context.

Shapes: B sessions, F frames, L layers, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldkv.errors import ModelError
from worldkv.geometry import KVGeometry
from worldkv.models.base import ChunkKV, ModelState, View, Window
from worldkv.models.ranks import ALONE
from worldkv.models.rooms import weights
from worldkv.models.rooms.network import MADE_LEVEL, Cameras, RoomsNetwork

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
# A pose that is not level has no row-wise meaning to a network that was trained on level cameras.
LEVEL_TOLERANCE = 1e-3


class RoomsModel:
    """See `models.base.WorldModel`; bf16 on CUDA, float32 on a CPU."""

    name = "rooms"
    video_frames_per_latent = 1
    ranks = ALONE

    def __init__(self, network: RoomsNetwork, tangent: float, epoch: str, device: torch.device) -> None:
        shape = network.shape
        self.network, self.tangent, self.epoch, self.device = network.to(device), tangent, epoch, device
        self.kv_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.latent_shape = (3, shape.image, shape.image)
        self.geometry = KVGeometry(
            layers=shape.layers,
            heads=shape.heads,
            head_dim=shape.head_dim,
            rows=shape.side,
            columns=shape.side,
            chunk_latent_frames=shape.frames_per_chunk,
            trained_latent_frames=shape.trained_frames,
        )

    @classmethod
    def load(cls, folder: Path = SHIPPED_WEIGHTS, device: torch.device | None = None) -> RoomsModel:
        """The model of a weights folder; by default the shipped one on the CPU. Raises CheckpointError."""
        network, tangent, epoch = weights.load(folder)
        return cls(network, tangent, epoch, device or torch.device("cpu"))

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """The only camera it knows: fx, fy, cx, cy in pixels."""
        size = self.network.shape.image
        return (size / 2 / self.tangent, size / 2 / self.tangent, size / 2, size / 2)

    def open(self, view: View, context: Mapping[str, Tensor]) -> ModelState:
        """Remembers the first pose: the network thinks in its coordinates. Raises ModelError on a context."""
        if context:
            raise ModelError(f"the rooms model takes no context, got {', '.join(context)}")
        return ModelState({"first_c2w": torch.from_numpy(np.array(view.c2w_F44[0], np.float32))})

    def condition(self, states: Sequence[ModelState], views: Sequence[View]) -> Cameras:
        """The camera terms of a batch. Raises ModelError for another camera or a tilted pose."""
        for view in views:
            self._check(view)
        relative = [
            _relative(state.tensors["first_c2w"].numpy(), view.c2w_F44)
            for state, view in zip(states, views, strict=True)
        ]
        c2w_BF44 = torch.from_numpy(np.stack(relative)).to(self.device)
        with torch.inference_mode(), self._autocast():
            return self.network.cameras(c2w_BF44, self.tangent)

    def estimate(self, latents_BFCHW: Tensor, noise: float, condition: object, window: Window) -> Tensor:
        """See `WorldModel.estimate`."""
        assert isinstance(condition, Cameras)
        noise_BF = torch.full(latents_BFCHW.shape[:2], noise, device=self.device)
        with torch.inference_mode(), self._autocast():
            clean, _ = self.network(latents_BFCHW, noise_BF, condition, window.attend)
            return clean.float()  # type: ignore[no-any-return]

    def clean_pass(
        self,
        latents_BFCHW: Tensor,
        condition: object,
        window: Window,
        states: Sequence[ModelState],
        *,
        generated: bool,
    ) -> ChunkKV:
        """See `WorldModel.clean_pass`; the states stay as they are. What was generated is told as MADE_LEVEL."""
        keys, values = [], []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.append(k.to(self.kv_dtype))
            values.append(v.to(self.kv_dtype))
            return window.attend(layer, q, k, v)

        assert isinstance(condition, Cameras)
        noise_BF = torch.full(latents_BFCHW.shape[:2], MADE_LEVEL if generated else 0.0, device=self.device)
        with torch.inference_mode(), self._autocast():
            self.network(latents_BFCHW, noise_BF, condition, attend)
            return ChunkKV(torch.stack(keys), torch.stack(values))

    def encode(self, frames_BFHWC: Tensor, states: Sequence[ModelState]) -> Tensor:
        """Pixels in [-1, 1]."""
        return frames_BFHWC.to(self.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1

    def decode(self, latents_BFCHW: Tensor, states: Sequence[ModelState]) -> Tensor:
        """Pixels clamped and rounded to uint8."""
        pixels = (latents_BFCHW.clamp(-1, 1) + 1) * 127.5
        return pixels.round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _check(self, view: View) -> None:
        other_F = ~np.isclose(view.intrinsics_F4, self.intrinsics, rtol=1e-3).all(axis=1)
        if other_F.any():
            raise ModelError(
                f"the rooms model knows one camera, fx fy cx cy = {self.intrinsics}; "
                f"the trajectory has {tuple(float(x) for x in view.intrinsics_F4[other_F.argmax()])}"
            )
        down = view.c2w_F44[:, :3, 1]
        if np.abs(down - np.array([0, 1, 0])).max() > LEVEL_TOLERANCE:
            raise ModelError("the rooms model takes level cameras only: a pose of the trajectory is tilted")


def _relative(first_44: np.ndarray, c2w_F44: np.ndarray) -> np.ndarray:
    """Poses in the coordinates of the first one; float64 inside."""
    inverse = np.linalg.inv(first_44.astype(np.float64))
    return np.asarray(inverse @ c2w_F44.astype(np.float64), np.float32)
