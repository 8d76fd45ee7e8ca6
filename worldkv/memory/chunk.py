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
from worldkv.memory.codec import CODECS
from worldkv.memory.encoded import Encoded


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
    layer_digests: tuple[bytes, ...]
    """xxh3-128 of each layer of the payload, so that layers can be read and checked one by one."""
    checksum: str
    """xxh3-128 of the header, which holds the layers' digests."""

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
        if self.encoded.device == device:
            return self
        return replace(self, encoded=self.encoded.over(self.encoded.payload_LN.to(device)))

    def load(self, k_LTHD: Tensor, v_LTHD: Tensor) -> None:
        """Decode into the window: un-rotated K and V [L, T, H, D] of any float dtype and device."""
        CODECS[self.encoded.codec].decode(self.to(k_LTHD.device).encoded, out=(k_LTHD, v_LTHD))

    def verify(self) -> None:
        """Raise ChunkCorrupt unless content and checksum agree. Reads the whole payload; waits for its device."""
        found = layer_digests(self.encoded)
        bad = [layer for layer, (was, now) in enumerate(zip(self.layer_digests, found, strict=False)) if was != now]
        if bad or len(found) != len(self.layer_digests) or _checksum(self) != self.checksum:
            what = f"layer {bad[0]}: {self.layer_digests[bad[0]].hex()}" if bad else f"header: {self.checksum}"
            now = found[bad[0]].hex() if bad else _checksum(self)
            raise ChunkCorrupt(f"chunk {self.index} of tenant {self.tenant}: {what} expected, {now} found")

    def to_bytes(self) -> bytes:
        """Header and payload as one buffer."""
        payload = self.encoded.payload_LN.cpu().numpy().tobytes()
        return bytes(msgpack.packb({"header": _header(self), "checksum": self.checksum, "payload": payload}))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> KVChunk:
        """The chunk of `to_bytes`, on the CPU, verified. Raises ChunkCorrupt."""
        try:
            content = msgpack.unpackb(data)
            header = content["header"]
            shape = tuple(header["shape"])
            payload_LN = torch.from_numpy(_array(content["payload"], np.uint8)).view(shape[0], -1)
            ids = header["token_ids"]
            chunk = cls(
                tenant=header["tenant"],
                epoch=header["epoch"],
                index=header["index"],
                c2w_F44=_array(header["c2w"], np.float32).reshape(-1, 4, 4),
                token_ids_T3=None if ids is None else _array(ids, np.int16).reshape(-1, 3),
                encoded=Encoded(
                    header["codec"], shape, header["dtype"], CODECS[header["codec"]].layout(shape), payload_LN
                ),
                layer_digests=tuple(header["layer_digests"]),
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
    poses, digests = np.ascontiguousarray(c2w_F44, np.float32), layer_digests(encoded)
    draft = KVChunk(tenant, epoch, index, poses, token_ids_T3, encoded, digests, "")
    return replace(draft, checksum=_checksum(draft))


def layer_digests(encoded: Encoded) -> tuple[bytes, ...]:
    """xxh3-128 of each layer. Reads the whole payload; waits for its device."""
    return tuple(xxhash.xxh3_128_digest(layer_N) for layer_N in encoded.payload_LN.cpu().numpy())


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
        "layer_digests": list(chunk.layer_digests),
    }


def _checksum(chunk: KVChunk) -> str:
    return xxhash.xxh3_128_hexdigest(msgpack.packb(_header(chunk)))


def _array(data: bytes, dtype: type[np.generic]) -> NDArray[Any]:
    # A copy: torch warns of arrays that cannot be written to, as views of bytes are.
    return np.frombuffer(data, dtype).copy()
