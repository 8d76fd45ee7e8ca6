"""The chunk file that version 1 wrote is read today and on every day to come."""

import numpy as np
import torch
from make_chunk_v1 import (
    CHANNELS,
    EPOCH,
    HEADS,
    INDEX,
    LAYERS,
    TARGET,
    TENANT,
    TOKENS,
    chunk_v1,
    keys_and_values,
    poses,
    token_ids,
)

from worldkv.memory.chunk import KVChunk
from worldkv.memory.codec import CODECS
from worldkv.memory.format import Buffer, ChunkReader, read_layers

ID = "5fbe9c196343023a03ae7088139dce83"


def test_every_field_and_value_of_the_golden_chunk_is_read():
    chunk = KVChunk.from_bytes(TARGET.read_bytes())
    assert (chunk.tenant, chunk.epoch, chunk.index, chunk.id) == (TENANT, EPOCH, INDEX, ID)
    assert (chunk.encoded.codec, chunk.encoded.dtype) == ("fp32", "float32")
    assert chunk.encoded.shape == (LAYERS, TOKENS, HEADS, CHANNELS)
    np.testing.assert_array_equal(chunk.c2w_F44, poses())
    np.testing.assert_array_equal(chunk.token_ids_T3, token_ids())
    for found, expected in zip(CODECS["fp32"].decode(chunk.encoded), keys_and_values(), strict=True):
        assert torch.equal(found, torch.from_numpy(expected))


def test_a_layer_of_the_golden_chunk_is_read_alone():
    keys, _ = keys_and_values()
    part = read_layers(TARGET, 1, 2)
    assert torch.equal(part.tensors["k"], torch.from_numpy(keys[1:]))


def test_the_golden_chunk_is_written_as_ever():
    data = TARGET.read_bytes()
    assert chunk_v1() == data
    assert KVChunk.from_bytes(data).to_bytes() == data
    assert ChunkReader.open(Buffer(data)).header.payload_offset == 4096
