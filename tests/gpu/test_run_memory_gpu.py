"""The memory that a configuration gives a model on a GPU: slabs, pinned, with a link between them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldkv.config import load
from worldkv.geometry import KVGeometry
from worldkv.memory.chunk import make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.policy import parse_policy
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.runs.memory import open_memory, pin_faults
from worldkv.runs.memory_check import check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]

GEOMETRY = KVGeometry(
    layers=8, heads=8, head_dim=64, rows=8, columns=8, chunk_latent_frames=3, trained_latent_frames=48
)


def test_a_configured_memory_on_a_gpu_is_pinned_and_moves_chunks_both_ways(tmp_path):
    model = SimpleNamespace(device=torch.device("cuda"), epoch="weights-a", geometry=GEOMETRY)
    tiers = "{name: device, capacity_mib: 64}, {name: host, capacity_mib: 256}"
    config = load(None, [f"memory.tiers=[{tiers}]", f"output.folder={tmp_path / 'run'}"])
    check(config, model, [parse_policy("worldkv")], 32)
    memory = open_memory(config.memory, model)
    device, host = memory.tiers
    assert isinstance(device, DeviceTier)
    assert isinstance(host, HostTier)
    host.wait_pinned()
    assert (host.pinned_bytes, pin_faults(memory)) == (256 * 2**20, [])
    k = torch.randn(8, 192, 8, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    encoded = CODECS["int4"].encode(k, k)
    chunk = make_chunk(tenant="default", epoch="weights-a", index=0, c2w_F44=poses, encoded=encoded)
    memory.admit(chunk)
    assert (len(device), len(host)) == (1, 0)
    memory.demote([chunk.id])
    assert (len(device), len(host)) == (0, 1)
    (found,) = memory.fetch([chunk.id])
    assert found is not None
    assert found.encoded.device.type == "cuda"
    assert found.to_bytes() == chunk.to_bytes()
    assert (len(device), len(host)) == (1, 0)
    del found
    memory.release([chunk.id])
    assert memory.check_integrity([]) == []
    memory.close()
