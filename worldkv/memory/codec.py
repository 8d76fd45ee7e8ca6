"""How the keys and values of a chunk are stored: plain casts, and affine int8 and int4. Any device.

L layers, T tokens, H heads, D head dim, G groups of tokens.

Affine codecs keep x ~ scale * (code - zero), the scale a bfloat16 and the zero a multiple of `zero_step`:

- keys per channel: one scale for a (layer, head, channel) and up to 192 tokens, because key channels carry
  constant offsets and outliers; the zero may lie far outside the codes, so it is an int16;
- values per token: one scale for a (layer, token, head); the range always includes 0, so the zero is a uint8.

Scales are rounded up and zeros outwards, so each x lies within half a scale of a code: |x - x'| <= scale / 2
for any finite float32, to its own rounding. Offsets kept as float16 would overflow, and take as many bytes
for 0.7 % less error on normal data. There is no fp8: as large as int8, it is four times as wrong.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldkv.errors import ChunkCorrupt, ModelError
from worldkv.memory.encoded import DTYPES, Encoded, Layout, Shape, Tensors, layer_bytes

# Views to work on: x, its axis that shares a scale, codes, scale, zero; all but codes broadcast to x.
Group = tuple[Tensor, int, Tensor, Tensor, Tensor]

# A whole chunk of the small world. Half of it would cost 0.5 % of the bfloat16 size for 9 % less key error.
KEY_GROUP_TOKENS = 192
# A chunk of a 14B model is 3.8 GB: layers are worked on in runs whose keys take at most this in float32.
WORKSPACE_BYTES = 256 * 2**20
# How many zero_steps an int16 zero may count; the few left over absorb rounding.
ZERO_REACH = 32000
# Half a unit in the last place of bfloat16: added first, rounding to nearest cannot end below.
ROUND_UP = 1 + 2**-8
# Scale of an all-zero group: small, but its inverse is still a finite float32.
TINY_SCALE = 1e-30


class Codec(ABC):
    """Stores the keys and values of a chunk and gives them back; layers are independent of each other."""

    name: str

    @property
    @abstractmethod
    def max_relative_error(self) -> float:
        """Bound of |x - x'| over the largest magnitude in x's group; for casts, over |x|. Down to 1e-30."""

    @abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """Shape and dtype of each tensor of an encoded chunk of this shape."""

    def nbytes(self, shape: Shape) -> int:
        """Bytes of an encoded chunk of this shape, known before there is one."""
        return shape[0] * layer_bytes(self.layout(shape))

    def encode(self, k_LTHD: Tensor, v_LTHD: Tensor) -> Encoded:
        """Encode floating keys and values of one device; waits for that device once.

        Raises ModelError where they do not match, cannot be stored, or hold a value that is not finite.
        """
        shape = _common_shape(k_LTHD, v_LTHD)
        dtype = str(k_LTHD.dtype).removeprefix("torch.")
        encoded = Encoded.empty(self.name, shape, dtype, self.layout(shape), k_LTHD.device)
        for start, stop in _layer_runs(shape):
            part = encoded.layer_range(start, stop).tensors
            self._store(k_LTHD[start:stop].detach(), v_LTHD[start:stop].detach(), part)
        # NaN and infinity of the input reach what is stored as floating point: the values, or their scales.
        ends = [end for tensor in encoded.tensors.values() if tensor.is_floating_point() for end in tensor.aminmax()]
        if not bool(torch.stack(ends).isfinite().all()):
            raise ModelError(f"codec {self.name}: keys or values {shape} hold NaN, infinity or overflow")
        return encoded

    def decode(
        self, encoded: Encoded, dtype: torch.dtype | None = None, *, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [L, T, H, D], new or written into `out` (slices of the window, say); does not wait.

        Raises ChunkCorrupt where another codec, or another layout than this one's, wrote them.
        """
        expected = self.layout(encoded.shape)
        if encoded.codec != self.name or encoded.layout != expected:
            raise ChunkCorrupt(f"codec {self.name}: expected {expected}, found {encoded.codec} {encoded.layout}")
        if out is None:
            like, dtype = encoded.payload_LN, dtype or DTYPES[encoded.dtype]
            out = like.new_empty(encoded.shape, dtype=dtype), like.new_empty(encoded.shape, dtype=dtype)
        for start, stop in _layer_runs(encoded.shape):
            self._load(out[0][start:stop], out[1][start:stop], encoded.layer_range(start, stop).tensors)
        return out

    @abstractmethod
    def _store(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        """Fill the tensors."""

    @abstractmethod
    def _load(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        """Fill the keys and values."""


@dataclass(frozen=True)
class CastCodec(Codec):
    """Stores values as they are, or rounded to `stored`."""

    name: str
    stored: torch.dtype
    max_relative_error: float = 0.0

    def layout(self, shape: Shape) -> Layout:
        """See `Codec.layout`."""
        return {"k": (shape, self.stored), "v": (shape, self.stored)}

    def _store(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        tensors["k"].copy_(k_LTHD)
        tensors["v"].copy_(v_LTHD)

    def _load(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        k_LTHD.copy_(tensors["k"])
        v_LTHD.copy_(tensors["v"])


@dataclass(frozen=True)
class AffineCodec(Codec):
    """Integer codes 0..top. Up to 15 two share a byte: channel d in its low half, d + D/2 in the high one."""

    name: str
    top: int
    zero_step: float
    """Resolution of the zero, in codes; a group's range is spread over top - zero_step of them."""

    @property
    def max_relative_error(self) -> float:
        """See `Codec`; for a group from -m to +m, whose scale rounding may take up twice."""
        return ROUND_UP**2 / (self.top - self.zero_step)

    def layout(self, shape: Shape) -> Layout:
        """See `Codec.layout`."""
        layers, tokens, heads, channels = shape
        codes = ((layers, tokens, heads, channels if self.top > 15 else channels // 2), torch.uint8)
        k_groups = (layers, _token_groups(tokens)[-1][1].stop, heads, channels)
        v_groups = (layers, tokens, heads)
        keys = {"k_codes": codes, "k_scale": (k_groups, torch.bfloat16), "k_zero": (k_groups, torch.int16)}
        values = {"v_codes": codes, "v_scale": (v_groups, torch.bfloat16), "v_zero": (v_groups, torch.uint8)}
        return keys | values

    def _store(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        for x, dim, codes, scale, zero in _grouped(k_LTHD.float(), v_LTHD.float(), tensors):
            # Not aminmax: along an inner axis it takes ten times as long as the two on a CPU.
            low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
            if zero.dtype == torch.uint8:
                low, high = low.clamp_max(0), high.clamp_min(0)
            span = (high - low) / (self.top - self.zero_step)
            reach = low.abs() / (ZERO_REACH * self.zero_step)
            scale.copy_(torch.maximum(span, reach).clamp_min(TINY_SCALE) * ROUND_UP)
            step = scale.float()
            steps_below = -(low / (step * self.zero_step)).floor()
            zero.copy_(steps_below)
            code = torch.addcmul(steps_below * self.zero_step, x, 1 / step)
            codes.copy_(self._pack(code.round_().clamp_(0, self.top).to(torch.uint8)))

    def _load(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        for x, _, codes, scale, zero in _grouped(k_LTHD, v_LTHD, tensors):
            step = scale.float()
            low = zero * (step * -self.zero_step)
            x.copy_(torch.addcmul(low, self._unpack(codes).float(), step))

    def _pack(self, code: Tensor) -> Tensor:
        low, high = code.chunk(2, dim=-1)
        return code if self.top > 15 else torch.add(low, high, alpha=16)

    def _unpack(self, codes: Tensor) -> Tensor:
        return codes if self.top > 15 else torch.cat([codes & 15, codes >> 4], dim=-1)


CODECS: Mapping[str, Codec] = {
    "fp32": CastCodec("fp32", torch.float32),
    "bf16": CastCodec("bf16", torch.bfloat16, max_relative_error=2**-8),
    "int8": AffineCodec("int8", top=255, zero_step=1.0),
    "int4": AffineCodec("int4", top=15, zero_step=1 / 16),
}


def _grouped(k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> Iterator[Group]:
    for tokens, groups in _token_groups(k_LTHD.shape[1]):
        split = (groups.stop - groups.start, -1)
        k, codes = (torch.unflatten(x[:, tokens], 1, split) for x in (k_LTHD, tensors["k_codes"]))
        yield k, 2, codes, tensors["k_scale"][:, groups, None], tensors["k_zero"][:, groups, None]
    yield v_LTHD, 3, tensors["v_codes"], tensors["v_scale"][..., None], tensors["v_zero"][..., None]


def _token_groups(tokens: int) -> list[tuple[slice, slice]]:
    """Runs of equally long groups as (tokens, groups): all of them, or all but a shorter last one."""
    size = math.ceil(tokens / math.ceil(tokens / KEY_GROUP_TOKENS))
    full = tokens // size
    rest = [(slice(full * size, tokens), slice(full, full + 1))] if tokens % size else []
    return [(slice(0, full * size), slice(0, full)), *rest]


def _common_shape(k_LTHD: Tensor, v_LTHD: Tensor) -> Shape:
    k_kind, v_kind = ((tuple(x.shape), x.dtype, x.device) for x in (k_LTHD, v_LTHD))
    shape, dtype, _ = k_kind
    if k_kind != v_kind or dtype not in DTYPES.values() or len(shape) != 4 or 0 in shape or shape[3] % 2:
        need = f"both {' or '.join(DTYPES)}, [layers, tokens, heads, channels], none 0, even channels"
        raise ModelError(f"keys {k_kind} and values {v_kind} cannot be encoded: need {need}")
    return shape


def _layer_runs(shape: Shape) -> Iterator[tuple[int, int]]:
    per_run = max(1, WORKSPACE_BYTES // (4 * math.prod(shape[1:])))
    return ((start, start + per_run) for start in range(0, shape[0], per_run))
