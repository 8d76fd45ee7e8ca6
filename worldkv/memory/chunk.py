"""The unit of memory: the KV of one chunk, encoded, immutable, and named by its content.

Shapes: L layers, F latent frames, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgpack
import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from worldkv.errors import ChunkCorrupt
from worldkv.memory.codec import CODECS, Encoded


@dataclass(frozen=True, eq=False)
class KVChunk:
    """Keys before rotation and values of one chunk, with all that is needed to place them again."""

    tenant: str
    """Who owns it; part of its id, so no two tenants ever share a chunk."""
    epoch: str
    """Digest of the weights that made it."""
    index: int
    """Place in the rollout that made it."""
    c2w_F44: NDArray[np.float32]
    """Camera-to-world of its latent frames."""
    token_ids_T3: NDArray[np.int16] | None
    """(frame, row, column) of the kept tokens, frames counted from the chunk's first; None: not pruned."""
    encoded: Encoded
    checksum: str
    """xxh3-128 of header and payload; `verify` recomputes it."""

    @property
    def id(self) -> str:
        """Content id: equal only for equal content of the same tenant and epoch."""
        return self.checksum

    @property
    def nbytes(self) -> int:
        """Bytes as stored: payload, poses and token ids."""
        ids = 0 if self.token_ids_T3 is None else self.token_ids_T3.nbytes
        return self.encoded.nbytes + self.c2w_F44.nbytes + ids

    @property
    def tokens(self) -> int:
        """Tokens kept."""
        return self.encoded.shape[1]

    def to(self, device: torch.device) -> KVChunk:
        """The same chunk with its payload on `device`; itself if it is there already."""
        tensors = {name: tensor.to(device) for name, tensor in self.encoded.tensors.items()}
        return replace(self, encoded=replace(self.encoded, tensors=tensors))

    def load(self, k_LTHD: Tensor, v_LTHD: Tensor) -> None:
        """Decode into the window: un-rotated K and V [L, T, H, D] of any float dtype and device."""
        here = next(iter(self.encoded.tensors.values())).device
        chunk = self if here == k_LTHD.device else self.to(k_LTHD.device)
        CODECS[self.encoded.codec].decode(chunk.encoded, out=(k_LTHD, v_LTHD))

    def verify(self) -> None:
        """Raise ChunkCorrupt unless content and checksum agree. Reads the whole payload; waits for its device."""
        found = _checksum(self)
        if found != self.checksum:
            raise ChunkCorrupt(
                f"chunk {self.index} of tenant {self.tenant}: checksum {self.checksum} expected, {found} found"
            )

    def to_bytes(self) -> bytes:
        """Header and payload as one buffer (msgpack and raw tensors)."""
        payload = {name: _raw(tensor) for name, tensor in self.encoded.tensors.items()}
        return bytes(msgpack.packb({"header": _header(self), "checksum": self.checksum, "payload": payload}))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> KVChunk:
        """The chunk of `to_bytes`, on the CPU, verified. Raises ChunkCorrupt."""
        try:
            content = msgpack.unpackb(data)
            header, payload = content["header"], content["payload"]
            shape = tuple(header["shape"])
            layout = CODECS[header["codec"]].layout(shape)
            tensors = {
                name: torch.frombuffer(bytearray(memoryview(payload[name])), dtype=dtype).reshape(size)
                for name, (size, dtype) in layout.items()
            }
            ids = header["token_ids"]
            chunk = cls(
                tenant=header["tenant"],
                epoch=header["epoch"],
                index=header["index"],
                c2w_F44=_array(header["c2w"], np.float32).reshape(-1, 4, 4),
                token_ids_T3=None if ids is None else _array(ids, np.int16).reshape(-1, 3),
                encoded=Encoded(header["codec"], shape, header["dtype"], tensors),
                checksum=content["checksum"],
            )
        except (
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            RuntimeError,
            msgpack.UnpackException,
        ) as fault:
            raise ChunkCorrupt(f"a chunk of {len(data)} bytes cannot be read: {fault!r}") from fault
        chunk.verify()
        return chunk


def make_chunk(
    *,
    tenant: str,
    epoch: str,
    index: int,
    c2w_F44: NDArray[np.float32],
    encoded: Encoded,
    token_ids_T3: NDArray[np.int16] | None = None,
) -> KVChunk:
    """A sealed chunk: its checksum is computed here, once. Waits for the payload's device."""
    draft = KVChunk(tenant, epoch, index, np.ascontiguousarray(c2w_F44, np.float32), token_ids_T3, encoded, "")
    return replace(draft, checksum=_checksum(draft))


def _header(chunk: KVChunk) -> dict[str, object]:
    return {
        "tenant": chunk.tenant,
        "epoch": chunk.epoch,
        "index": chunk.index,
        "c2w": chunk.c2w_F44.tobytes(),
        "token_ids": None if chunk.token_ids_T3 is None else chunk.token_ids_T3.tobytes(),
        "codec": chunk.encoded.codec,
        "shape": list(chunk.encoded.shape),
        "dtype": chunk.encoded.dtype,
    }


def _checksum(chunk: KVChunk) -> str:
    digest = xxhash.xxh3_128(msgpack.packb(_header(chunk)))
    for name in sorted(chunk.encoded.tensors):
        digest.update(_raw(chunk.encoded.tensors[name]))
    return str(digest.hexdigest())


def _array(data: bytes, dtype: type[np.generic]) -> NDArray[Any]:
    # A copy: torch warns of arrays that cannot be written to, as views of bytes are.
    return np.frombuffer(data, dtype).copy()


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
