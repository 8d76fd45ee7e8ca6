"""Codecs that store codes and scales: affine integers, and 8-bit floats. Any device.

L layers, T tokens, H heads, D head dim, C = H * D codes of a token, G groups of tokens.

- Keys per channel: one scale for a (layer, head, channel) and up to KEY_GROUP_TOKENS tokens, because key channels
  carry constant offsets and outliers.
- Values per token: one scale for a (layer, token, head).

Scales are bfloat16, rounded up. Offsets kept as float16 would overflow, and take as many bytes for 0.7 % less error on
normal data.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worldkv.memory.coding import Codec
from worldkv.memory.encoded import Layout, Shape, Tensors
from worldkv.memory.packing import pack, packed_shape, unpack

# A whole chunk of the small world. Half of it would cost 0.5 % of the bfloat16 size for 9 % less key error.
KEY_GROUP_TOKENS = 192
# Keys or values are worked on in blocks of at most this in float32. On a CPU their few copies then stay in its caches:
# blocks of 256 MiB were measured several times slower. A GPU wants few launches, and no 10 GB of workspace.
WORKSPACE_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
# How many zero_steps an int16 zero may count; the few left over absorb rounding.
ZERO_REACH = 32000
# Half a unit in the last place of bfloat16: added first, rounding to nearest cannot end below.
ROUND_UP = 1 + 2**-8
# Scale of an all-zero group: small, but its inverse is still a finite float32.
TINY_SCALE = 1e-30
# Largest float8_e4m3fn, and half the distance to its neighbour.
FP8_MAX, FP8_HALF_GAP = 448.0, 16.0
# A float16 of the same bits, shifted, has an exponent that is 8 too small.
FP8_OF_HALF = 256.0


@dataclass(frozen=True)
class Block:
    """Views to work on: keys or values that share a workspace."""

    x: Tensor
    """[L, G, T, H, D] for keys, [L, T, H, D] for values."""
    axis: int
    """Of x, along which scales are shared."""
    codes_LTP: Tensor
    scale: Tensor
    """Broadcasts to x."""
    zero: Tensor | None
    """Of affine codecs; broadcasts to x."""

    def float32(self) -> Tensor:
        """Uninitialised float32 of x's shape; x itself where that serves."""
        return self.x if self.x.dtype == torch.float32 else torch.empty_like(self.x, dtype=torch.float32)


class ScaledCodec(Codec):
    """Codes of `bits` bits, a scale for each group, and a zero where `zeros` names their dtypes."""

    bits: int
    zeros: tuple[torch.dtype, torch.dtype] | None
    """Of keys and of values."""

    def layout(self, shape: Shape) -> Layout:
        """See `Codec.layout`."""
        codes = (packed_shape(shape, self.bits), torch.uint8)
        groups = {"k": (shape[0], _token_runs(shape, 1)[-1][1].stop, *shape[2:]), "v": shape[:3]}
        layout: Layout = {}
        for i, (name, scales) in enumerate(groups.items()):
            layout |= {f"{name}_codes": codes, f"{name}_scale": (scales, torch.bfloat16)}
            if self.zeros:
                layout[f"{name}_zero"] = (scales, self.zeros[i])
        return layout

    def _store(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        for block in _blocks(k_LTHD, v_LTHD, tensors):
            code = self._quantise(block)
            pack(code.reshape(*block.codes_LTP.shape[:2], -1), self.bits, block.codes_LTP)

    def _load(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        codes = k_LTHD.shape[2] * k_LTHD.shape[3]
        for block in _blocks(k_LTHD, v_LTHD, tensors):
            code = unpack(block.codes_LTP, self.bits, codes)
            x = self._dequantise(code.reshape(block.x.shape), block)
            if x is not block.x:
                block.x.copy_(x)

    @abstractmethod
    def _quantise(self, block: Block) -> Tensor:
        """Codes, uint8 and of x's shape; sets the block's scale and zero."""

    @abstractmethod
    def _dequantise(self, code: Tensor, block: Block) -> Tensor:
        """Keys or values as float32; in x itself where that is float32."""


@dataclass(frozen=True)
class AffineCodec(ScaledCodec):
    """x ~ scale * (code - zero), with whole codes and the zero a multiple of `zero_step`.

    The zero of keys may lie far outside the codes, so it is an int16; the range of values always includes 0, so theirs
    is a uint8. Scales are rounded up and zeros outwards, so each x lies within half a scale of a code: |x - x'| <=
    scale / 2 for any finite float32, to its own rounding.
    """

    name: str
    bits: int
    zero_step: float
    """Resolution of the zero, in codes; a group's range is spread over top - zero_step of them."""
    rms_relative_error: float
    zeros = (torch.int16, torch.uint8)

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def max_relative_error(self) -> float:
        """See `Codec`; for a group from -m to +m, whose scale rounding may take up twice."""
        return ROUND_UP**2 / (self.top - self.zero_step)

    def _quantise(self, block: Block) -> Tensor:
        assert block.zero is not None
        x = block.x.float()
        # Not aminmax: along an inner axis it is slower than the two on a CPU.
        low, high = x.amin(block.axis, keepdim=True), x.amax(block.axis, keepdim=True)
        if block.zero.dtype == torch.uint8:
            low, high = low.clamp_max_(0), high.clamp_min_(0)
        span = (high - low) / (self.top - self.zero_step)
        reach = low.abs() / (ZERO_REACH * self.zero_step)
        block.scale.copy_(torch.maximum(span, reach).clamp_min_(TINY_SCALE) * ROUND_UP)
        step = block.scale.float()
        steps_below = -(low / (step * self.zero_step)).floor()
        block.zero.copy_(steps_below)
        # Rounded by truncation: 0.5 is in the offset, and nothing lies below 0 or, by its rounded scale, above top.
        code = (x * (1 / step)).add_(steps_below * self.zero_step + 0.5)
        # By way of a signed integer: a CPU is slower to make a byte of a float at once.
        return code.to(torch.int16).to(torch.uint8) if self.bits == 8 else code.to(torch.int8).view(torch.uint8)

    def _dequantise(self, code: Tensor, block: Block) -> Tensor:
        assert block.zero is not None
        step = block.scale.float()
        return block.float32().copy_(code).mul_(step).add_(block.zero * (step * -self.zero_step))


@dataclass(frozen=True)
class Fp8Codec(ScaledCodec):
    """x ~ scale * code, with a float8_e4m3fn code of at most 448."""

    name: str
    rms_relative_error: float
    bits = 8
    zeros = None

    @property
    def max_relative_error(self) -> float:
        """See `Codec`; half the gap between the largest codes, whose scale rounding may take up twice."""
        return ROUND_UP**2 * FP8_HALF_GAP / FP8_MAX

    def _quantise(self, block: Block) -> Tensor:
        x = block.x.float()
        peak = torch.maximum(x.amax(block.axis, keepdim=True), -x.amin(block.axis, keepdim=True))
        block.scale.copy_((peak / FP8_MAX).clamp_min_(TINY_SCALE) * ROUND_UP)
        return (x * (1 / block.scale.float())).to(torch.float8_e4m3fn).view(torch.uint8)

    def _dequantise(self, code: Tensor, block: Block) -> Tensor:
        if code.is_cuda:
            return block.float32().copy_(code.view(torch.float8_e4m3fn)).mul_(block.scale.float())
        # A CPU is slower to convert. Sign-extended, shifted, and with the second sign bit cleared,
        # the code is a float16 with the same mantissa, and an exponent of another bias.
        half = code.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
        return block.float32().copy_(half).mul_(block.scale.float() * FP8_OF_HALF)


def _blocks(k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> Iterator[Block]:
    """All keys and values, in blocks of whole groups."""
    shape, workspace_bytes = k_LTHD.shape, WORKSPACE_BYTES.get(k_LTHD.device.type, WORKSPACE_BYTES["cuda"])
    runs = _token_runs(tuple(shape), workspace_bytes)
    layers_per_block = max(1, workspace_bytes // (4 * shape[1:].numel()))
    for start in range(0, shape[0], layers_per_block):
        layers = slice(start, start + layers_per_block)
        part = {name: tensor[layers] for name, tensor in tensors.items()}
        k_zero, v_zero = part.get("k_zero"), part.get("v_zero")
        for tokens, groups in runs:
            k = torch.unflatten(k_LTHD[layers, tokens], 1, (groups.stop - groups.start, -1))
            scale, zero = part["k_scale"][:, groups, None], None if k_zero is None else k_zero[:, groups, None]
            yield Block(k, 2, part["k_codes"][:, tokens], scale, zero)
            scale, zero = part["v_scale"][:, tokens, :, None], None if v_zero is None else v_zero[:, tokens, :, None]
            yield Block(v_LTHD[layers, tokens], 3, part["v_codes"][:, tokens], scale, zero)


def _token_runs(shape: tuple[int, ...], workspace_bytes: int) -> list[tuple[slice, slice]]:
    """Runs of equally long groups as (tokens, groups); the last group may be shorter, then it is a run of its own."""
    tokens = shape[1]
    size = math.ceil(tokens / math.ceil(tokens / KEY_GROUP_TOKENS))
    full = tokens // size
    per_run = max(1, workspace_bytes // (4 * size * math.prod(shape[2:])))
    starts = range(0, full, per_run)
    runs = [(start, min(start + per_run, full)) for start in starts]
    rest = [(slice(full * size, tokens), slice(full, full + 1))] if tokens % size else []
    return [(slice(start * size, stop * size), slice(start, stop)) for start, stop in runs] + rest
