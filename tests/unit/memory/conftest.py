"""Chunks to store, and how to damage one where it lies."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.memory.tiers.slab import SlabTier

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


def flip_a_byte(tier: ResidentTier | SlabTier, chunk_id: str) -> None:
    """Damage the chunk where it lies in this tier, whether or not the tier would give it."""
    chunk = tier._chunks[chunk_id] if isinstance(tier, ResidentTier) else SlabTier.get(tier, chunk_id)
    chunk.encoded.payload_LN.view(-1)[0] ^= 1


@pytest.fixture(scope="session")
def new_chunk() -> Callable[..., KVChunk]:
    return chunk_of


@pytest.fixture(scope="session")
def damage() -> Callable[[ResidentTier | SlabTier, str], None]:
    return flip_a_byte
