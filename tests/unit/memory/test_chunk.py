from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldkv.errors import ChunkCorrupt
from worldkv.memory.chunk import KVChunk
from worldkv.memory.codec import CODECS

CODEC_NAMES = sorted(CODECS)


def test_the_id_tells_tenant_epoch_index_and_content_apart(new_chunk):
    chunks = [
        new_chunk(0),
        new_chunk(0, tenant="other"),
        new_chunk(0, epoch="weights-b"),
        new_chunk(1, seed=0),
        new_chunk(0, seed=1),
        new_chunk(0, pruned=True),
        new_chunk(0, codec="bf16"),
    ]
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    assert new_chunk(0).id == chunks[0].id


def test_the_id_depends_on_the_poses(new_chunk):
    a, b = new_chunk(0), new_chunk(1, seed=0)
    moved = replace(a, c2w_F44=b.c2w_F44)
    with pytest.raises(ChunkCorrupt, match="checksum"):
        moved.verify()


def test_bytes_count_payload_poses_and_token_ids(new_chunk):
    whole, pruned = new_chunk(0, tokens=6), new_chunk(0, tokens=6, pruned=True)
    # Keys and values of a layer, 288 bytes each, begin at multiples of 64.
    payload = 2 * 2 * 320
    assert whole.nbytes == payload + 3 * 16 * 4
    assert pruned.nbytes == whole.nbytes + 6 * 3 * 2
    assert whole.tokens == 6


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_bytes_round_trip(new_chunk, codec, dtype, pruned):
    chunk = new_chunk(7, codec=codec, pruned=pruned, dtype=dtype, tenant="ünïcode")
    twin = KVChunk.from_bytes(chunk.to_bytes())
    assert (twin.id, twin.tenant, twin.epoch, twin.index) == (chunk.id, chunk.tenant, chunk.epoch, 7)
    assert (twin.encoded.codec, twin.encoded.shape, twin.encoded.dtype) == (
        codec,
        chunk.encoded.shape,
        str(dtype).removeprefix("torch."),
    )
    np.testing.assert_array_equal(twin.c2w_F44, chunk.c2w_F44)
    if pruned:
        np.testing.assert_array_equal(twin.token_ids_T3, chunk.token_ids_T3)
    else:
        assert twin.token_ids_T3 is None
    for name, tensor in chunk.encoded.tensors.items():
        assert torch.equal(twin.encoded.tensors[name], tensor)
    assert twin.to_bytes() == chunk.to_bytes()


def test_arrays_read_from_bytes_can_be_handed_to_torch(new_chunk):
    chunk = KVChunk.from_bytes(new_chunk(0, pruned=True).to_bytes())
    # Warnings are errors here, and torch warns of arrays that cannot be written to.
    assert torch.from_numpy(chunk.token_ids_T3).shape == (6, 3)
    assert torch.from_numpy(chunk.c2w_F44).shape == (3, 4, 4)


@given(st.binary(max_size=200))
def test_any_bytes_are_corrupt_never_another_fault(data: bytes):
    with pytest.raises(ChunkCorrupt, match=f"{len(data)} bytes"):
        KVChunk.from_bytes(data)


def test_load_decodes_into_the_views_it_is_given(new_chunk):
    chunk = new_chunk(0, codec="fp32")
    window_k, window_v = (torch.full((2, 9, 2, 6), float("nan")) for _ in range(2))
    chunk.load(window_k[:, 1:7], window_v[:, 1:7])
    k, v = CODECS["fp32"].decode(chunk.encoded)
    assert torch.equal(window_k[:, 1:7], k)
    assert torch.equal(window_v[:, 1:7], v)
    assert window_k[:, [0, 7, 8]].isnan().all()


def test_a_sealed_chunk_keeps_nothing_of_its_input(new_chunk):
    chunk = new_chunk(0)
    before = chunk.to_bytes()
    k, v = CODECS["fp32"].decode(chunk.encoded)
    k.zero_()
    v.zero_()
    chunk.verify()
    assert chunk.to_bytes() == before
