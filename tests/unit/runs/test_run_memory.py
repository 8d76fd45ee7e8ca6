from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from worldkv.config import load
from worldkv.errors import ConfigError
from worldkv.geometry import KVGeometry
from worldkv.memory.policy import PRESETS
from worldkv.runs.memory import MIB, check, open_memory

GEOMETRY = KVGeometry(
    layers=8, heads=8, head_dim=64, rows=16, columns=16, chunk_latent_frames=3, trained_latent_frames=48
)
MODEL = SimpleNamespace(device=torch.device("cpu"), epoch="weights-a", geometry=GEOMETRY)


def memory_config(*overrides: str):
    return load(None, [f"memory.{override}" for override in overrides]).memory


def test_a_tier_smaller_than_one_window_is_refused_with_what_to_do():
    config = memory_config("tiers=[{name: device, capacity_mib: 64}, {name: host, capacity_mib: 1}]")
    with pytest.raises(ConfigError) as fault:
        check(config, GEOMETRY, [PRESETS["sliding"], PRESETS["worldkv"]])
    assert fault.match(r"memory\.tiers\.1\.capacity_mib = 1: tier host is smaller than the 4 chunks")
    assert fault.match("window of policy worldkv brings back; give it at least 13, or leave it out")
    check(memory_config("tiers=[{name: host, capacity_mib: 13}]"), GEOMETRY, [PRESETS["worldkv"]])


def test_policies_that_bring_nothing_back_need_no_memory():
    config = memory_config("tiers=[{name: host, capacity_mib: 1}]")
    check(config, GEOMETRY, [PRESETS["sliding"], PRESETS["full"], replace(PRESETS["worldkv"], retrieved_chunks=0)])


def test_tiers_stand_in_the_order_of_the_configuration_with_their_rules(tmp_path):
    config = memory_config(
        "tiers=[{name: device, capacity_mib: 2, eviction: cost},"
        " {name: host, capacity_mib: 3, low_watermark_ratio: 0.5, high_watermark_ratio: 0.9, detail: [int4/keep=0.5]},"
        f" {{name: disk, capacity_mib: 4, folder: {tmp_path / 'chunks'}}}]",
        "shares=[{tenant: a, tier: host, reserved_mib: 1, limit_mib: 2}]",
    )
    memory = open_memory(config, MODEL)
    assert [(tier.name, tier.capacity_bytes) for tier in memory.tiers] == [
        ("device", 2 * MIB),
        ("host", 3 * MIB),
        ("disk", 4 * MIB),
    ]
    assert [rules.keeps_copies for rules in memory.rules] == [False, False, True]
    host = memory.rules[1]
    assert (host.high_ratio, host.low_ratio, host.ladder.rungs[0].keep_ratio) == (0.9, 0.5, 0.5)
    assert (host.shares.share("a").reserved_bytes, host.shares.share("a").limit_bytes) == (MIB, 2 * MIB)
    assert host.shares.share("b").limit_bytes is None
    memory.close()
