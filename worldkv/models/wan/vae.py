"""The video autoencoder of Wan 2.1, streaming: frames go through once, and what they leave behind is a `History`.

- Every convolution over time sees the past only, so a clip coded in pieces is the clip coded whole.
- The first video frame is a latent frame of its own; each later latent frame stands for `VIDEO_FRAMES` video frames.
- Latents are normalised by the published mean and deviation; pictures lie in [-1, 1].
- Attribute names are those of the published checkpoint.

Shapes: B clips, C channels, F frames (video or latent, as the docstring says), H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_DEVIATION = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
NORM_EPSILON = 1e-12

History = dict[str, Tensor]
"""What each convolution over time saw last, by its name; {} before the first frame. Updated in place."""


@dataclass(frozen=True)
class VAEShape:
    """Everything that fixes the tensors of a checkpoint; the defaults are the published ones."""

    width: int = 96
    latent_channels: int = len(LATENT_MEAN)
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    """Width of each stage, fine to coarse."""
    halve_time: tuple[bool, ...] = (False, True, True)
    """Whether the step down behind each stage but the last also halves time."""
    residuals: int = 2
    """Residual blocks of a stage of the encoder; the decoder's have one more."""

    @property
    def video_frames(self) -> int:
        """Video frames of a latent frame other than the first."""
        return int(2 ** sum(self.halve_time))

    @property
    def side(self) -> int:
        """Pixels along one side of a latent pixel."""
        return int(2 ** len(self.halve_time))


class WanVAE(nn.Module):
    """Weights, and coding in both directions."""

    def __init__(self, shape: VAEShape) -> None:
        super().__init__()
        self.shape = shape
        z = shape.latent_channels
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.conv1, self.conv2 = CausalConv(2 * z, 2 * z, 1), CausalConv(z, z, 1)
        for name, module in self.named_modules():
            if isinstance(module, CausalConv | TimeHalving):
                module.name = name

    def encode(self, pictures_BCFHW: Tensor, history: History) -> Tensor:
        """Latents [B, C, F', H / side, W / side] of a next piece of a clip, float32.

        A piece is the first frame, or whole latent frames, or the first frame and then whole latent frames.
        """
        first = () if history else (1,)
        rest = (pictures_BCFHW.shape[2] - len(first)) // self.shape.video_frames
        pieces = torch.split(pictures_BCFHW.to(self._dtype), [*first, *[self.shape.video_frames] * rest], dim=2)
        coded = [self.conv1(self.encoder(piece, history), history) for piece in pieces]
        mean = torch.cat(coded, dim=2).float().chunk(2, dim=1)[0]
        centre, deviation = self._scale(mean)
        return (mean - centre) / deviation

    def decode(self, latents_BCFHW: Tensor, history: History) -> Tensor:
        """Video frames [B, 3, F', H * side, W * side] of the next latent frames, float32, not clamped."""
        centre, deviation = self._scale(latents_BCFHW)
        z = (latents_BCFHW * deviation + centre).to(self._dtype)
        # One latent frame at a time: all of a chunk at once would need the memory of its pictures many times over.
        pieces = [self.decoder(self.conv2(piece, history), history) for piece in torch.split(z, 1, dim=2)]
        return torch.cat(pieces, dim=2).float()

    @property
    def _dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.tensor([LATENT_MEAN, LATENT_DEVIATION], device=like.device)
        centre, deviation = values[:, :, None, None, None].unbind()
        return centre, deviation


class Encoder(nn.Module):
    """From video frames to mean and log variance of latent frames."""

    def __init__(self, shape: VAEShape) -> None:
        super().__init__()
        widths = [shape.width * multiple for multiple in (1, *shape.multiples)]
        self.conv1 = CausalConv(3, widths[0], 3)
        steps: list[nn.Module] = []
        for stage in range(len(shape.multiples)):
            steps.append(Residual(widths[stage], widths[stage + 1]))
            steps += [Residual(widths[stage + 1], widths[stage + 1]) for _ in range(shape.residuals - 1)]
            if stage < len(shape.halve_time):
                steps.append(Down(widths[stage + 1], shape.halve_time[stage]))
        self.downsamples = nn.ModuleList(steps)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * shape.latent_channels)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """The first video frame, or those of one later latent frame."""
        return through((self.conv1, *self.downsamples, *self.middle, *self.head), x, history)


class Decoder(nn.Module):
    """From latent frames to video frames."""

    def __init__(self, shape: VAEShape) -> None:
        super().__init__()
        coarse_first = shape.multiples[::-1]
        widths = [shape.width * multiple for multiple in (coarse_first[0], *coarse_first)]
        self.conv1 = CausalConv(shape.latent_channels, widths[0], 3)
        self.middle = middle(widths[0])
        steps: list[nn.Module] = []
        for stage, doubles_time in enumerate((*shape.halve_time[::-1], None)):
            # A step up halves the width on its way into the next stage.
            entry = widths[stage] if stage == 0 else widths[stage] // 2
            steps.append(Residual(entry, widths[stage + 1]))
            steps += [Residual(widths[stage + 1], widths[stage + 1]) for _ in range(shape.residuals)]
            if doubles_time is not None:
                steps.append(Up(widths[stage + 1], doubles_time))
        self.upsamples = nn.ModuleList(steps)
        self.head = head(widths[-1], 3)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """One latent frame."""
        return through((self.conv1, *self.middle, *self.upsamples, *self.head), x, history)


class CausalConv(nn.Conv3d):
    """A convolution that sees as many past frames as its kernel is long, zeros before the first."""

    name = ""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, time_only: bool = False) -> None:
        side = 1 if time_only else kernel
        super().__init__(channels_in, channels_out, (kernel, side, side), padding=(0, side // 2, side // 2))
        self.past_frames = kernel - 1

    def forward(self, x: Tensor, history: History) -> Tensor:  # type: ignore[override]
        """As many frames as it is given."""
        if self.past_frames:
            x = torch.cat([history.get(self.name, x.new_zeros(self.no_past(x))), x], dim=2)
            history[self.name] = x[:, :, -self.past_frames :].clone()
        return super().forward(x)

    def no_past(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the frames before the first."""
        return (*x.shape[:2], self.past_frames, *x.shape[3:])


class Norm(nn.Module):
    """Every pixel's channels to the same root mean square. In float32: with half the digits black would be 0 / 0."""

    def __init__(self, width: int, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        scale: float = x.shape[1] ** 0.5
        return (fn.normalize(x.float(), dim=1, eps=NORM_EPSILON) * (scale * self.gamma)).to(x.dtype)


class Residual(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.ModuleList(
            [
                *(Norm(channels_in), nn.SiLU(), CausalConv(channels_in, channels_out, 3)),
                *(Norm(channels_out), nn.SiLU(), nn.Identity(), CausalConv(channels_out, channels_out, 3)),
            ]
        )
        self.shortcut = CausalConv(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Same frames."""
        short = x if self.shortcut is None else self.shortcut(x, history)
        return short + through(self.residual, x, history)


class Attention(nn.Module):
    """One head over the pixels of each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width, axes=2)
        self.to_qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        frames = as_pictures(x)
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        seen = fn.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(frames.shape)
        return x + as_clip(self.proj(seen), len(x))


class TimeHalving(nn.Conv3d):
    """Every second frame of a convolution over three; the first frame of a clip passes as it is."""

    name = ""

    def forward(self, x: Tensor, history: History) -> Tensor:  # type: ignore[override]
        """Half as many frames, but for the first."""
        before = history.get(self.name)
        history[self.name] = x[:, :, -1:].clone()
        return x if before is None else super().forward(torch.cat([before, x], dim=2))


class Down(nn.Module):
    """Half the rows and columns, and where asked half the frames."""

    def __init__(self, width: int, halve_time: bool) -> None:
        super().__init__()
        # One pixel of padding behind, none in front.
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))
        self.time_conv = TimeHalving(width, width, (3, 1, 1), stride=(2, 1, 1)) if halve_time else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        """See the class."""
        x = as_clip(self.resample(as_pictures(x)), len(x))
        return x if self.time_conv is None else self.time_conv(x, history)


class Up(nn.Module):
    """Twice the rows and columns and half the channels, and where asked twice the frames."""

    def __init__(self, width: int, double_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width // 2, 3, padding=1))
        self.time_conv = CausalConv(width, 2 * width, 3, time_only=True) if double_time else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        """See the class."""
        if self.time_conv is not None:
            x = self._double(self.time_conv, x, history)
        return as_clip(self.resample(as_pictures(x)), len(x))

    def _double(self, conv: CausalConv, x: Tensor, history: History) -> Tensor:
        if conv.name not in history:  # the first frame of a clip is not doubled, nor seen by later ones
            history[conv.name] = x.new_zeros(conv.no_past(x))
            return x
        early, late = conv(x, history).chunk(2, dim=1)
        return torch.stack([early, late], dim=3).flatten(2, 3)


def middle(width: int) -> nn.ModuleList:
    """What stands between the coarsest stage and the latents."""
    return nn.ModuleList([Residual(width, width), Attention(width), Residual(width, width)])


def head(width: int, channels_out: int) -> nn.ModuleList:
    """The last steps of encoder and decoder."""
    return nn.ModuleList([Norm(width), nn.SiLU(), CausalConv(width, channels_out, 3)])


def through(steps: Sequence[nn.Module] | nn.ModuleList, x: Tensor, history: History) -> Tensor:
    """One step after the other; those that look back are handed the history."""
    for step in steps:
        looks_back = isinstance(step, CausalConv | Residual | Down | Up)
        x = step(x, history) if looks_back else step(x)
    return x


def as_pictures(x_BCFHW: Tensor) -> Tensor:
    """[B * F, C, H, W]."""
    return x_BCFHW.transpose(1, 2).flatten(0, 1)


def as_clip(x: Tensor, clips: int) -> Tensor:
    """[B, C, F, H, W], the inverse."""
    return torch.unflatten(x, 0, (clips, -1)).transpose(1, 2)
