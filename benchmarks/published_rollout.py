"""Rollouts of the published models at full size with random weights: time per chunk, memory, and where it ends.

    python benchmarks/published_rollout.py lingbot-world-fast --result benchmarks/lingbot_h200_202611

Sizes, kernels, KV and traffic are those of the real weights; the pictures are noise. The camera turns to the right for
seven chunks and back again, so that memory has something to find. Policies run one after the other in one process,
each from an empty memory over a device and a pinned host tier. One that keeps everything gets more chunks than the
others, so that it comes to the end of the device's memory, and is recorded with the chunk at which it ended. A line
is printed for each chunk; the result files are written anew every few seconds, so a run that is cut off leaves what
it has measured. Stages are told by the host's clock: on a GPU, what is still queued is counted to a later stage.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import circumstances, markdown_table, save
from torch import Tensor

from worldkv.camera import LINGBOT_INTRINSICS, Action, Trajectory, integrate
from worldkv.camera.actions import WORLD_MODEL_MOTION
from worldkv.memory.crossing import Crossing
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.policy import MemoryPolicy, parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.published import named, random_model
from worldkv.models.wan.model import WanModel
from worldkv.models.wan.shape import TextShape
from worldkv.rollout import ChunkRecord, StageSeconds, rollout
from worldkv.session import open_session

CHUNKS_ONE_WAY = 7
CHUNKS_TO_THE_END = 400
"""Of a policy that keeps everything, at full size: more than any device has memory for."""
IMAGE_TOKENS = 257
READERS = 4
SAVE_EVERY_SECONDS = 5.0
MIB, GIB = 2**20, 2**30


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


def memory_of(model: WanModel, device_mib: int, host_mib: int, opened: ExitStack) -> ChunkMemory:
    """A device tier and a host tier behind it, with a link between them where there is a GPU; `opened` closes them."""
    if model.device.type != "cuda":
        plain = (("device", device_mib), ("host", host_mib))
        return ChunkMemory([ResidentTier(name, model.device, mib * MIB) for name, mib in plain], model.epoch)
    device = opened.enter_context(closing(DeviceTier.open("device", model.device, device_mib * MIB)))
    # Not asked for headroom: the memory of some virtual machines grows as it is touched.
    host = opened.enter_context(closing(HostTier.open("host", host_mib * MIB, headroom=lambda: None)))
    mover = VerifyingMover(Crossing.open(model.device, device, host), readers=ThreadPoolExecutor(READERS))
    opened.callback(mover.close)
    return ChunkMemory([device, host], model.epoch, mover=mover)


def chunk_seconds(
    model: WanModel, policy: MemoryPolicy, memory: ChunkMemory, chunks: int, clock: StageSeconds
) -> Iterator[tuple[float, ChunkRecord]]:
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


def measure(
    model: WanModel,
    policy: MemoryPolicy,
    options: argparse.Namespace,
    *,
    chunks: int | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """One policy's rollout; `tell` is handed the row as it stands after each chunk."""
    freed(model.device)
    clock, told, ended, row = StageSeconds(), [], None, {}
    with ExitStack() as opened:
        room = (options.device_mib, options.host_mib) if policy.remembers else (1, 1)
        memory = memory_of(model, *room, opened)
        try:
            for one in chunk_seconds(model, policy, memory, chunks or options.chunks, clock):
                told.append((one[0], one[1].window_tokens, len(one[1].retrieved), one[1].missed))
                row = row_of(model, policy, told, clock)
                tell(row)
        except torch.OutOfMemoryError as fault:
            ended = f"out of memory in chunk {len(told)}: {str(fault).partition('. GPU')[0]}"
    return (row or row_of(model, policy, told, clock)) | {"ended": ended}


def row_of(
    model: WanModel, policy: MemoryPolicy, told: list[tuple[float, int, int, int]], clock: StageSeconds
) -> dict[str, Any]:
    """What is known after some chunks, of (seconds, window tokens, chunks retrieved, chunks missed) each."""
    milliseconds = [round(1000 * seconds, 1) for seconds, *_ in told]
    on_gpu = model.device.type == "cuda"
    return {
        "policy": policy.name,
        "chunks": len(told),
        "ended": f"cut off after chunk {len(told) - 1}",
        "chunk_ms_first_to_last": milliseconds,
        "chunk_ms_median_of_second_half": median(milliseconds[len(told) // 2 :]),
        "chunk_ms_median_of_third_quarter": median(milliseconds[len(told) // 2 : 3 * len(told) // 4]),
        "chunk_ms_median_of_fourth_quarter": median(milliseconds[3 * len(told) // 4 :]),
        "window_tokens_at_the_end": told[-1][1] if told else None,
        "chunks_retrieved": sum(retrieved for *_, retrieved, _ in told),
        "chunks_missed": sum(missed for *_, missed in told),
        "peak_device_gib": round(torch.cuda.max_memory_allocated(model.device) / GIB, 2) if on_gpu else None,
        "reserved_device_gib": round(torch.cuda.max_memory_reserved(model.device) / GIB, 2) if on_gpu else None,
        "stage_seconds": {stage: round(total, 2) for stage, total in clock.seconds.items()},
    }


def median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 1) if values else None


def freed(device: torch.device) -> None:
    """What is not referred to any more is given back to the device, and its peak is forgotten."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def on_paper(model: WanModel, policy: MemoryPolicy, options: argparse.Namespace) -> str:
    """GiB of the device that weights, window and memory will take, computed from shapes."""
    g = model.geometry
    networks = (model.network, model.pictures.vae) if model.pictures else (model.network,)
    weights = sum(parameter.nbytes for network in networks for parameter in network.parameters()) / GIB
    chunk = g.kv_bytes(g.tokens_per_chunk, model.kv_dtype) / GIB
    frames = policy.window_latent_frames(g.chunk_latent_frames)
    if frames is None:
        return f"weights {weights:.1f} GiB; KV of {options.chunks} chunks {options.chunks * chunk:.1f} GiB, kept once"
    tier = options.device_mib * MIB / GIB if policy.remembers else 0.0
    live = (policy.sink_chunks + (policy.recent_chunks or 0) + 1) * chunk
    window = frames / g.chunk_latent_frames * chunk
    return (
        f"weights {weights:.1f}, tier {tier:.1f}, window {window:.1f}, live chunks {live:.1f}: "
        f"{weights + tier + window + live:.1f} GiB, and what the passes need"
    )


def line_of(row: dict[str, Any], chunks: int) -> str:
    peak = "" if row["peak_device_gib"] is None else f" | peak {row['peak_device_gib']:.1f} GiB"
    return (
        f"{row['policy']}: chunk {row['chunks']:4d}/{chunks} | {row['chunk_ms_first_to_last'][-1]:8.1f} ms | "
        f"window {row['window_tokens_at_the_end']} tokens | retrieved {row['chunks_retrieved']} in all{peak}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "policy",
        "chunks",
        "ms of the 2nd chunk",
        "ms per chunk, 3rd quarter",
        "4th quarter",
        "window tokens",
        "retrieved",
        "peak GiB",
        "ended",
    )
    lines = [
        [
            row["policy"],
            str(row["chunks"]),
            str(row["chunk_ms_first_to_last"][1] if row["chunks"] > 1 else "-"),
            str(row["chunk_ms_median_of_third_quarter"]),
            str(row["chunk_ms_median_of_fourth_quarter"]),
            str(row["window_tokens_at_the_end"]),
            str(row["chunks_retrieved"]),
            str(row["peak_device_gib"]),
            row["ended"] or "as asked",
        ]
        for row in rows
    ]
    return markdown_table(heads, lines)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="As `worldkv models list` names it.")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--random-weights", type=int, default=0, metavar="SEED")
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument(
        "--chunks-of-full", type=int, help="Of a policy that keeps all; none: 400, at tiny size --chunks."
    )
    parser.add_argument("--policies", help="None: the one that suits the model, and full.")
    parser.add_argument("--device-mib", type=int, default=16 * 1024)
    parser.add_argument("--host-mib", type=int, default=64 * 1024)
    parser.add_argument("--result", type=Path, required=True, help="Stem of the .md and .json to write.")
    options = parser.parse_args()
    if options.chunks_of_full is None:
        options.chunks_of_full = options.chunks if options.size == "tiny" else CHUNKS_TO_THE_END
    return options


def main() -> None:
    options = read_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    published = named(options.model)
    started = saved = time.perf_counter()
    model = random_model(published, options.random_weights, size=options.size, device=device, dtype=dtype)
    print(f"{published.title}: random weights in {time.perf_counter() - started:.1f} s", flush=True)
    rows: list[dict[str, Any]] = []

    def write() -> None:
        content = {"circumstances": circumstances(device), "model": options.model, "size": options.size, "rows": rows}
        title = f"Rollouts of {published.title}, {options.size} size, random weights"
        save(options.result, title, table(rows), content)

    for text in (options.policies or f"{published.policy},full").split(","):
        policy = parse_policy(text)
        chunks = options.chunks_of_full if policy.recent_chunks is None else options.chunks
        print(f"{text}: on paper {on_paper(model, policy, options)}", flush=True)
        rows.append({})

        def tell(row: dict[str, Any], chunks: int = chunks) -> None:
            nonlocal saved
            rows[-1] = row
            print(line_of(row, chunks), flush=True)
            if time.perf_counter() - saved > SAVE_EVERY_SECONDS:
                write()
                saved = time.perf_counter()

        rows[-1] = measure(model, policy, options, chunks=chunks, tell=tell)
        write()
    print(f"{table(rows)}\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
