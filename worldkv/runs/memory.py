"""The chunk memory that a configuration asks for: checked first, allocated afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from worldkv.config import MemoryConfig, TierConfig
from worldkv.errors import ConfigError
from worldkv.geometry import KVGeometry
from worldkv.memory.codec import CODECS
from worldkv.memory.detail import Ladder, parse_detail
from worldkv.memory.eviction import EVICTION_POLICIES, Refetch
from worldkv.memory.placement import TierRules
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tenants import Share, Shares
from worldkv.memory.tier import Tier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.base import WorldModel

MIB = 2**20
# About as measured on two CPU cores (benchmarks/transfer_cpu_202611.md, disk_tier_cpu_202611.md): what eviction by cost
# has to know is only that a disk takes many times as long as memory.
REFETCH = {"host": Refetch(0.0, 7e9), "disk": Refetch(6e-4, 1e9)}


def check(config: MemoryConfig, geometry: KVGeometry, policies: Sequence[MemoryPolicy]) -> None:
    """Raise ConfigError where a tier could not hold what one window of a policy brings back. Allocates nothing."""
    for policy in policies:
        need = policy.retrieved_chunks * _chunk_bytes(geometry, policy)
        for place, tier in enumerate(config.tiers):
            if tier.capacity_mib * MIB < need:
                raise ConfigError(
                    f"memory.tiers.{place}.capacity_mib = {tier.capacity_mib}: tier {tier.name} is smaller than the "
                    f"{policy.retrieved_chunks} chunks that one window of policy {policy.name} brings back; "
                    f"give it at least {-(-need // MIB)}, or leave it out"
                )


def open_memory(config: MemoryConfig, model: WorldModel) -> ChunkMemory:
    """An empty memory, but for chunks that a tier on disk holds from an earlier process.

    Raises ConfigError, OutputError or TransferError where the disk's folder cannot be used.
    """
    tiers = [_tier(tier, model) for tier in config.tiers]
    memory = ChunkMemory(tiers, model.epoch, [_rules(config, tier, model.geometry) for tier in config.tiers])
    memory.adopt()
    return memory


def _tier(config: TierConfig, model: WorldModel) -> Tier:
    capacity_bytes = config.capacity_mib * MIB
    if config.name == "disk":
        assert config.folder is not None, "the configuration was checked"
        return DiskTier.open(config.name, config.folder, capacity_bytes)
    device = model.device if config.name == "device" else torch.device("cpu")
    # What comes back from host memory is on its way to a device: a checksum is small beside the copy.
    return ResidentTier(config.name, device, capacity_bytes, verifies=config.name == "host")


def _rules(config: MemoryConfig, tier: TierConfig, geometry: KVGeometry) -> TierRules:
    shares = {
        share.tenant: Share(share.reserved_mib * MIB, None if share.limit_mib is None else share.limit_mib * MIB)
        for share in config.shares
        if share.tier == tier.name
    }
    return TierRules(
        eviction=EVICTION_POLICIES[tier.eviction](),
        high_ratio=tier.high_watermark_ratio,
        low_ratio=tier.low_watermark_ratio,
        ladder=Ladder(tuple(map(parse_detail, tier.detail)), geometry.rows, geometry.columns),
        shares=Shares(shares),
        refetch=REFETCH.get(tier.name, Refetch(0.0, math.inf)),
        keeps_copies=tier.name == "disk",
    )


def _chunk_bytes(geometry: KVGeometry, policy: MemoryPolicy) -> int:
    """Of one stored chunk, without its poses."""
    size, tokens = geometry.tokens_per_latent_frame, geometry.tokens_per_chunk
    if policy.pruning is not None:
        tokens = size + (geometry.chunk_latent_frames - 1) * policy.pruning.kept_per_frame(size)
    return CODECS[policy.codec].nbytes((geometry.layers, tokens, geometry.heads, geometry.head_dim))
