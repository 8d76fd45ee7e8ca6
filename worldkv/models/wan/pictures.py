"""Video frames in and out of latents. What must be remembered between chunks is kept in each session's state.

The first latent frame stands for one video frame, each later one for four: a first chunk of F latent frames shows
4 F - 3 video frames, and every later chunk ends three video frames before the poses it was made for.

Shapes: F frames (video or latent, as the docstring says), C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.camera import PictureSize
from worldkv.errors import ModelError
from worldkv.models.base import ModelState
from worldkv.models.wan.tiny_vae import TinyVAE
from worldkv.models.wan.vae import History, WanVAE

ENCODER, DECODER, PENDING = "encoder/", "decoder/", "pending_frames"
"""Names in a session's state: histories, and video frames that do not make a latent frame yet."""
IMAGE_REACH = 30
"""Latent frames of an image followed by nothing: the encoder looks back so far that the last of them no longer sees
the image, and all later ones are like it."""
Resampling = Literal["bicubic", "bilinear"]
"""How a first picture is brought to size: LingBot's code scales its numbers; Matrix-Game-2.0's scales the picture, and
smooths what it makes smaller."""
ASPECT_TOLERANCE = 0.01
HALF = 127.5
"""A uint8 picture p is p / HALF - 1 to the VAE."""


class Pictures:
    """Both directions of one picture size; decodes with `quick` where it is given."""

    def __init__(
        self, vae: WanVAE, size: PictureSize, quick: TinyVAE | None = None, *, resampling: Resampling = "bicubic"
    ) -> None:
        self.vae, self.size, self.quick, self.resampling = vae, size, quick, resampling

    def image_latents(self, image_HWC: Tensor) -> Tensor:
        """Latents [C, IMAGE_REACH, H', W'] of a clip that starts with a uint8 image and has nothing after it.

        Raises ModelError for an image of another aspect ratio.
        """
        refuse_other_aspect(image_HWC.shape[:2], self.size, "the image")
        device = self.vae.conv2.weight.device
        image_C1HW = (scaled(image_HWC.to(device), self.size, self.resampling) / HALF - 1)[:, None]
        frames = (IMAGE_REACH - 1) * self.vae.shape.video_frames
        nothing = image_C1HW.new_zeros(len(image_C1HW), frames, *self.size)
        return self.vae.encode(torch.cat([image_C1HW, nothing], dim=1)[None], {})[0]

    def encode(self, frames_FHWC: Tensor, state: ModelState) -> Tensor:
        """Latents [F', C, H', W'] of the next uint8 video frames that were not made here; extends the histories.

        The decoder sees them too, so that what is made next follows on them.
        """
        history = _history(state, ENCODER)
        pending = state.tensors.get(PENDING, frames_FHWC[:0])
        frames = torch.cat([pending.to(frames_FHWC.device), frames_FHWC])
        left = (len(frames) - (0 if history else 1)) % self.vae.shape.video_frames
        state.tensors[PENDING] = frames[len(frames) - left :].clone()
        latents = self.vae.encode(self._signed(frames[: len(frames) - left])[None], history)[0].transpose(0, 1)
        _remember(state, ENCODER, history)
        self.decode(latents, state)
        return latents

    def decode(self, latents_FCHW: Tensor, state: ModelState) -> Tensor:
        """Video frames [F', H, W, 3] uint8 on the CPU; extends the history."""
        history = _history(state, DECODER)
        fresh = not history
        if self.quick is None:
            frames = self.vae.decode(latents_FCHW.transpose(0, 1)[None], history)[0].transpose(0, 1)
        else:
            weight_dtype = next(self.quick.parameters()).dtype
            frames = self.quick.decode(latents_FCHW[None].to(weight_dtype), history)[0].float() * 2 - 1
            frames = frames[self.vae.shape.video_frames - 1 :] if fresh else frames
        _remember(state, DECODER, history)
        pixels = (frames.clamp(-1, 1) + 1) * HALF
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    def _signed(self, frames_FHWC: Tensor) -> Tensor:
        """[3, F, H, W] in [-1, 1], on the VAE's device."""
        device = self.vae.conv2.weight.device
        return frames_FHWC.to(device).permute(3, 0, 1, 2).float() / HALF - 1


def scaled(image_HWC: Tensor, size: PictureSize, resampling: Resampling) -> Tensor:
    """A uint8 picture at another size, [3, H, W] float32 between 0 and 255, where bicubic numbers may lie outside."""
    image_1CHW = image_HWC.permute(2, 0, 1)[None].float()
    if resampling == "bicubic":
        return fn.interpolate(image_1CHW, tuple(size), mode="bicubic")[0]
    return fn.interpolate(image_1CHW, tuple(size), mode="bilinear", antialias=True)[0].round()


def refuse_other_aspect(found: Sequence[int], size: PictureSize, source: str) -> None:
    """Raise ModelError for a picture of `found` height and width that cannot be scaled to `size`."""
    height, width = found
    if abs(width / height / (size.width / size.height) - 1) > ASPECT_TOLERANCE:
        raise ModelError(
            f"{source} has {height}x{width} pixels, the model makes {size.height}x{size.width}: "
            "crop it to that aspect ratio"
        )


def _history(state: ModelState, prefix: str) -> History:
    return {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}


def _remember(state: ModelState, prefix: str, history: History) -> None:
    state.tensors.update({prefix + name: tensor for name, tensor in history.items()})
