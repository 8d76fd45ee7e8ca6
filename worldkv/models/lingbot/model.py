"""LingBot-World behind the model protocol.

A session's context holds `prompt` [tokens, width], embeddings of the umT5 encoder, `image` [H, W, 3] uint8 or
`image_latents` [C, F, H, W] made of it earlier, and `unit`, the length `camera.longest_step` of its trajectory
(1 where absent).

Shapes: B sessions, F latent frames, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from worldkv.errors import ModelError
from worldkv.models.base import ModelState, View
from worldkv.models.lingbot.camera import Control, camera_map, latent_poses
from worldkv.models.wan.layers import Condition
from worldkv.models.wan.model import FRAMES, TRAIN_STEPS, WanChunk, WanModel
from worldkv.models.wan.official import CAMERA_CHANNELS
from worldkv.models.wan.shape import TextShape

FIRST_POSE, LAST_POSE, INTRINSICS, UNIT = "first_c2w", "last_c2w", "intrinsics", "unit"


class LingBotModel(WanModel):
    """See `models.base.WorldModel`."""

    @property
    def control(self) -> Control:
        """What the weights take of the camera."""
        return "act" if self.network.shape.camera_channels == CAMERA_CHANNELS["act"] else "cam"

    @torch.inference_mode()
    def open(self, view: View, context: Mapping[str, Tensor]) -> ModelState:
        """See `WorldModel.open`. Raises ModelError where the context lacks a part or has one of another shape."""
        state = self._opened(self._prompt(context), context)
        state[FIRST_POSE] = latent_poses(view.c2w_F44)[0]
        # As published, the first frame's intrinsics serve the whole rollout.
        state[INTRINSICS] = torch.from_numpy(np.array(view.intrinsics_F4[0], np.float32))
        state[UNIT] = torch.as_tensor(context.get(UNIT, 1.0), dtype=torch.float64)
        return ModelState(state)

    @torch.inference_mode()
    def condition(self, states: Sequence[ModelState], views: Sequence[View]) -> WanChunk:
        """See `WorldModel.condition`."""
        maps = [self._map(*one) for one in zip(states, views, strict=True)]
        camera = self.network.camera(torch.stack(maps).to(self.device))
        condition = Condition(self._image_condition(states), self._context_kv(states), camera)
        return WanChunk(condition, tuple(self._behind(*one) for one in zip(states, views, strict=True)))

    def timestep(self, noise: float) -> float:
        """Whole, as its scheduler counts."""
        return float(int(noise * TRAIN_STEPS))

    def _map(self, state: ModelState, view: View) -> Tensor:
        first_F4 = np.broadcast_to(state.tensors[INTRINSICS].numpy(), view.intrinsics_F4.shape)
        view = replace(view, intrinsics_F4=first_F4)
        first, before, unit = state.tensors[FIRST_POSE], state.tensors.get(LAST_POSE), float(state.tensors[UNIT])
        rays = torch.from_numpy(camera_map(view, first, before, unit, self.settings.picture, self.control))
        # The published code hands its rays over in bfloat16 whatever the dtype of the weights.
        return rays.bfloat16().float()

    def _behind(self, state: ModelState, view: View) -> dict[str, Tensor]:
        return {FRAMES: self._frames_behind(state), LAST_POSE: latent_poses(view.c2w_F44)[-1]}

    def _prompt(self, context: Mapping[str, Tensor]) -> Tensor:
        shape = self.network.shape.context
        assert isinstance(shape, TextShape)
        prompt = context.get("prompt")
        if prompt is None:
            raise ModelError(f"{self.name} takes a prompt: its context must hold prompt [tokens, {shape.width}]")
        if prompt.ndim != 2 or prompt.shape[1] != shape.width or len(prompt) > shape.tokens:
            raise ModelError(
                f"the prompt has shape {list(prompt.shape)}, {self.name} takes [1 to {shape.tokens}, {shape.width}]"
            )
        return prompt
