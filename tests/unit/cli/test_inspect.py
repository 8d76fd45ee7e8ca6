"""`worldkv inspect`: what it shows of each kind of thing, and how it names what is damaged."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dialogue import only_error

from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.tiers.disk import DiskTier


def test_inspect_shows_a_run_and_its_dataset_and_verifies_it(rollout, worldkv, tmp_path):
    rollout()
    said = worldkv("inspect", tmp_path / "run", "--verify")
    assert said.code == 0
    text = " ".join(said.out.split())
    for word in ("finished", "rooms-0/sliding", "back, 12 video frames", "verified: as written, all 1 of its episodes"):
        assert word in text
    assert max(map(len, said.out.splitlines())) <= 80 + len(str(tmp_path))


def test_inspect_names_every_damaged_file_and_ends_with_one_error(rollout, worldkv, tmp_path):
    rollout()
    (video,) = (tmp_path / "run/dataset/videos/observation.images.main").rglob("*.mp4")
    video.write_bytes(video.read_bytes()[:-9])
    said = worldkv("inspect", tmp_path / "run", "--verify")
    assert said.code == 2
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run/dataset'}: not as it was written (1 found): {video}: damaged")
    assert str(video) in said.out


@pytest.fixture
def chunk() -> KVChunk:

    keys = torch.randn(2, 12, 2, 24, generator=torch.Generator().manual_seed(0))
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    return make_chunk(
        tenant="lab", epoch="weights-a", index=5, c2w_F44=poses, encoded=CODECS["int4"].encode(keys, keys)
    )


def test_inspect_shows_a_chunk_file(worldkv, tmp_path, chunk):
    (tmp_path / "chunk.wkv").write_bytes(chunk.to_bytes())
    said = worldkv("inspect", tmp_path / "chunk.wkv")
    assert said.code == 0
    for word in (chunk.id, "lab", "weights-a", "int4", "2, 12, 2, 24", "% of bf16", "version", "header and 2"):
        assert word in said.out


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_inspect_refuses_a_damaged_chunk_file_by_name(worldkv, tmp_path, chunk, cut):
    data = chunk.to_bytes()
    path = tmp_path / "chunk.wkv"
    path.write_bytes(data + b"0" if cut < 0 else data[: -cut or 0])
    assert only_error(worldkv("inspect", path)).startswith(f"error: not a sound chunk file: {path}: ")


def test_inspect_names_the_layer_that_is_damaged(worldkv, tmp_path, chunk):
    data = bytearray(chunk.to_bytes())
    data[-1] ^= 1
    path = tmp_path / "chunk.wkv"
    path.write_bytes(data)
    assert re.search(r"checksum of layer 1: \w{32} expected, \w{32} found$", only_error(worldkv("inspect", path)))


@pytest.fixture
def tier_folder(tmp_path, chunk) -> Path:
    """Of a disk tier that holds the chunk."""
    tier = DiskTier.open("disk", tmp_path / "tier", 2**20)
    tier.put(chunk)
    tier.close()
    return tmp_path / "tier"


def test_inspect_shows_a_tier(worldkv, tier_folder):
    said = worldkv("inspect", tier_folder, "--verify")
    assert said.code == 0
    text = " ".join(said.out.replace("│", " ").split())
    for word in ("tier disk", "chunks 1, ", "lab (1)", "weights-a (1)", "int4 (1)", "faults 0; headers and payloads"):
        assert word in text
    assert max(map(len, said.out.splitlines())) <= 80


def test_inspect_names_the_faults_of_a_tier_and_ends_with_code_1(worldkv, tier_folder):
    (path,) = tier_folder.rglob("*.wkv")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert worldkv("inspect", tier_folder).code == 0
    said = worldkv("inspect", tier_folder, "--verify")
    assert (said.code, said.err) == (1, "")
    assert said.out.splitlines()[-1].startswith(f"{path}: checksum of layer 1: ")
