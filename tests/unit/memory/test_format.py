import os
import tracemalloc

import msgpack
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from worldkv.errors import ChunkCorrupt, TransferError
from worldkv.memory import format
from worldkv.memory.chunk import KVChunk
from worldkv.memory.codec import CODECS
from worldkv.memory.format import MAGIC, PAYLOAD_ALIGNMENT, PREFIX, Buffer, ChunkReader, pack, read_layers, source_of

CODEC_NAMES = sorted(CODECS)


def head_of(header: bytes, *, magic: bytes = MAGIC, version: int = 1, length: int | None = None) -> bytes:
    """What precedes a payload, with a true checksum."""
    size = len(header) if length is None else length
    return PREFIX.pack(magic, version, size, xxhash.xxh3_128_digest(header)) + header


def with_header(data: bytes, **changed: object) -> bytes:
    """The chunk with other header fields, and a checksum that is right for them."""
    _, _, length, _ = PREFIX.unpack_from(data)
    fields = msgpack.unpackb(data[PREFIX.size : PREFIX.size + length]) | changed
    head = head_of(msgpack.packb(fields))
    return head.ljust(-(-len(head) // PAYLOAD_ALIGNMENT) * PAYLOAD_ALIGNMENT, b"\0") + data[PAYLOAD_ALIGNMENT:]


class Watched(Buffer):
    """A buffer that notes which bytes were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.ranges: list[tuple[int, int]] = []

    def read_into(self, offset: int, out: memoryview) -> int:
        self.ranges.append((offset, offset + len(out)))
        return super().read_into(offset, out)


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_any_run_of_layers_is_read_alone(new_chunk, codec, tmp_path):
    chunk = new_chunk(0, codec=codec)
    path = tmp_path / "chunk.wkv"
    path.write_bytes(chunk.to_bytes())
    for start, stop in ((0, 1), (1, 2), (0, 2)):
        part = read_layers(path, start, stop)
        assert torch.equal(part.payload_LN, chunk.encoded.payload_LN[start:stop])
        assert part.layout == chunk.encoded.layer_range(start, stop).layout
        decoded, whole = CODECS[codec].decode(part), CODECS[codec].decode(chunk.encoded)
        assert all(torch.equal(a, b[start:stop]) for a, b in zip(decoded, whole, strict=True))


def test_only_the_asked_layers_are_read(new_chunk):
    data = new_chunk(0).to_bytes()
    source = Watched(data)
    reader = ChunkReader.open(source)
    reader.read(1, 2)
    size = reader.header.layer_bytes
    assert source.ranges == [(0, PAYLOAD_ALIGNMENT), (PAYLOAD_ALIGNMENT + size, PAYLOAD_ALIGNMENT + 2 * size)]


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_layers_are_verified_in_whatever_runs_they_are_read(new_chunk, monkeypatch, at_once):
    monkeypatch.setattr(format, "READ_BYTES", at_once)
    data = bytearray(new_chunk(0).to_bytes())
    assert torch.equal(read_layers(data, 0, 2).payload_LN, new_chunk(0).encoded.payload_LN)
    data[-1] ^= 1
    with pytest.raises(ChunkCorrupt, match="checksum of layer 1"):
        read_layers(data, 0, 2)


def test_damage_in_one_layer_is_named_and_leaves_the_others_readable(new_chunk):
    data = bytearray(new_chunk(0).to_bytes())
    data[-1] ^= 1
    assert read_layers(data, 0, 1).shape[0] == 1
    for asked in ((1, 2), (0, 2)):
        with pytest.raises(ChunkCorrupt, match=r"checksum of layer 1: \w{32} expected, \w{32} found"):
            read_layers(data, *asked)


@pytest.mark.parametrize("asked", [(0, 3), (1, 1), (2, 3), (-1, 1)])
def test_layers_that_do_not_exist_are_refused(new_chunk, asked):
    with pytest.raises(IndexError, match=f"layers {asked[0]} to {asked[1]} asked, of 2"):
        read_layers(new_chunk(0).to_bytes(), *asked)


def test_the_payload_is_aligned_and_not_copied_to_be_written(new_chunk):
    chunk = new_chunk(0)
    head, payload = chunk.pieces()
    assert len(head) % PAYLOAD_ALIGNMENT == 0
    before = bytes(payload)
    chunk.encoded.payload_LN[0, 0] += 1
    assert bytes(payload) != before
    assert chunk.header.total_bytes == len(head) + len(payload)


def test_the_checksum_of_the_header_is_the_id(new_chunk):
    chunk = new_chunk(0)
    data = chunk.to_bytes()
    _, _, length, digest = PREFIX.unpack_from(data)
    assert digest.hex() == chunk.id == xxhash.xxh3_128_hexdigest(data[PREFIX.size : PREFIX.size + length])


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_truncation_is_corrupt(new_chunk, codec):
    data = new_chunk(0, tokens=1, codec=codec, pruned=True).to_bytes()
    for length in [*range(600), *range(4000, len(data))]:
        with pytest.raises(ChunkCorrupt, match=f"a chunk of {length} bytes"):
            KVChunk.from_bytes(data[:length])


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_flipped_byte_is_corrupt(new_chunk, codec):
    data = bytearray(new_chunk(0, tokens=1, codec=codec, pruned=True).to_bytes())
    for place in range(len(data)):
        flip = (0x01, 0x03, 0x80, 0xFF)[place % 4]
        data[place] ^= flip
        with pytest.raises(ChunkCorrupt):
            KVChunk.from_bytes(data)
        data[place] ^= flip
    KVChunk.from_bytes(data)


def test_a_lengthened_chunk_is_corrupt(new_chunk):
    data = new_chunk(0).to_bytes()
    with pytest.raises(ChunkCorrupt, match=f"{len(data)} bytes expected, {len(data) + 1} found"):
        KVChunk.from_bytes(data + b"\0")


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version_is_named(version):
    with pytest.raises(ChunkCorrupt, match=f"format version {version}; this build reads 1"):
        KVChunk.from_bytes(head_of(b"whatever", version=version))


@pytest.mark.parametrize("length", [2**32 - 1, 2**24 + 1, 2**24, 5000])
def test_a_huge_header_length_allocates_nothing(length):
    data = head_of(b"", length=length)
    tracemalloc.start()
    with pytest.raises(ChunkCorrupt, match=f"a header of {length} bytes announced, 32 bytes found"):
        KVChunk.from_bytes(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": [2, 0, 2, 6]},
        {"shape": [2, 6, 2]},
        {"shape": [2**40, 6, 2, 6]},
        {"shape": [3, 6, 2, 6]},
        {"shape": [2, 6, 2, 6.0]},
        {"layout": [["k", "float32", [2**40]]]},
        {"layout": [["k", "float32", [-(2**40)]]]},
        {"layout": [["k", "object", [6]]]},
        {"layout": [["k", "float32"]]},
        {"layer_bytes": 1},
        {"layer_digests": []},
        {"layer_digests": [b"short", b"short"]},
        {"tenant": 3},
        {"index": "first"},
        {"c2w": b"123"},
        {"token_ids": b"1234"},
        {"dtype": "complex64"},
        {"surplus": 1},
    ],
    ids=str,
)
def test_a_header_that_lies_with_a_true_checksum_is_corrupt(new_chunk, changed):
    data = new_chunk(0).to_bytes()
    assert with_header(data) == data
    with pytest.raises(ChunkCorrupt, match="a chunk of "):
        KVChunk.from_bytes(with_header(data, **changed))


def test_what_another_layout_wrote_is_read_but_never_decoded_as_this_one(new_chunk):
    chunk = new_chunk(0, codec="fp32")
    swapped = dict(reversed(chunk.encoded.layout.items()))
    fields = [[name, "float32", list(size[1:])] for name, (size, _) in swapped.items()]
    read = KVChunk.from_bytes(with_header(chunk.to_bytes(), layout=fields))
    assert torch.equal(read.encoded.tensors["v"], chunk.encoded.tensors["k"])
    read.verify()


@given(st.binary(max_size=400), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_any_header_is_read_or_corrupt_never_another_fault(header: bytes, length: int):
    for data in (head_of(header), head_of(header, length=length), head_of(header).ljust(8192, b"\0")):
        with pytest.raises(ChunkCorrupt):
            KVChunk.from_bytes(data)


@given(
    st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=3) | st.binary(max_size=3), st.lists, max_leaves=9)
)
@settings(max_examples=25)
def test_any_value_in_any_field_is_corrupt_never_another_fault(new_chunk, value: object):
    data = new_chunk(0, pruned=True).to_bytes()
    # Left out: fields in which some of these values are right.
    for name in ("shape", "dtype", "layout", "layer_bytes", "layer_digests"):
        with pytest.raises(ChunkCorrupt):
            KVChunk.from_bytes(with_header(data, **{name: value}))


def test_a_header_longer_than_a_page_is_read(new_chunk):
    chunk = new_chunk(0, tokens=900, pruned=True)
    data = chunk.to_bytes()
    assert chunk.header.payload_offset == 2 * PAYLOAD_ALIGNMENT
    assert KVChunk.from_bytes(data).id == chunk.id
    for length in (4096, 5000, 8191):
        with pytest.raises(ChunkCorrupt, match="truncated"):
            KVChunk.from_bytes(data[:length])


def test_faults_of_a_file_name_it(new_chunk, tmp_path):
    path = tmp_path / "chunk.wkv"
    with pytest.raises(TransferError, match=f"{path}: cannot be read: No such file"):
        read_layers(path, 0, 1)
    path.write_bytes(b"short")
    with pytest.raises(ChunkCorrupt, match=f"{path}: 5 bytes that start with b'short' are no chunk"):
        read_layers(path, 0, 1)


def test_a_file_that_shrinks_while_it_is_read_is_corrupt(new_chunk, tmp_path):
    path = tmp_path / "chunk.wkv"
    path.write_bytes(new_chunk(0).to_bytes())
    with source_of(path) as source:
        reader = ChunkReader.open(source)
        os.truncate(path, PAYLOAD_ALIGNMENT + 10)
        with pytest.raises(ChunkCorrupt, match=f"{path}: truncated"):
            reader.read()


def test_every_codec_stores_only_types_that_the_format_knows(new_chunk):
    for codec in CODEC_NAMES:
        chunk = new_chunk(0, codec=codec)
        assert ChunkReader.open(Buffer(b"".join(pack(chunk.header, chunk.encoded.payload_LN)))).header.codec == codec
