"""The chunks a campaign admits, and the oracle: what each of them may come back as, byte for byte.

A chunk comes back as it was admitted or, where a tier's ladder reduced it, as exactly that reduction. Chunks of one
content that reduce to the same bytes become one chunk to the memory, and then each may come back as any of them.

Shapes: L layers, F latent frames, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from worldkv.memory.catalogue import Form
from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.detail import Detail, Ladder

TENANTS, EPOCHS = ("guarded", "limited", "free"), ("weights-a", "weights-b")
STORED_AS = ("fp32", "bf16", "int8", "int4")
CHUNKS = 16
"""Of each tenant and epoch; every four hold one content in all codecs."""
LAYERS, LATENT_FRAMES, ROWS, COLUMNS, HEADS, HEAD_DIM = 2, 3, 2, 4, 2, 16
LADDER = Ladder((Detail("int8"), Detail("int4"), Detail("int4", 0.5)), rows=ROWS, columns=COLUMNS)


class WrongBytes(AssertionError):
    """A chunk came back that is not what was asked for."""


@dataclass(frozen=True)
class Truth:
    """What chunk an id stands for, copied out of reach of any tier."""

    chunk: KVChunk
    payload: bytes

    def agrees(self, found: KVChunk) -> bool:
        """Whether `found` is this chunk, to the byte."""
        return (
            _labels(self.chunk) == _labels(found)
            and np.array_equal(self.chunk.c2w_F44, found.c2w_F44)
            and _same_ids(self.chunk, found)
            and self.payload == found.encoded.payload_LN.cpu().numpy().tobytes()
        )


class Pool:
    """All chunks of a campaign, the same for each."""

    def __init__(self) -> None:
        self.truths: dict[str, Truth] = {}
        self._family: dict[str, set[str]] = {}
        """Id -> every id that may come back for it; one set for all ids in it."""
        self.chunks = {
            (tenant, epoch): [self._add(tenant, epoch, index) for index in range(CHUNKS)]
            for tenant in TENANTS
            for epoch in EPOCHS
        }

    def fresh(self, tenant: str, epoch: str, index: int) -> KVChunk:
        """The chunk in memory of its own, as a session that just made it would bring it."""
        chunk = self.chunks[tenant, epoch][index]
        return self.copy(chunk.id)

    def copy(self, chunk_id: str) -> KVChunk:
        """The chunk of this id in memory of its own."""
        truth = self.truths[chunk_id]
        payload_LN = torch.frombuffer(bytearray(truth.payload), dtype=torch.uint8).view(LAYERS, -1)
        return KVChunk(**{**vars(truth.chunk), "encoded": truth.chunk.encoded.over(payload_LN)})

    def forms(self, chunk_id: str) -> set[str]:
        """Ids of all that may come back for this one."""
        return self._family[chunk_id]

    def check(self, asked: str, found: KVChunk, tenant: str) -> None:
        """Raise WrongBytes unless `found` is what the tenant may get for `asked`."""
        if found.id not in self._family.get(asked, ()) or found.tenant != tenant:
            raise WrongBytes(f"chunk {asked} of {tenant} asked, {found.id} of {found.tenant} came back")
        if not self.truths[found.id].agrees(found):
            raise WrongBytes(f"chunk {asked} of {tenant} asked, {found.id} came back with other bytes")

    def _add(self, tenant: str, epoch: str, index: int) -> KVChunk:
        content, codec = divmod(index, len(STORED_AS))
        number = (TENANTS.index(tenant) * len(EPOCHS) + EPOCHS.index(epoch)) * CHUNKS + content
        generator = torch.Generator().manual_seed(number)
        kv = torch.randn(2, LAYERS, LATENT_FRAMES * ROWS * COLUMNS, HEADS, HEAD_DIM, generator=generator)
        poses_F44 = np.tile(np.eye(4, dtype=np.float32), (LATENT_FRAMES, 1, 1))
        poses_F44[:, 0, 3] = content
        chunk = make_chunk(
            tenant=tenant,
            epoch=epoch,
            index=content,
            c2w_F44=poses_F44,
            encoded=CODECS[STORED_AS[codec]].encode(*kv),
        )
        family = {chunk.id}
        for form in [chunk, *reductions(chunk)]:
            self.truths.setdefault(form.id, Truth(form, form.encoded.payload_LN.numpy().tobytes()))
            family |= self._family.get(form.id, {form.id})
        self._family |= dict.fromkeys(family, family)
        return chunk


def reductions(chunk: KVChunk) -> list[KVChunk]:
    """What the ladder makes of the chunk, rung after rung."""
    found = []
    while (rung := LADDER.next_rung(_form(chunk))) is not None:
        chunk = LADDER.reduce(chunk, rung)
        found.append(chunk)
    return found


def _form(chunk: KVChunk) -> Form:
    return Form(chunk.encoded.codec, chunk.encoded.shape, chunk.token_ids_T3 is not None)


def _labels(chunk: KVChunk) -> tuple[object, ...]:
    encoded = chunk.encoded
    return chunk.tenant, chunk.epoch, chunk.index, chunk.layer_digests, encoded.codec, encoded.shape, encoded.dtype


def _same_ids(one: KVChunk, other: KVChunk) -> bool:
    if one.token_ids_T3 is None or other.token_ids_T3 is None:
        return one.token_ids_T3 is other.token_ids_T3
    return np.array_equal(one.token_ids_T3, other.token_ids_T3)
