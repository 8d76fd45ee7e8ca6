"""When a batch may go on from a checkpoint: only where that gives the bytes that an undisturbed batch gives.

A snapshot holds every chunk, but not in which tier it lay nor whose turn to leave came next. Where room can run out,
that decides what is found later, so there a batch starts again at its first chunk; that is always exact.
"""

from __future__ import annotations

from worldkv.config import MemoryConfig
from worldkv.geometry import KVGeometry
from worldkv.memory.policy import MemoryPolicy
from worldkv.runs.memory_check import MIB, chunk_bytes


def is_exact(memory: MemoryConfig, geometry: KVGeometry, policy: MemoryPolicy, chunks: int) -> bool:
    """Whether `chunks` chunks, of all sessions together, can neither be dropped nor lose detail under the policy."""
    if not policy.remembers:
        return True
    if any(tier.name == "node" for tier in memory.tiers):
        return False  # others use its room too
    need = chunk_bytes(geometry, policy) * chunks
    last = memory.tiers[-1]
    rooms = [tier.capacity_mib * MIB * tier.low_watermark_ratio for tier in memory.tiers if tier.detail or tier is last]
    limits = [
        share.limit_mib * MIB
        for share in memory.shares
        if share.limit_mib is not None and share.tenant == memory.tenant and share.tier == last.name
    ]
    return need <= min(*rooms, *limits, float("inf"))
