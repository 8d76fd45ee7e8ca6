"""The chunk files that version 1 wrote are read today and on every day to come."""

import numpy as np
import pytest
import torch
import xxhash
from make_chunk_v1 import (
    CHANNELS,
    CODED,
    EPOCH,
    HEADS,
    INDEX,
    LAYERS,
    TARGET,
    TENANT,
    TOKENS,
    chunk_v1,
    coded_v1,
    keys_and_values,
    poses,
    pruned_ids,
    target,
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


# Id of the chunk, and xxh3-128 of its keys and values in float32.
DIGESTS = {
    "bf16": ("5d8ad070b431c9db0fd7356a78e8b55f", "aee8fdff0be7f4c34c5b7740588a2f5d"),
    "fp8": ("a10a0fc5fe847b9cb8d43095f3ddb791", "21d467d326daf1cd19077c86aca6515a"),
    "int8": ("92af0357cc337793320a0a00b66bf8c6", "4a23e891dc0f29186b8be6814b242e37"),
    "int4": ("21ed053b37c5f918b2ff238b87222d3f", "363ae5a8d6e580b6669d1bce626f1614"),
    "int3": ("7325db7be8f54d853c06bfd207c9c6cc", "bd0ca4ddbb8f60d7ad9e3c34e9c695c2"),
    "pruned_int4": ("30d217c4a0ce7644313da2013b628af9", "f53895609dcc5a785b5dcfae94a865d7"),
}


@pytest.mark.parametrize("name", CODED)
class TestOfEachCodec:
    def test_every_number_is_read_to_the_bit(self, name: str):
        data, expected = coded_v1(name)
        assert target(name).read_bytes() == data
        chunk = KVChunk.from_bytes(data)
        decoded = CODECS[chunk.encoded.codec].decode(chunk.encoded, torch.float32)
        assert torch.equal(torch.stack(decoded), torch.from_numpy(expected))
        values = xxhash.xxh3_128_hexdigest(torch.stack(decoded).numpy().tobytes())
        assert (chunk.id, values) == DIGESTS[name]

    def test_the_header_says_what_it_is(self, name: str):
        chunk = KVChunk.from_bytes(target(name).read_bytes())
        assert (chunk.tenant, chunk.epoch, chunk.index) == (TENANT, EPOCH, INDEX)
        assert (chunk.encoded.codec, chunk.encoded.dtype) == (name.removeprefix("pruned_"), "bfloat16")
        np.testing.assert_array_equal(chunk.c2w_F44, poses())
        if name.startswith("pruned"):
            np.testing.assert_array_equal(chunk.token_ids_T3, pruned_ids())
        else:
            assert chunk.token_ids_T3 is None
        assert chunk.to_bytes() == target(name).read_bytes()

    def test_a_layer_is_read_alone(self, name: str):
        _, expected = coded_v1(name)
        part = read_layers(target(name), 1, 2)
        decoded = CODECS[part.codec].decode(part, torch.float32)
        assert torch.equal(torch.stack(decoded), torch.from_numpy(expected[:, 1:]))


def test_no_codec_is_without_a_golden_chunk():
    assert {"fp32", *(name.removeprefix("pruned_") for name in CODED)} == {*CODECS}
