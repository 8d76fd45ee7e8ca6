"""A configuration as a worker elsewhere needs it: absolute paths, and tiers that are each worker's own."""

from __future__ import annotations

from pathlib import Path

from worldkv.config import MemoryConfig, RunConfig, TierConfig
from worldkv.memory.tiers.durable import folder_of


def absolute(config: RunConfig, base: Path) -> RunConfig:
    """The same run, whatever the current folder is."""
    model, way, output = config.model, config.trajectory, config.output
    memory = config.memory.model_copy(update={"tiers": tuple(_absolute_tier(t, base) for t in config.memory.tiers)})
    weights = None if model.weights is None else base / model.weights
    folder = None if way.folder is None else base / way.folder
    return config.model_copy(
        update={
            "model": model.model_copy(update={"weights": weights}),
            "trajectory": way.model_copy(update={"folder": folder}),
            "memory": memory,
            "output": output.model_copy(update={"folder": base / output.folder}),
        }
    )


def of_slot(memory: MemoryConfig, slot: int) -> MemoryConfig:
    """The memory of one of several workers: places that belong to one process alone get the slot's name behind theirs.

    The first worker has them as they are configured, so that one worker is as one process.
    """
    return memory.model_copy(update={"tiers": tuple(_of_slot(tier, slot) for tier in memory.tiers)}) if slot else memory


def _absolute_tier(tier: TierConfig, base: Path) -> TierConfig:
    if tier.folder is not None:
        return tier.model_copy(update={"folder": base / tier.folder})
    if tier.url is not None and "://" not in tier.url and (local := folder_of(tier.url)) is not None:
        # fsspec made it absolute by this process' folder, which need not be the job's.
        return tier.model_copy(update={"url": str(base / tier.url if not Path(tier.url).is_absolute() else local)})
    return tier


def _of_slot(tier: TierConfig, slot: int) -> TierConfig:
    if tier.folder is not None:
        return tier.model_copy(update={"folder": tier.folder.with_name(f"{tier.folder.name}-worker{slot}")})
    if tier.url is not None:
        return tier.model_copy(update={"url": f"{tier.url.rstrip('/')}-worker{slot}"})
    return tier
