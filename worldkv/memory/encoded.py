"""Encoded keys and values of one chunk in one buffer, layer after layer: copied, checked and read as such.

L layers, N bytes of one layer. A layer holds its part of every tensor, in the order of the codec's layout, each at a
multiple of ALIGNMENT; the rest is zero. So any run of layers is contiguous, on a device as in a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from worldkv.errors import ChunkCorrupt

Shape = tuple[int, int, int, int]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> shape, with layers as its first axis, and dtype of each tensor of a codec."""
Tensors = Mapping[str, Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What vector loads like; a multiple of every dtype's size.
ALIGNMENT = 64


def layer_bytes(layout: Layout) -> int:
    """Bytes of one layer, padding included."""
    return sum(_aligned(_part_bytes(*part)) for part in layout.values())


@dataclass(frozen=True, eq=False)
class Encoded:
    """Keys and values of one chunk as its codec stores them."""

    codec: str
    """Name of the codec that wrote it and can read it."""
    shape: Shape
    """(L, T, H, D) of the keys, and of the values."""
    dtype: str
    """What was encoded, a name in DTYPES; what `decode` returns unless told otherwise."""
    layout: Layout
    """The codec's, for this shape."""
    payload_LN: Tensor
    """uint8, rows contiguous; on any device."""

    def __post_init__(self) -> None:
        if len(self.shape) != 4 or min(self.shape) < 1 or self.dtype not in DTYPES:
            raise ChunkCorrupt(f"a chunk of shape {self.shape} and dtype {self.dtype} cannot exist")
        expected = (self.shape[0], layer_bytes(self.layout))
        if tuple(self.payload_LN.shape) != expected or self.payload_LN.dtype != torch.uint8:
            raise ChunkCorrupt(
                f"codec {self.codec}: a payload of {tuple(self.payload_LN.shape)} {self.payload_LN.dtype}, "
                f"expected {expected} bytes for shape {self.shape}"
            )

    @classmethod
    def empty(cls, codec: str, shape: Shape, dtype: str, layout: Layout, device: torch.device) -> Encoded:
        """A fresh payload to be filled through `tensors`; its padding is zero."""
        payload_LN = torch.zeros((shape[0], layer_bytes(layout)), dtype=torch.uint8, device=device)
        return cls(codec, shape, dtype, layout, payload_LN)

    @cached_property
    def tensors(self) -> Tensors:
        """Views of the payload, by name, each with layers as its first axis."""
        views, start = {}, 0
        for name, (size, dtype) in self.layout.items():
            stop = start + _part_bytes(size, dtype)
            views[name] = self.payload_LN[:, start:stop].view(dtype).view(-1, *size[1:])
            start = _aligned(stop)
        return views

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return self.payload_LN.nbytes

    @property
    def device(self) -> torch.device:
        """Where the payload lies."""
        return self.payload_LN.device

    def over(self, payload_LN: Tensor) -> Encoded:
        """The same chunk over another copy of its payload. Raises ChunkCorrupt where the size is wrong."""
        return Encoded(self.codec, self.shape, self.dtype, self.layout, payload_LN)

    def layer_range(self, start: int, stop: int) -> Encoded:
        """The layers start..stop-1 alone, as a view."""
        part_LN = self.payload_LN[start:stop]
        layers = len(part_LN)
        layout = {name: ((layers, *size[1:]), dtype) for name, (size, dtype) in self.layout.items()}
        return Encoded(self.codec, (layers, *self.shape[1:]), self.dtype, layout, part_LN)


def _part_bytes(size: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(size[1:]) * dtype.itemsize


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
