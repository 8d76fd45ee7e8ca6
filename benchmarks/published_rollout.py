"""Rollouts of the published models at full size with random weights: time per chunk, memory, and where it ends.

    python benchmarks/published_rollout.py lingbot-world-fast --chunks 60 --result benchmarks/lingbot_h200_202611

Sizes, kernels, KV and traffic are those of the real weights; the pictures are noise. The camera turns to the right for
seven chunks and back again, so that memory has something to find. Policies run one after the other in one process,
each from an empty memory. A policy that needs more memory than the device has is recorded with the chunk at which it
ended.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import circumstances, markdown_table, save
from torch import Tensor

from worldkv.camera import LINGBOT_INTRINSICS, Action, Trajectory, integrate
from worldkv.camera.actions import WORLD_MODEL_MOTION
from worldkv.memory.policy import MemoryPolicy, parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.published import named, random_model
from worldkv.models.wan.model import WanModel
from worldkv.models.wan.shape import TextShape
from worldkv.rollout import StageSeconds, rollout
from worldkv.session import open_session

CHUNKS_ONE_WAY = 7
IMAGE_TOKENS = 257
MIB = 2**20


def turning(video_frames: int, chunk_frames: int) -> Trajectory:
    """To the right and back to the left, again and again."""
    way = CHUNKS_ONE_WAY * chunk_frames
    actions = tuple(islice(cycle([Action.R] * way + [Action.L] * way), video_frames))
    intrinsics = np.tile(LINGBOT_INTRINSICS, (video_frames, 1))
    return Trajectory(integrate(actions, WORLD_MODEL_MOTION), intrinsics, actions, "turning")


def context_of(model: WanModel) -> dict[str, Tensor]:
    """Prompt or image tokens and an image, all of noise."""
    draw = torch.Generator().manual_seed(0)
    shape = model.network.shape.context
    image = torch.randint(0, 256, (*model.settings.picture, 3), dtype=torch.uint8, generator=draw)
    if isinstance(shape, TextShape):
        return {"prompt": torch.randn(shape.tokens, shape.width, generator=draw), "image": image}
    return {"image_tokens": torch.randn(IMAGE_TOKENS, shape.width, generator=draw), "image": image}


def memory_of(model: WanModel, device_mib: int, host_mib: int) -> ChunkMemory:
    """A device tier and a host tier."""
    tiers = [
        ResidentTier("device", model.device, device_mib * MIB, verifies=False),
        ResidentTier("host", torch.device("cpu"), host_mib * MIB, verifies=True),
    ]
    return ChunkMemory(tiers, model.epoch)


def chunk_seconds(
    model: WanModel, policy: MemoryPolicy, memory: ChunkMemory, chunks: int, clock: StageSeconds
) -> Iterator[tuple[float, Any]]:
    """Seconds and record of each chunk, pictures on the host included."""
    frames = model.geometry.chunk_latent_frames * model.video_frames_per_latent
    trajectory = turning(chunks * frames, frames)
    session = open_session(model, memory, policy, trajectory, context=context_of(model))
    started = time.perf_counter()
    for (record,) in rollout(model, [session], levels=model.schedule, clock=clock):
        ended = time.perf_counter()
        yield ended - started, record
        started = ended
    session.close()


def measure(model: WanModel, policy: MemoryPolicy, options: argparse.Namespace) -> dict[str, Any]:
    """One policy's rollout."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(model.device)
    clock, seconds, windows, retrieved, ended = StageSeconds(), [], [], 0, None
    memory = memory_of(model, options.device_mib, options.host_mib)
    try:
        for taken, record in chunk_seconds(model, policy, memory, options.chunks, clock):
            seconds.append(taken)
            windows.append(record.window_tokens)
            retrieved += len(record.retrieved)
    except torch.OutOfMemoryError:
        ended = f"out of memory in chunk {len(seconds)}"
    settled = np.array(seconds[len(seconds) // 2 :] or [np.nan])
    return {
        "policy": policy.name,
        "chunks": len(seconds),
        "ended": ended,
        "chunk_ms_first_to_last": [round(1000 * one, 1) for one in seconds],
        "chunk_ms_median_of_second_half": round(1000 * float(np.median(settled)), 1) if seconds else None,
        "window_tokens_at_the_end": windows[-1] if windows else None,
        "chunks_retrieved": retrieved,
        "peak_device_gib": round(torch.cuda.max_memory_allocated(model.device) / 2**30, 2) if on_gpu else None,
        "stage_seconds": {stage: round(total, 2) for stage, total in clock.seconds.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    heads = ("policy", "chunks", "ms of the 2nd chunk", "ms per chunk, 2nd half", "window tokens", "peak GiB", "ended")
    lines = [
        [
            row["policy"],
            str(row["chunks"]),
            str(row["chunk_ms_first_to_last"][1] if row["chunks"] > 1 else "-"),
            str(row["chunk_ms_median_of_second_half"]),
            str(row["window_tokens_at_the_end"]),
            str(row["peak_device_gib"]),
            row["ended"] or "as asked",
        ]
        for row in rows
    ]
    return markdown_table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="As `worldkv models list` names it.")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--random-weights", type=int, default=0, metavar="SEED")
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--policies", help="None: the one that suits the model, and full.")
    parser.add_argument("--device-mib", type=int, default=16 * 1024)
    parser.add_argument("--host-mib", type=int, default=64 * 1024)
    parser.add_argument("--result", type=Path, required=True, help="Stem of the .md and .json to write.")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    published = named(options.model)
    model = random_model(published, options.random_weights, size=options.size, device=device, dtype=dtype)
    policies = (options.policies or f"{published.policy},full").split(",")
    rows = [measure(model, parse_policy(text), options) for text in policies]
    content = {"circumstances": circumstances(device), "model": options.model, "size": options.size, "rows": rows}
    save(options.result, f"Rollouts of {published.title}, {options.size} size, random weights", table(rows), content)
    print(table(rows))


if __name__ == "__main__":
    main()
