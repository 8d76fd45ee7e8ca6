"""TAEHV for Wan 2.1 latents (`taew2_1.pth`): a small autoencoder that decodes in a fraction of the time, less sharply.

- Streams like the large one: the history holds the last frame that each block with a memory saw.
- Pictures lie in [0, 1], latents are the normalised ones that the diffusion model speaks.
- Attribute names are those of the published checkpoint.

Shapes: B clips, F frames (video or latent, as the docstring says), C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from worldkv.models.wan.vae import LATENT_MEAN, History

LARGEST_LATENT = 3.0
"""Latents are squashed into this range before they are decoded."""
MEMORIES = 3
"""Blocks with a memory in each stage."""


@dataclass(frozen=True)
class TinyVAEShape:
    """Everything that fixes the tensors of a checkpoint; the defaults are the published ones."""

    decoder_widths: tuple[int, ...] = (256, 128, 64, 64)
    """Of each stage, coarse to fine, and of the last step."""
    encoder_width: int = 64
    latent_channels: int = len(LATENT_MEAN)
    grow_time: tuple[int, ...] = (1, 2, 2)
    """Frames that the decoder makes of one behind each stage."""
    pool_time: tuple[int, ...] = (2, 2, 1)
    """Frames that the encoder makes one of before each stage."""


class TinyVAE(nn.Module):
    """Weights, and coding in both directions."""

    def __init__(self, shape: TinyVAEShape) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(shape), decoder(shape)
        for name, module in self.named_modules():
            if isinstance(module, Memory):
                module.name = name

    def encode(self, pictures_BFCHW: Tensor, history: History) -> Tensor:
        """Latents [B, F / 4, C, H / 8, W / 8] of the next video frames, in whole latent frames."""
        return through(self.encoder, pictures_BFCHW, history)

    def decode(self, latents_BFCHW: Tensor, history: History) -> Tensor:
        """Video frames [B, 4 F, 3, H * 8, W * 8] of the next latent frames, not clamped.

        Of the very first latent frame only the last picture is meant to be seen.
        """
        return through(self.decoder, latents_BFCHW, history)


class Memory(nn.Module):
    """A residual block that sees the frame before beside each frame, zeros before the first."""

    name = ""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor, history: History, clips: int) -> Tensor:
        """Frames of all clips, [B * F, C, H, W]; same shape."""
        frames = torch.unflatten(x, 0, (clips, -1))
        before = history.get(self.name, torch.zeros_like(frames[:, :1]))
        history[self.name] = frames[:, -1:].clone()
        past = torch.cat([before, frames[:, :-1]], dim=1).flatten(0, 1)
        return fn.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class PoolTime(nn.Module):
    """Makes one of several consecutive frames."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.conv, self.frames = nn.Conv2d(width * frames, width, 1, bias=False), frames

    def forward(self, x: Tensor) -> Tensor:
        """[B * F / frames, C, H, W]."""
        pooled: Tensor = self.conv(torch.unflatten(x, 0, (-1, self.frames)).flatten(1, 2))
        return pooled


class GrowTime(nn.Module):
    """Makes several consecutive frames of one."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.conv, self.frames = nn.Conv2d(width, width * frames, 1, bias=False), frames

    def forward(self, x: Tensor) -> Tensor:
        """[B * F * frames, C, H, W]."""
        return torch.unflatten(self.conv(x), 1, (self.frames, -1)).flatten(0, 1)


class Squash(nn.Module):
    """Keeps latents within `LARGEST_LATENT`."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return torch.tanh(x / LARGEST_LATENT) * LARGEST_LATENT


def encoder(shape: TinyVAEShape) -> nn.Sequential:
    """From video frames to latent frames."""
    width = shape.encoder_width
    steps: list[nn.Module] = [conv(3, width), nn.ReLU()]
    for frames in shape.pool_time:
        steps += [PoolTime(width, frames), conv(width, width, stride=2, bias=False)]
        steps += [Memory(width) for _ in range(MEMORIES)]
    return nn.Sequential(*steps, conv(width, shape.latent_channels))


def decoder(shape: TinyVAEShape) -> nn.Sequential:
    """From latent frames to video frames."""
    widths = shape.decoder_widths
    steps: list[nn.Module] = [Squash(), conv(shape.latent_channels, widths[0]), nn.ReLU()]
    for stage, frames in enumerate(shape.grow_time):
        steps += [Memory(widths[stage]) for _ in range(MEMORIES)]
        steps += [nn.Upsample(scale_factor=2), GrowTime(widths[stage], frames)]
        steps.append(conv(widths[stage], widths[stage + 1], bias=False))
    return nn.Sequential(*steps, nn.ReLU(), conv(widths[-1], 3))


def conv(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Over 3 x 3 pixels."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=bias)


def through(steps: nn.Sequential, x_BFCHW: Tensor, history: History) -> Tensor:
    """One step after the other over all frames of all clips; the batch is [B * F] inside."""
    clips, x = len(x_BFCHW), x_BFCHW.flatten(0, 1)
    for step in steps:
        x = step(x, history, clips) if isinstance(step, Memory) else step(x)
    return torch.unflatten(x, 0, (clips, -1))
