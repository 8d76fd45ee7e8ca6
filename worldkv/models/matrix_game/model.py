"""Matrix-Game-2.0 behind the model protocol.

A session's context holds `image_tokens` [tokens, width], what the CLIP encoder says of its image, and `image`
[H, W, 3] uint8 or `image_latents` [C, F, H, W] made of it earlier. Mouse and keyboard caches stay recent-only: they
are strictly temporal and have no part in memory.

Shapes: B sessions, F latent frames, V video frames of a chunk, W rows of a window, A values of a row, T tokens,
P past latent frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldkv.errors import ModelError
from worldkv.models.base import ChunkKV, ModelState, View, Window
from worldkv.models.matrix_game.vocabulary import Vocabulary
from worldkv.models.wan.actions import ActionChunk, ActionKV
from worldkv.models.wan.layers import Condition
from worldkv.models.wan.model import FRAMES, WanChunk, WanModel, WanSettings, stacked
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.pictures import Pictures
from worldkv.models.wan.shape import ActionShape, ImageShape

ROWS = "action_rows"
"""In a session's state: mouse and keyboard of the video frames before the next chunk, as many as a window has."""
CACHES = ("keyboard_k", "keyboard_v", "mouse_k", "mouse_v")
"""In a session's state, followed by the layer: un-rotated, the last latent frames only."""


class MatrixGameModel(WanModel):
    """See `models.base.WorldModel`."""

    def __init__(
        self,
        network: WanNetwork,
        settings: WanSettings,
        epoch: str,
        pictures: Pictures | None,
        vocabulary: Vocabulary,
    ) -> None:
        super().__init__(network, settings, epoch, pictures)
        self.vocabulary = vocabulary

    @property
    def _actions(self) -> ActionShape:
        actions = self.network.shape.actions
        assert actions is not None
        return actions

    @torch.inference_mode()
    def open(self, view: View, context: Mapping[str, Tensor]) -> ModelState:
        """See `WorldModel.open`. Raises ModelError where the context lacks a part or has one of another shape."""
        state = self._opened(self._tokens(context), context)
        # Before the first video frame there was always its own action.
        state[ROWS] = self._rows(view)[:1].expand(self._actions.window_rows, -1).clone()
        return ModelState(state)

    @torch.inference_mode()
    def condition(self, states: Sequence[ModelState], views: Sequence[View]) -> WanChunk:
        """See `WorldModel.condition`. Raises TrajectoryError for an action that the weights do not know."""
        rows = [torch.cat([s.tensors[ROWS], self._rows(v)]) for s, v in zip(states, views, strict=True)]
        condition = Condition(
            self._image_condition(states), self._context_kv(states), actions=self._action_chunk(states, rows)
        )
        last = self._actions.window_rows
        behind = (
            {FRAMES: self._frames_behind(state), ROWS: row[-last:].clone()}
            for state, row in zip(states, rows, strict=True)
        )
        return WanChunk(condition, tuple(behind))

    def clean_pass(
        self,
        latents_BFCHW: Tensor,
        condition: object,
        window: Window,
        states: Sequence[ModelState],
        *,
        generated: bool,
    ) -> ChunkKV:
        """See `WorldModel.clean_pass`; extends mouse and keyboard caches and cuts them to what the next chunk sees."""
        kv = super().clean_pass(latents_BFCHW, condition, window, states, generated=generated)
        assert isinstance(condition, WanChunk)
        assert condition.condition.actions is not None
        for layer, made in condition.condition.actions.made.items():
            for name, new_B in zip(CACHES, made, strict=True):
                if new_B is not None:
                    self._extend(states, f"{name}/{layer}", new_B)
        return kv

    def _extend(self, states: Sequence[ModelState], name: str, new_B: Tensor) -> None:
        for state, new in zip(states, new_B, strict=True):
            state.tensors[name] = self._recent(state.tensors.get(name), new)

    def _recent(self, past: Tensor | None, new: Tensor) -> Tensor:
        whole = new if past is None else torch.cat([past, new], dim=-3)
        kept = max(0, self._actions.reach - self.geometry.chunk_latent_frames)
        return whole[..., whole.shape[-3] - min(kept, whole.shape[-3]) :, :, :].clone()

    def _action_chunk(self, states: Sequence[ModelState], rows: Sequence[Tensor]) -> ActionChunk:
        """Windows of each latent frame's rows, and the caches where the sessions have any."""
        shape = self._actions
        rows_BVA = torch.stack(list(rows)).to(self.device)
        rows_BFWA = rows_BVA.unfold(1, shape.window_rows, shape.rows_per_latent).transpose(-1, -2)
        rows_BFWA = rows_BFWA[:, : self.geometry.chunk_latent_frames]
        mouse, keyboard = torch.split(rows_BFWA, [shape.values - shape.keys, shape.keys], dim=-1)
        past = {
            layer: self._past(states, layer) for layer in shape.layers if f"{CACHES[0]}/{layer}" in states[0].tensors
        }
        return ActionChunk(keyboard, mouse if shape.mouse else None, past)

    def _past(self, states: Sequence[ModelState], layer: int) -> ActionKV:
        names = CACHES if self._actions.mouse else CACHES[:2]
        return ActionKV(*(stacked([state.tensors[f"{name}/{layer}"] for state in states], 0) for name in names))

    def _rows(self, view: View) -> Tensor:
        """Mouse and keyboard of a view's video frames, [V, A]."""
        if view.actions_FA is None:
            raise ModelError(f"{self.name} is moved by actions, and the trajectory has only poses")
        return self._joined(*self.vocabulary.rows(view.actions_FA))

    def _joined(self, keyboard: NDArray[np.float32], mouse: NDArray[np.float32]) -> Tensor:
        parts = (mouse, keyboard) if self._actions.mouse else (keyboard,)
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def _tokens(self, context: Mapping[str, Tensor]) -> Tensor:
        shape = self.network.shape.context
        assert isinstance(shape, ImageShape)
        tokens = context.get("image_tokens")
        if tokens is None:
            raise ModelError(f"{self.name} sees its image: its context must hold image_tokens [tokens, {shape.width}]")
        if tokens.ndim != 2 or tokens.shape[1] != shape.width:
            raise ModelError(f"image_tokens have shape {list(tokens.shape)}, {self.name} takes [tokens, {shape.width}]")
        return tokens
