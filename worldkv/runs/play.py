"""One rollout of a published model: its inputs read and checked first, then the model, then chunk by chunk.

Everything that a user can get wrong is refused before a weight is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from worldkv.camera import (
    ACTION_COLUMNS,
    LINGBOT_INTRINSICS,
    Trajectory,
    load_trajectory,
    to_key_columns,
    trajectory_from_notation,
)
from worldkv.dataset.video import EncoderOptions, encode
from worldkv.errors import CheckpointError, ConfigError, OutputError, TrajectoryError
from worldkv.memory.policy import MemoryPolicy, parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.models.checkpoint import sole_tensor
from worldkv.models.lingbot.camera import longest_step
from worldkv.models.published import Published, Size, named, open_model, random_model
from worldkv.models.ranks import ALONE, Ranks
from worldkv.models.wan.model import WanModel, geometry_of
from worldkv.models.wan.pictures import refuse_other_aspect
from worldkv.models.wan.shape import TextShape
from worldkv.rollout import ChunkRecord, rollout
from worldkv.runs.folder import write_whole
from worldkv.runs.memory import open_memory
from worldkv.runs.memory_check import Probe, check_places, check_room, check_windows, chunk_bytes
from worldkv.runs.play_config import PlayConfig, PlayedModel, PlayInputs
from worldkv.session import Session, open_session
from worldkv.writable import check_writable

KEY_FRAME_EVERY = 8
Progress = Callable[[str, int, int], None]
"""(what is in work, steps done, steps in all)."""


@dataclass(frozen=True)
class Inputs:
    """What a rollout starts from."""

    trajectory: Trajectory
    context: dict[str, Tensor]
    """As the model's `open` takes it."""


@dataclass(frozen=True)
class Prepared:
    """A rollout whose configuration and inputs are in order, before a weight is read."""

    published: Published
    policy: MemoryPolicy
    inputs: Inputs
    chunks: int
    """Of the whole trajectory."""
    stored_bytes: int
    """Of one chunk in memory, on one rank."""


@dataclass(frozen=True)
class Played:
    """What came of it."""

    chunks: int
    retrieved: int
    """Chunks brought back from memory, over the whole rollout."""
    seconds: float


def play(config: PlayConfig, *, progress: Progress, probe: Probe | None = None) -> Played:
    """Roll out the world and write its video. Raises a WorldKVError for whatever is wrong with the configuration."""
    if config.model.ranks > 1:
        raise ConfigError(f"model.ranks = {config.model.ranks}: this is one process; use worldkv rollout, or ranks = 1")
    check_video(config.video)
    prepared = prepare(config)
    check_memory(config, prepared, default_device(), probe or Probe())
    progress("loading the weights", 0, 1)
    model = load(config.model, default_device())
    started = time.perf_counter()
    records = _records(model, prepared, config, progress)
    seconds = time.perf_counter() - started
    write_video(config.video, [record.frames_FHWC for record in records], prepared.published)
    return Played(len(records), sum(len(record.retrieved) for record in records), seconds)


def prepare(config: PlayConfig) -> Prepared:
    """Read the inputs and check them and the policy. Raises ConfigError, CheckpointError, TrajectoryError."""
    published = named(config.model.name)
    policy = parse_policy(config.policy or published.policy)
    check_window(published, policy)
    settings = published.settings(config.model.size)
    whole = geometry_of(published.shape(config.model.size), settings)
    stored = chunk_bytes(replace(whole, heads=whole.heads // config.model.ranks), policy)
    check_windows(config.memory, policy, policy.retrieved_chunks * stored)
    inputs = read_inputs(published, config.model.size, config.inputs)
    chunks = len(inputs.trajectory) // (settings.chunk_latent_frames * WanModel.video_frames_per_latent)
    return Prepared(published, policy, inputs, chunks, stored)


def check_memory(config: PlayConfig, prepared: Prepared, device: torch.device, probe: Probe) -> None:
    """Raise ConfigError or OutputError where this process cannot have its memory."""
    stored = prepared.stored_bytes * prepared.chunks if prepared.policy.remembers else 0
    check_room(config.memory, device, stored, probe)
    check_places(config.memory, "video", config.video)


def write_video(video: Path, frames_FHWC: Sequence[NDArray[np.uint8]], published: Published) -> None:
    """The pictures of all chunks, in order, as the video. Raises OutputError."""
    whole: NDArray[np.uint8] = np.concatenate(frames_FHWC)
    try:
        video.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(f"{video}: cannot be written: {fault.strerror or fault}") from fault
    write_whole(video, encode(whole, published.video_fps, EncoderOptions(gop=KEY_FRAME_EVERY)))


def check_video(video: Path) -> None:
    """Raise OutputError where the video is there already, or cannot be written."""
    if video.exists():
        raise OutputError(f"{video}: already exists")
    try:
        check_writable(video.parent)
    except OSError as fault:
        raise OutputError(f"{video}: cannot be written: {fault.strerror or fault}") from fault


def _records(model: WanModel, prepared: Prepared, config: PlayConfig, progress: Progress) -> list[ChunkRecord]:
    records: list[ChunkRecord] = []
    with (
        closing(open_memory(config.memory, model)) as memory,
        closing(begin(model, memory, prepared, config)) as session,
    ):
        for (record,) in rollout(model, [session], levels=model.schedule):
            records.append(record)
            progress(model.name, len(records), session.chunks)
    return records


def begin(model: WanModel, memory: ChunkMemory, prepared: Prepared, config: PlayConfig) -> Session:
    """The session at the start of its trajectory."""
    return open_session(
        model,
        memory,
        prepared.policy,
        prepared.inputs.trajectory,
        seed=config.seed,
        tenant=config.memory.tenant,
        context=prepared.inputs.context,
    )


def default_device() -> torch.device:
    """A CUDA device where this process has one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def load(wanted: PlayedModel, device: torch.device, ranks: Ranks = ALONE) -> WanModel:
    """The model, or this rank's part of it. Raises as `open_model` does."""
    published = named(wanted.name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    where: dict[str, Any] = {"device": device, "dtype": dtype, "ranks": ranks}
    if wanted.folder is not None:
        return open_model(wanted.folder, published, quick_decoder=wanted.quick_decoder, **where)
    assert wanted.random_weights is not None, "the configuration was checked"
    return random_model(published, wanted.random_weights, size=wanted.size, **where)


def read_inputs(published: Published, size: Size, wanted: PlayInputs) -> Inputs:
    """Read and check what a rollout starts from.

    Raises CheckpointError for a picture or tensor that is not what the model takes, and TrajectoryError.
    """
    path = _trajectory(published, size, wanted.trajectory)
    picture = read_image(wanted.image)
    refuse_other_aspect(picture.shape[:2], published.settings(size).picture, str(wanted.image))
    name, tokens = _embeddings(published, size, wanted.embeddings)
    return Inputs(path, {name: tokens, "image": picture, "unit": torch.tensor(longest_step(path))})


def _trajectory(published: Published, size: Size, wanted: str) -> Trajectory:
    path = read_trajectory(wanted)
    per_chunk = published.settings(size).chunk_latent_frames * WanModel.video_frames_per_latent
    if len(path) < per_chunk:
        raise TrajectoryError(f"{path.name}: {len(path)} poses, but one chunk of {published.name} takes {per_chunk}")
    if published.vocabulary is not None:
        if path.actions is None:
            raise TrajectoryError(f"{path.name}: has only poses, and {published.name} is moved by actions")
        published.vocabulary.rows(to_key_columns(path.actions, ACTION_COLUMNS))
    return path


def _embeddings(published: Published, size: Size, file: Path) -> tuple[str, Tensor]:
    """The name by which the model takes them, and the tensor."""
    tokens, shape = sole_tensor(file), published.shape(size).context
    most = shape.tokens if isinstance(shape, TextShape) else None
    if tokens.ndim != 2 or tokens.shape[1] != shape.width or (most is not None and len(tokens) > most):
        raise CheckpointError(
            f"{file}: its tensor has shape {list(tokens.shape)}, {published.name} takes "
            f"[{'tokens' if most is None else f'1 to {most}'}, {shape.width}]"
        )
    return "image_tokens" if most is None else "prompt", tokens


def read_trajectory(trajectory: str) -> Trajectory:
    """Of a folder, else of a notation such as R_L90_96. Raises TrajectoryError."""
    if Path(trajectory).exists():
        return load_trajectory(trajectory)
    return trajectory_from_notation(trajectory, intrinsics=LINGBOT_INTRINSICS)


def read_image(path: Path) -> Tensor:
    """A picture [H, W, 3] uint8. Raises CheckpointError."""
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB")))
    except (OSError, UnidentifiedImageError) as fault:
        raise CheckpointError(f"{path}: not a readable picture: {fault}") from fault


def check_window(published: Published, policy: MemoryPolicy) -> None:
    """Raise ConfigError where the policy's window does not fit into the range of positions the model knows."""
    settings = published.settings()
    window = policy.window_latent_frames(settings.chunk_latent_frames)
    if policy.positions == "rebased" and window is not None and window > settings.trained_latent_frames:
        raise ConfigError(
            f"policy {policy.name}: its window is {window} latent frames, {published.name} knows "
            f"{settings.trained_latent_frames}: keep or retrieve fewer chunks of {settings.chunk_latent_frames}, "
            "or use positions=original"
        )
