"""Paths and tiers as workers elsewhere need them, and when a checkpoint is exact."""

from pathlib import Path

import pytest

from cluster.checkpoint import is_exact
from cluster.places import absolute, of_slot
from worldkv.config import load
from worldkv.geometry import KVGeometry
from worldkv.memory.policy import parse_policy
from worldkv.runs.memory_check import chunk_bytes

TIERS = (
    "memory.tiers=[{name: device, capacity_mib: 8}, {name: disk, capacity_mib: 9, folder: runs/disk},"
    " {name: durable, capacity_mib: 10, url: runs/durable}]"
)
GEOMETRY = KVGeometry(
    layers=10, heads=5, head_dim=64, rows=8, columns=8, chunk_latent_frames=3, trained_latent_frames=48
)


def test_every_path_of_a_configuration_is_made_absolute():
    way = ("trajectory.kind=files", "trajectory.folder=way")
    config = absolute(load(None, ["output.folder=runs/a", "model.weights=w", *way, TIERS]), Path("/base"))
    assert config.output.folder == Path("/base/runs/a")
    assert config.model.weights == Path("/base/w")
    assert config.trajectory.folder == Path("/base/way")
    assert config.memory.tiers[1].folder == Path("/base/runs/disk")
    assert config.memory.tiers[2].url == "/base/runs/durable"


def test_a_url_of_a_store_stays_as_it_is():
    tiers = "memory.tiers=[{name: durable, capacity_mib: 10, url: 'memory://worlds'}]"
    assert absolute(load(None, [tiers]), Path("/base")).memory.tiers[0].url == "memory://worlds"


def test_the_first_worker_has_the_tiers_as_configured_and_others_their_own():
    memory = load(None, [TIERS]).memory
    assert of_slot(memory, 0) == memory
    other = of_slot(memory, 2)
    assert [tier.folder or tier.url for tier in other.tiers] == [
        None,
        Path("runs/disk-worker2"),
        "runs/durable-worker2",
    ]


@pytest.mark.parametrize(
    ("tier", "exact"),
    [
        ("{name: host, capacity_mib: %d}", True),
        ("{name: device, capacity_mib: 1}, {name: host, capacity_mib: %d}", True),
        ("{name: device, capacity_mib: 1, detail: [int4]}, {name: host, capacity_mib: %d}", False),
        ("{name: host, capacity_mib: %d, low_watermark_ratio: 0.5}", False),
    ],
)
def test_a_checkpoint_is_exact_where_nothing_can_be_dropped_or_reduced(tier, exact):
    policy = parse_policy("worldkv/codec=bf16")
    mib = -(-chunk_bytes(GEOMETRY, policy) * 20 // 2**20)
    memory = load(None, [f"memory.tiers=[{tier % mib}]"]).memory
    assert is_exact(memory, GEOMETRY, policy, 20) == exact
    assert not is_exact(memory, GEOMETRY, policy, 60)
    assert is_exact(memory, GEOMETRY, parse_policy("full"), 60), "it stores nothing"


def test_a_tenants_limit_is_room_too():
    policy = parse_policy("worldkv")
    shares = [
        "memory.tiers=[{name: host, capacity_mib: 64}]",
        "memory.shares=[{tenant: default, tier: host, limit_mib: 1}]",
    ]
    assert not is_exact(load(None, shares).memory, GEOMETRY, policy, 20)
