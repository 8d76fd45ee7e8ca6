"""The chunk memory of a run, as `memory_check` found that it can be had."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import torch

from worldkv.config import MemoryConfig, TierConfig
from worldkv.durations import Listener, nobody
from worldkv.errors import ConfigError
from worldkv.geometry import KVGeometry
from worldkv.memory.crossing import Crossing
from worldkv.memory.detail import Ladder, parse_detail
from worldkv.memory.eviction import EVICTION_POLICIES, Refetch
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tenants import Share, Shares
from worldkv.memory.tier import Tier
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.durable import open_durable_tier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.memory.tiers.slab import SlabTier
from worldkv.models.base import WorldModel
from worldkv.runs.memory_check import MIB, at_key

# Chunks read early at the same time. A window brings back a few; one that is slow must not hold up the next.
READERS = 4
# About as measured on two CPU cores (benchmarks/transfer_cpu_202611.md, disk_tier_cpu_202611.md): what eviction by cost
# has to know is only that a disk takes many times as long as memory.
REFETCH = {"host": Refetch(0.0, 7e9), "node": Refetch(2e-3, 7e9), "disk": Refetch(6e-4, 1e9)}


def open_memory(
    config: MemoryConfig,
    model: WorldModel,
    made: Mapping[str, Tier] | None = None,
    *,
    listener: Listener = nobody,
) -> ChunkMemory:
    """A memory that is empty but for what its tiers keep from an earlier process. Blocks for reading that.

    `made`: tiers by name that somebody else opened for this memory alone, such as `node`; it closes them with the rest.
    `listener`: see `ChunkMemory`.

    Raises ConfigError where a tier cannot be had, OutputError where its folder cannot be used, TransferError where
    what lies there cannot be read or removed; then nothing stays open.
    """
    with ExitStack() as opened:
        tiers: list[Tier] = []
        for place, tier in enumerate(config.tiers):
            with at_key(place, tier):
                tiers.append(made[tier.name] if made and tier.name in made else _open(tier, model.device))
            opened.callback(tiers[-1].close)
            if not tier.keeps:
                _empty(tiers[-1])
        mover = VerifyingMover(_link(tiers, model.device), readers=ThreadPoolExecutor(READERS, "worldkv-readers"))
        opened.callback(mover.close)
        rules = [_rules(config, tier, model.geometry) for tier in config.tiers]
        memory = ChunkMemory(tiers, model.epoch, rules, mover, listener)
        memory.adopt()
        opened.pop_all()
        return memory


def pin_faults(memory: ChunkMemory) -> list[str]:
    """Where host memory could not be pinned, or a GPU computes no digests: all serves the same, only slower."""
    faults = [tier.pin_fault for tier in memory.tiers if isinstance(tier, HostTier)]
    undigested = [tier.digest_fault for tier in memory.tiers if isinstance(tier, DeviceTier)]
    return [f"{fault}; the host computes them, which is slower" for fault in undigested if fault is not None] + [
        f"{fault}; copies to and from the rest are slower: lower its capacity_mib, or raise the limit on locked memory "
        f"(ulimit -l)"
        for fault in faults
        if fault is not None
    ]


def _open(config: TierConfig, device: torch.device) -> Tier:
    capacity_bytes = config.capacity_mib * MIB
    if config.name == "node":
        raise ConfigError("tier node: there is one only in a cluster; leave it out, or run in one")
    if config.folder is not None:
        return DiskTier.open(config.name, config.folder, capacity_bytes, keeps=config.keeps)
    if config.url is not None:
        return open_durable_tier(config.name, config.url, capacity_bytes)
    if device.type != "cuda":
        # Nothing has to be pinned or spared the driver's allocator: memory is taken as chunks come.
        return ResidentTier(config.name, device, capacity_bytes, verifies=config.name == "host")
    if config.name == "device":
        return DeviceTier.open(config.name, device, capacity_bytes)
    return HostTier.open(config.name, capacity_bytes)


def _link(tiers: Sequence[Tier], device: torch.device) -> Crossing | None:
    """Between the slabs of the device and of the host, where both are there."""
    slabs = [tier for tier in tiers if isinstance(tier, SlabTier)]
    return Crossing.open(device, *slabs) if len(slabs) == 2 else None


def _empty(tier: Tier) -> None:
    """What a run left that was killed would take other chunks' room, and so change what this one finds."""
    for chunk_id in list(tier.ids()):
        tier.remove(chunk_id)


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
        keeps_copies=tier.outlives_the_process,
        copies_at_once=tier.name == "node",
        keeps_released=tier.keeps,
    )
