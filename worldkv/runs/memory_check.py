"""Whether the chunk memory of a configuration can be had here: found out before anything is allocated or written.

Every fault is one ConfigError or OutputError that names key, value and remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch

from worldkv.config import MemoryConfig, RunConfig, TierConfig
from worldkv.errors import ConfigError, OutputError
from worldkv.geometry import KVGeometry
from worldkv.memory.codec import CODECS
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.tiers import folder
from worldkv.memory.tiers.durable import check_durable_tier, folder_of
from worldkv.memory.tiers.headroom import Headroom, device_headroom, host_headroom
from worldkv.models.base import WorldModel

MIB, PAGE_BYTES = 2**20, 4096
# Of a stored chunk's header beside poses, digests and token ids: names, shapes, layout.
HEADER_BYTES = 1024


@dataclass(frozen=True)
class Probe:
    """How much memory there is to be had; a test may say something else."""

    host: Callable[[], Headroom | None] = host_headroom
    device: Callable[[torch.device], Headroom] = device_headroom


def check(
    config: RunConfig, model: WorldModel, policies: Sequence[MemoryPolicy], chunks: int, probe: Probe | None = None
) -> None:
    """Raise ConfigError or OutputError where a run of `chunks` chunks per rollout cannot have its memory."""
    memory, geometry = config.memory, model.geometry
    for policy in policies:
        check_windows(memory, policy, policy.retrieved_chunks * chunk_bytes(geometry, policy))
    stored = max(chunk_bytes(geometry, policy) if policy.remembers else 0 for policy in policies)
    check_room(memory, model.device, stored * chunks * config.batch_sessions, probe or Probe())
    check_places(memory, "output.folder", config.output.folder)


@contextmanager
def at_key(place: int, tier: TierConfig) -> Iterator[None]:
    """Put the configuration's key before what goes wrong with the tier."""
    key = "folder" if tier.folder is not None else "url" if tier.url is not None else "capacity_mib"
    try:
        yield
    except (ConfigError, OutputError) as fault:
        raise type(fault)(f"memory.tiers.{place}.{key} = {getattr(tier, key)}: {fault}") from fault


def chunk_bytes(geometry: KVGeometry, policy: MemoryPolicy) -> int:
    """Of one chunk as the policy stores it; in whole pages, as its file has them."""
    size, frames = geometry.tokens_per_latent_frame, geometry.chunk_latent_frames
    tokens, ids = frames * size, 0
    if policy.pruning is not None:
        tokens = size + (frames - 1) * policy.pruning.kept_per_frame(size)
        ids = 6 * tokens
    payload = CODECS[policy.codec].nbytes((geometry.layers, tokens, geometry.heads, geometry.head_dim))
    header = HEADER_BYTES + 64 * frames + 18 * geometry.layers + ids
    return sum(-(-nbytes // PAGE_BYTES) * PAGE_BYTES for nbytes in (header, payload))


def check_windows(memory: MemoryConfig, policy: MemoryPolicy, need: int) -> None:
    """What one window brings back has to fit into every tier, and into the tenant's part of it."""
    names = [tier.name for tier in memory.tiers]
    bounds = [(f"tiers.{place}.capacity_mib", tier.capacity_mib, tier.name) for place, tier in enumerate(memory.tiers)]
    bounds += [
        (f"shares.{place}.limit_mib", share.limit_mib, share.tier)
        for place, share in enumerate(memory.shares)
        if share.limit_mib is not None and share.tenant == memory.tenant
    ]
    for key, mib, name in sorted(bounds, key=lambda bound: names.index(bound[2])):
        if mib * MIB < need:
            raise ConfigError(
                f"memory.{key} = {mib}: too little in tier {name} for the {policy.retrieved_chunks} chunks that one "
                f"window of policy {policy.name} brings back; give it at least {-(-need // MIB)}, or leave it out"
            )


def check_room(memory: MemoryConfig, device: torch.device, stored_bytes: int, probe: Probe) -> None:
    """Slabs are taken whole; plain memory only as far as the `stored_bytes` of the run's chunks fill it."""
    slabs, left = device.type == "cuda", probe.host()
    for place, tier in enumerate(memory.tiers):
        if tier.outlives_the_process:
            continue
        capacity = tier.capacity_mib * MIB
        need = capacity if slabs else min(capacity, stored_bytes)
        on_device = slabs and tier.name == "device"
        room = probe.device(device) if on_device else left
        if room is not None and need > room.nbytes:
            where = f"memory of {device}" if on_device else "host memory"
            raise ConfigError(
                f"memory.tiers.{place}.capacity_mib = {tier.capacity_mib}: tier {tier.name} would take "
                f"{need // MIB} MiB of {where}, but only {room.nbytes // MIB} MiB can be had ({room.limit}); lower it "
                f"to at most that, leave the tier out, or raise the limit"
            )
        stored_bytes -= 0 if slabs else need
        if left is not None and not on_device:
            left = Headroom(left.nbytes - need, left.limit)


def check_places(memory: MemoryConfig, key: str, written: Path) -> None:
    """Every tier's place can be claimed, and is apart from the others and from what is `written` under `key`."""
    _check_apart(memory, key, written)
    for place, tier in enumerate(memory.tiers):
        with at_key(place, tier):
            if tier.folder is not None:
                folder.check(tier.folder, tier.name)
            if tier.url is not None and tier.name != "node":  # there it belongs to the whole cluster
                check_durable_tier(tier.name, tier.url)


def _check_apart(memory: MemoryConfig, key: str, written: Path) -> None:
    """What the run writes and the folders of tiers are each somebody's alone, with all that lies in them."""
    taken = {key: written}
    for place, tier in enumerate(memory.tiers):
        if tier.folder is not None:
            taken[f"memory.tiers.{place}.folder"] = tier.folder
        if tier.url is not None and (local := folder_of(tier.url)) is not None:
            taken[f"memory.tiers.{place}.url"] = local
    for (inner, path), (outer, other) in permutations(taken.items(), 2):
        if path.resolve().is_relative_to(other.resolve()):
            raise ConfigError(f"{inner} = {path}: lies in {outer} = {other}; name a folder outside it")
