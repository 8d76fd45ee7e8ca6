import pytest

from cluster.chunks.settings import MIB, ChunkSettings
from worldkv.config import load
from worldkv.errors import ConfigError


def settings_of(tiers: str, *more: str) -> ChunkSettings | None:
    return ChunkSettings.of(load(None, [f"memory.tiers=[{tiers}]", *more]).memory)


def test_settings_are_those_of_the_node_tier_and_its_shares():
    shares = "memory.shares=[{tenant: lab, tier: node, reserved_mib: 3, limit_mib: 9}, {tenant: lab, tier: device}]"
    node = "{name: node, capacity_mib: 64, copies: 2, url: 's3://b/w', url_capacity_mib: 100}"
    found = settings_of(f"{{name: device, capacity_mib: 8}}, {node}", "memory.tenant=lab", shares)
    assert (found.capacity_bytes, found.copies, found.url) == (64 * MIB, 2, "s3://b/w")
    assert found.url_capacity_bytes == 100 * MIB
    assert found.shares.share("lab").reserved_bytes == 3 * MIB
    assert found.shares.share("lab").limit_bytes == 9 * MIB
    plain = settings_of("{name: node, capacity_mib: 64}")
    assert (plain.copies, plain.url, plain.url_capacity_bytes) == (1, None, 0)
    assert settings_of("{name: device, capacity_mib: 8}") is None


def test_a_capacity_that_would_make_ray_spill_is_refused_with_the_remedy():
    settings = ChunkSettings(81 * MIB)
    settings.check_fits("n", 102 * MIB)
    with pytest.raises(ConfigError, match=r"capacity_mib = 81: of the 100 MiB .* node n at most 80 .* start Ray with"):
        settings.check_fits("n", 100 * MIB)
