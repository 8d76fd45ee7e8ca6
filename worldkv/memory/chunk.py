"""The unit of memory: the KV of one chunk, encoded, immutable, and named by its content.

Shapes: L layers, F latent frames, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldkv.errors import ChunkCorrupt
from worldkv.memory.codec import CODECS
from worldkv.memory.digests import digests_of
from worldkv.memory.encoded import Encoded
from worldkv.memory.format import Buffer, ChunkReader, Header, Readable, Source, pack


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
    """xxh3-128 of the header as its format writes it; the layers' digests are part of that."""

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

    def bare(self) -> KVChunk:
        """The same chunk without its bytes: all that tells what it would cost somewhere."""
        return replace(self, encoded=self.encoded.over(self.encoded.payload_LN.to("meta")))

    def copy_to(self, device: torch.device) -> KVChunk:
        """The same chunk over bytes of its own, on `device`."""
        return replace(self, encoded=self.encoded.over(self.encoded.payload_LN.to(device, copy=True)))

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
        # The header first: where it is damaged, so may be the digests in it.
        expected = [self.checksum, *(digest.hex() for digest in self.layer_digests)]
        found = [self.header.checksum, *(digest.hex() for digest in digests_of(self.encoded.payload_LN))]
        for place, (was, now) in enumerate(zip_longest(expected, found)):
            if was != now:
                part = f"layer {place - 1}" if place else "the header"
                raise ChunkCorrupt(
                    f"chunk {self.index} of tenant {self.tenant}: checksum of {part}: {was} expected, {now} found"
                )

    @property
    def header(self) -> Header:
        """All of it but the payload."""
        return Header(
            tenant=self.tenant,
            epoch=self.epoch,
            index=self.index,
            c2w_F44=self.c2w_F44,
            token_ids_T3=self.token_ids_T3,
            codec=self.encoded.codec,
            shape=self.encoded.shape,
            dtype=self.encoded.dtype,
            layout=self.encoded.layout,
            layer_digests=self.layer_digests,
        )

    def pieces(self) -> tuple[bytes, memoryview]:
        """The chunk in its format, in two pieces to be written one after the other; waits for the payload's device.

        The second is the payload, and is not copied where that lies on the CPU.
        """
        return pack(self.header, self.encoded.payload_LN)

    def to_bytes(self) -> bytes:
        """The chunk in its format, as one buffer."""
        return b"".join(self.pieces())

    @classmethod
    def from_bytes(cls, data: Readable) -> KVChunk:
        """The chunk of `to_bytes`, on the CPU, verified. Raises ChunkCorrupt."""
        return cls.read(Buffer(data))

    @classmethod
    def read(cls, source: Source) -> KVChunk:
        """The chunk that the source holds, on the CPU, verified. Raises ChunkCorrupt, naming the source."""
        reader = ChunkReader.open(source)
        return cls._of(reader.header, reader.read())

    @classmethod
    def over(cls, data_N: NDArray[np.uint8], label: str | None = None) -> KVChunk:
        """The chunk of these bytes, in its format, without copying them: it is good while they stay as they are.

        Its header is verified, its payload is not (`verify`). Raises ChunkCorrupt, naming the `label`.
        """
        header = ChunkReader.open(Buffer(data_N.data, label)).header
        payload_LN = torch.from_numpy(data_N[header.payload_offset :]).view(header.shape[0], header.layer_bytes)
        return cls._of(header, header.part(0, header.shape[0], payload_LN))

    @classmethod
    def outline(cls, source: Source) -> KVChunk:
        """The chunk as its verified header tells; its payload is not read and lies on the device `meta`.

        Raises ChunkCorrupt, naming the source.
        """
        reader = ChunkReader.open(source)
        return cls._of(reader.header, reader.outline())

    @classmethod
    def _of(cls, header: Header, encoded: Encoded) -> KVChunk:
        return cls(
            tenant=header.tenant,
            epoch=header.epoch,
            index=header.index,
            c2w_F44=header.c2w_F44,
            token_ids_T3=header.token_ids_T3,
            encoded=encoded,
            layer_digests=header.layer_digests,
            checksum=header.checksum,
        )


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
    poses, digests = np.ascontiguousarray(c2w_F44, np.float32), digests_of(encoded.payload_LN)
    draft = KVChunk(tenant, epoch, index, poses, token_ids_T3, encoded, digests, "")
    return replace(draft, checksum=draft.header.checksum)
