"""What a codec is: keys and values of a chunk in, one payload out, and back. And the plain casts. Any device.

L layers, T tokens, H heads, D head dim.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from worldkv.errors import ChunkCorrupt, ModelError
from worldkv.memory.encoded import DTYPES, Encoded, Layout, Shape, Tensors, layer_bytes


class Codec(ABC):
    """Stores the keys and values of a chunk and gives them back; layers are independent of each other."""

    name: str
    rms_relative_error: float
    """Root mean square of x - x' over that of x: the most that chunks of the rooms model may show, as measured."""

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
        self._store(k_LTHD.detach(), v_LTHD.detach(), encoded.tensors)
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
        self._load(*out, encoded.tensors)
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
    rms_relative_error: float = 0.0

    def layout(self, shape: Shape) -> Layout:
        """See `Codec.layout`."""
        return {"k": (shape, self.stored), "v": (shape, self.stored)}

    def _store(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        tensors["k"].copy_(k_LTHD)
        tensors["v"].copy_(v_LTHD)

    def _load(self, k_LTHD: Tensor, v_LTHD: Tensor, tensors: Tensors) -> None:
        k_LTHD.copy_(tensors["k"])
        v_LTHD.copy_(tensors["v"])


def _common_shape(k_LTHD: Tensor, v_LTHD: Tensor) -> Shape:
    k_kind, v_kind = ((tuple(x.shape), x.dtype, x.device) for x in (k_LTHD, v_LTHD))
    shape, dtype, _ = k_kind
    if k_kind != v_kind or dtype not in DTYPES.values() or len(shape) != 4 or 0 in shape or shape[3] % 2:
        need = f"both {' or '.join(DTYPES)}, [layers, tokens, heads, channels], none 0, even channels"
        raise ModelError(f"keys {k_kind} and values {v_kind} cannot be encoded: need {need}")
    return shape
