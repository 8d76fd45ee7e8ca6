"""Chunks to store, and how to damage one where it lies."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.tiers.resident import ResidentTier

LAYERS, HEADS, HEAD_DIM, LATENT_FRAMES = 2, 2, 6, 3


def chunk_of(
    index: int = 0,
    *,
    tokens: int = 6,
    codec: str = "fp32",
    tenant: str = "default",
    epoch: str = "weights-a",
    seed: int | None = None,
    pruned: bool = False,
    dtype: torch.dtype = torch.float32,
) -> KVChunk:
    """A chunk of random content, by default another one for each index."""
    generator = torch.Generator().manual_seed(index if seed is None else seed)
    kv = torch.randn(2, LAYERS, tokens, HEADS, HEAD_DIM, generator=generator).to(dtype)
    poses = np.tile(np.eye(4, dtype=np.float32), (LATENT_FRAMES, 1, 1))
    poses[:, 0, 3] = index
    ids = np.stack([np.arange(tokens), np.arange(tokens) + 1, np.arange(tokens) + 2], 1)
    return make_chunk(
        tenant=tenant,
        epoch=epoch,
        index=index,
        c2w_F44=poses,
        encoded=CODECS[codec].encode(*kv),
        token_ids_T3=ids.astype(np.int16) if pruned else None,
    )


def flip_a_byte(tier: ResidentTier, chunk_id: str) -> None:
    """Damage the chunk in this tier alone: tiers of one device share their tensors."""
    chunk = tier._chunks[chunk_id]
    damaged = chunk.encoded.payload_LN.clone()
    damaged.view(-1)[0] ^= 1
    tier._chunks[chunk_id] = replace(chunk, encoded=chunk.encoded.over(damaged))


@pytest.fixture(scope="session")
def new_chunk() -> Callable[..., KVChunk]:
    return chunk_of


@pytest.fixture(scope="session")
def damage() -> Callable[[ResidentTier, str], None]:
    return flip_a_byte
