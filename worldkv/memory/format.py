"""Chunk format, version 1: one file or buffer per chunk. `docs/chunk_format.md` describes it for other readers.

    magic 8 | version 4 | header length 4 | xxh3-128 of the header 16 | header (msgpack) | zeros | payload

- Numbers are little-endian. The payload starts at a multiple of PAYLOAD_ALIGNMENT and is layer after layer; each layer
  has its digest in the header, so any run of layers can be read and verified alone.
- The checksum of the header is the chunk's id: whoever knows the id knows every byte.
- Nothing is allocated on the word of a length that the source does not hold, and nothing is ever unpickled.
- What version 1 wrote stays readable: `tests/golden/chunk_v1.wkv`. Whatever changes a byte of it is another version.

L layers, F latent frames, T tokens, N bytes of one layer.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgpack
import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from worldkv.errors import ChunkCorrupt, TransferError
from worldkv.memory.digests import DIGEST_BYTES, digests_of
from worldkv.memory.encoded import Encoded, Layout, Shape, layer_bytes

MAGIC = b"WKVCHNK\n"
VERSION = 1
PREFIX = struct.Struct("<8sII16s")
# What direct I/O and page-wise mapping of a payload ask for.
PAYLOAD_ALIGNMENT = 4096
# The ids of 2.7 million tokens: no honest header comes near it.
MAX_HEADER_BYTES = 16 * 2**20
# Layers are read in runs of about this and verified while they still lie in the processor's cache.
READ_BYTES = 2**20
STORED_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )
}

Readable = bytes | bytearray | memoryview
Kind = TypeVar("Kind")


class Source(Protocol):
    """Bytes that can be read from any offset: a buffer, a file, an object of a store."""

    @property
    def label(self) -> str:
        """What errors call it."""
        ...

    @property
    def size_bytes(self) -> int:
        """All there is to read."""
        ...

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill `out` with what starts at `offset`; returns the bytes read, fewer only where the source ends."""
        ...


class Buffer:
    """A chunk that lies in memory."""

    def __init__(self, data: Readable, label: str | None = None) -> None:
        self._data = memoryview(data).cast("B")
        self.size_bytes = len(self._data)
        self.label = label or f"a chunk of {self.size_bytes} bytes"

    def read_into(self, offset: int, out: memoryview) -> int:
        """See `Source`."""
        part = self._data[offset : offset + len(out)]
        out[: len(part)] = part
        return len(part)


@dataclass(frozen=True)
class OpenFile:
    """A chunk in a file that someone else opened and will close."""

    label: str
    size_bytes: int
    descriptor: int

    def read_into(self, offset: int, out: memoryview) -> int:
        """See `Source`. Raises OSError."""
        return pread_into(self.descriptor, offset, out)


def pread_into(descriptor: int, offset: int, out: memoryview) -> int:
    """Fill `out` with what a file holds from `offset`; returns the bytes read, fewer only where it ends."""
    done = 0
    while done < len(out):
        # The kernel gives at most 2 GiB at once.
        found = os.preadv(descriptor, [out[done:]], offset + done)
        if not found:
            break
        done += found
    return done


@contextmanager
def source_of(where: Path | Readable) -> Iterator[Source]:
    """The file or buffer as a source. Raises TransferError where a file cannot be opened or read."""
    if not isinstance(where, Path):
        yield Buffer(where)
        return
    try:
        with where.open("rb", buffering=0) as file:
            yield OpenFile(str(where), os.fstat(file.fileno()).st_size, file.fileno())
    except TransferError:
        raise
    except OSError as fault:
        raise TransferError(f"{where}: cannot be read: {fault.strerror or fault}") from fault


@dataclass(frozen=True, eq=False)
class Header:
    """All of a chunk but its payload."""

    tenant: str
    epoch: str
    index: int
    c2w_F44: NDArray[np.float32]
    token_ids_T3: NDArray[np.int16] | None
    codec: str
    shape: Shape
    dtype: str
    layout: Layout
    layer_digests: tuple[bytes, ...]

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer, padding included."""
        return layer_bytes(self.layout)

    @cached_property
    def packed(self) -> bytes:
        """The one way in which version 1 writes this header."""
        ids = self.token_ids_T3
        fields = {
            "tenant": self.tenant,
            "epoch": self.epoch,
            "index": self.index,
            "c2w": self.c2w_F44.astype("<f4", copy=False).tobytes(),
            "token_ids": None if ids is None else ids.astype("<i2", copy=False).tobytes(),
            "codec": self.codec,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "layout": [
                [name, str(dtype).removeprefix("torch."), list(size[1:])] for name, (size, dtype) in self.layout.items()
            ],
            "layer_bytes": self.layer_bytes,
            "layer_digests": list(self.layer_digests),
        }
        return bytes(msgpack.packb(fields))

    @cached_property
    def checksum(self) -> str:
        """The chunk's id: xxh3-128 of the header, which holds the layers' digests."""
        return xxhash.xxh3_128_hexdigest(self.packed)

    @property
    def payload_offset(self) -> int:
        """Where the payload starts."""
        return _payload_offset(len(self.packed))

    @property
    def head(self) -> bytes:
        """What precedes the payload."""
        packed = self.packed
        prefix = PREFIX.pack(MAGIC, VERSION, len(packed), xxhash.xxh3_128_digest(packed))
        return (prefix + packed).ljust(self.payload_offset, b"\0")

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole chunk in this format."""
        return self.payload_offset + self.shape[0] * self.layer_bytes

    def part(self, start: int, stop: int, payload_LN: Tensor) -> Encoded:
        """The layers start..stop-1 over their bytes."""
        layers = stop - start
        layout = {name: ((layers, *size[1:]), dtype) for name, (size, dtype) in self.layout.items()}
        return Encoded(self.codec, (layers, *self.shape[1:]), self.dtype, layout, payload_LN)


def pack(header: Header, payload_LN: Tensor) -> tuple[bytes, memoryview]:
    """What precedes the payload, and the payload itself, not copied where it lies on the CPU. Waits for its device."""
    return header.head, _bytes_of(payload_LN.cpu().contiguous())


class ChunkReader:
    """A chunk whose header was read and verified; layers are read and verified when asked for."""

    def __init__(self, source: Source, header: Header) -> None:
        self.source, self.header = source, header

    @classmethod
    def open(cls, source: Source) -> ChunkReader:
        """Read and verify all but the payload. Raises ChunkCorrupt, naming the source."""
        head = _read(source, 0, min(PAYLOAD_ALIGNMENT, source.size_bytes))
        if len(head) < PREFIX.size or not head.startswith(MAGIC):
            start = bytes(head[: len(MAGIC)])
            raise ChunkCorrupt(f"{source.label}: {source.size_bytes} bytes that start with {start!r} are no chunk")
        _, version, length, expected = PREFIX.unpack_from(head)
        if version != VERSION:
            raise ChunkCorrupt(f"{source.label}: format version {version}; this build reads {VERSION}")
        offset, end = _payload_offset(length), PREFIX.size + length
        if length > MAX_HEADER_BYTES or offset > source.size_bytes:
            raise ChunkCorrupt(
                f"{source.label}: truncated or damaged: a header of {length} bytes announced, "
                f"{source.size_bytes} bytes found"
            )
        if offset > len(head):
            head += _read(source, len(head), offset - len(head))
        found = xxhash.xxh3_128_digest(packed := bytes(head[PREFIX.size : end]))
        if found != expected:
            raise ChunkCorrupt(f"{source.label}: header checksum {expected.hex()} expected, {found.hex()} found")
        if any(head[end:offset]):
            raise ChunkCorrupt(f"{source.label}: bytes {end} to {offset} between header and payload are not zero")
        header = _parse(packed, source.label)
        if header.total_bytes != source.size_bytes:
            raise ChunkCorrupt(
                f"{source.label}: truncated or lengthened: "
                f"{header.total_bytes} bytes expected, {source.size_bytes} found"
            )
        return cls(source, header)

    def outline(self) -> Encoded:
        """All layers on the device `meta`: what is known of them without their bytes."""
        layers, size = self.header.shape[0], self.header.layer_bytes
        return self.header.part(0, layers, torch.empty((layers, size), dtype=torch.uint8, device="meta"))

    def read(self, start: int = 0, stop: int | None = None) -> Encoded:
        """Layers start..stop-1, on the CPU, verified. Raises ChunkCorrupt; IndexError for layers there are not."""
        layers, size = self.header.shape[0], self.header.layer_bytes
        stop = layers if stop is None else stop
        if not 0 <= start < stop <= layers:
            raise IndexError(f"{self.source.label}: layers {start} to {stop} asked, of {layers}")
        payload_LN = torch.empty((stop - start, size), dtype=torch.uint8)
        step = max(1, READ_BYTES // size)
        for first in range(start, stop, step):
            part_LN = payload_LN[first - start : first - start + step]
            _fill(self.source, self.header.payload_offset + first * size, _bytes_of(part_LN))
            self._check(first, part_LN)
        return self.header.part(start, stop, payload_LN)

    def verify(self) -> None:
        """Read all layers and keep none: a chunk may be larger than what memory is free. Raises ChunkCorrupt."""
        for layer in range(self.header.shape[0]):
            self.read(layer, layer + 1)

    def _check(self, first: int, part_LN: Tensor) -> None:
        for layer, found in enumerate(digests_of(part_LN), first):
            if found != (expected := self.header.layer_digests[layer]):
                raise ChunkCorrupt(
                    f"{self.source.label}: checksum of layer {layer}: {expected.hex()} expected, {found.hex()} found"
                )


def read_layers(where: Path | Readable, start: int, stop: int) -> Encoded:
    """Layers start..stop-1 of a chunk file or buffer; of the payload only these are read and verified.

    Raises ChunkCorrupt, and TransferError where a file cannot be read.
    """
    with source_of(where) as source:
        return ChunkReader.open(source).read(start, stop)


def _payload_offset(header_bytes: int) -> int:
    return -(-(PREFIX.size + header_bytes) // PAYLOAD_ALIGNMENT) * PAYLOAD_ALIGNMENT


def _bytes_of(payload_LN: Tensor) -> memoryview:
    return payload_LN.numpy().data.cast("B")


def _read(source: Source, offset: int, size: int) -> bytearray:
    data = bytearray(size)
    _fill(source, offset, memoryview(data))
    return data


def _fill(source: Source, offset: int, out: memoryview) -> None:
    # A file may shrink between the look at its size and the read.
    if (found := source.read_into(offset, out)) != len(out):
        raise ChunkCorrupt(f"{source.label}: truncated: {len(out)} bytes expected at {offset}, {found} found")


def _parse(packed: bytes, label: str) -> Header:
    """The header of these bytes, if it is one that `Header.packed` could have written."""
    try:
        header = _header_of(msgpack.unpackb(packed))
        if header.packed != packed:
            raise ValueError("not as version 1 writes it")
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, msgpack.UnpackException) as fault:
        raise ChunkCorrupt(f"{label}: a header of {len(packed)} bytes cannot be read: {fault!r}") from fault
    return header


def _header_of(fields: dict[str, Any]) -> Header:
    shape, ids = _shape(fields["shape"]), fields["token_ids"]
    layout = {
        _typed(name, str): ((shape[0], *map(_positive, size)), STORED_DTYPES[dtype])
        for name, dtype, size in fields["layout"]
    }
    digests = tuple(_typed(digest, bytes) for digest in fields["layer_digests"])
    if len(digests) != shape[0] or {len(digest) for digest in digests} != {DIGEST_BYTES}:
        raise ValueError(f"{len(digests)} layer digests for {shape[0]} layers")
    token_ids_T3 = None if ids is None else _array(ids, "<i2").reshape(shape[1], 3)
    return Header(
        tenant=_typed(fields["tenant"], str),
        epoch=_typed(fields["epoch"], str),
        index=_typed(fields["index"], int),
        c2w_F44=_array(fields["c2w"], "<f4").reshape(-1, 4, 4),
        token_ids_T3=token_ids_T3,
        codec=_typed(fields["codec"], str),
        shape=shape,
        dtype=_typed(fields["dtype"], str),
        layout=layout,
        layer_digests=digests,
    )


def _shape(sizes: list[int]) -> Shape:
    layers, tokens, heads, channels = map(_positive, sizes)
    return layers, tokens, heads, channels


def _positive(size: object) -> int:
    if _typed(size, int) < 1:
        raise ValueError(f"a size of {size}")
    return _typed(size, int)


def _typed(value: object, kind: type[Kind]) -> Kind:
    if type(value) is not kind:
        raise TypeError(f"{value!r} where {kind.__name__} is expected")
    return value


def _array(data: bytes, dtype: str) -> NDArray[Any]:
    # A copy: torch warns of arrays that cannot be written to, as views of bytes are.
    return np.frombuffer(_typed(data, bytes), dtype).copy()
