"""A configuration as a worker elsewhere needs it: absolute paths, and tiers that are each worker's own."""

from __future__ import annotations

from pathlib import Path

from worldkv.config import MemoryConfig, RunConfig, TierConfig
from worldkv.memory.tiers.durable import folder_of
from worldkv.runs.play_config import PlayConfig


def absolute(config: RunConfig, base: Path) -> RunConfig:
    """The same run, whatever the current folder is."""
    model, way, output = config.model, config.trajectory, config.output
    weights = None if model.weights is None else base / model.weights
    folder = None if way.folder is None else base / way.folder
    return config.model_copy(
        update={
            "model": model.model_copy(update={"weights": weights}),
            "trajectory": way.model_copy(update={"folder": folder}),
            "memory": _absolute_memory(config.memory, base),
            "output": output.model_copy(update={"folder": base / output.folder}),
        }
    )


def absolute_play(config: PlayConfig, base: Path) -> PlayConfig:
    """The same of a published model's world."""
    model, inputs = config.model, config.inputs
    # A notation names no folder; what is one is told by its being there.
    way = base / inputs.trajectory
    embeddings = None if inputs.embeddings is None else base / inputs.embeddings
    places = {"image": base / inputs.image, "embeddings": embeddings}
    return config.model_copy(
        update={
            "model": model.model_copy(update={"folder": None if model.folder is None else base / model.folder}),
            "inputs": inputs.model_copy(update=places | ({"trajectory": str(way)} if way.exists() else {})),
            "memory": _absolute_memory(config.memory, base),
            "video": base / config.video,
        }
    )


def of_slot(memory: MemoryConfig, slot: int, kind: str = "worker") -> MemoryConfig:
    """The memory of one of several workers: places that belong to one process alone get the slot's name behind theirs.

    The first worker has them as they are configured, so that one worker is as one process.
    """
    tiers = tuple(_of_slot(tier, f"{kind}{slot}") for tier in memory.tiers)
    return memory.model_copy(update={"tiers": tiers}) if slot else memory


def _absolute_memory(memory: MemoryConfig, base: Path) -> MemoryConfig:
    return memory.model_copy(update={"tiers": tuple(_absolute_tier(tier, base) for tier in memory.tiers)})


def _absolute_tier(tier: TierConfig, base: Path) -> TierConfig:
    if tier.folder is not None:
        return tier.model_copy(update={"folder": base / tier.folder})
    if tier.url is not None and "://" not in tier.url and (local := folder_of(tier.url)) is not None:
        # fsspec made it absolute by this process' folder, which need not be the job's.
        return tier.model_copy(update={"url": str(base / tier.url if not Path(tier.url).is_absolute() else local)})
    return tier


def _of_slot(tier: TierConfig, whose: str) -> TierConfig:
    if tier.folder is not None:
        return tier.model_copy(update={"folder": tier.folder.with_name(f"{tier.folder.name}-{whose}")})
    if tier.url is not None:
        return tier.model_copy(update={"url": f"{tier.url.rstrip('/')}-{whose}"})
    return tier
