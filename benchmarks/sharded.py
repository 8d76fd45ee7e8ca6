"""One session in one process, and the same over all ranks of a torchrun: time per chunk, weights and memory per rank.

    torchrun --nproc-per-node 2 benchmarks/sharded.py lingbot-world-fast --result benchmarks/sharded_h100_202611
    torchrun --nproc-per-node 2 benchmarks/sharded.py matrix-game-2-universal --size tiny --chunks 4

Random weights: sizes, kernels, KV and traffic between ranks are those of the real ones. NCCL between GPUs, gloo between
CPUs, where one process has all cores and each rank its share of them. Rank 0 measures alone first, while the others
wait; then all together. Without torchrun there is nothing to compare with. Pictures are made on every rank and are
part of the time. Stages are told by the host's clock: on a GPU, what is still queued is counted to a later stage.
"""

from __future__ import annotations

import argparse
import gc
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from published_rollout import measure
from recording import circumstances, markdown_table, save

from cluster.sharding import Seat, join, leave
from worldkv.memory.policy import parse_policy
from worldkv.models.published import named, random_model
from worldkv.models.ranks import ALONE, Ranks

PATIENCE_SECONDS = 1800.0
"""How long ranks wait for rank 0, which measures alone."""


def row_of(options: argparse.Namespace, device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """What one rank measures; the model is gone afterwards."""
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.size))
    published, dtype = named(options.model), torch.bfloat16 if device.type == "cuda" else torch.float32
    load = partial(random_model, published, options.random_weights, size=options.size, device=device, dtype=dtype)
    model = load(ranks=ranks)
    weights = [parameter.nbytes for parameter in model.network.parameters()]
    row = measure(model, parse_policy(options.policy or published.policy), options)
    frames = model.geometry.chunk_latent_frames * model.video_frames_per_latent
    milliseconds = row["chunk_ms_median_of_second_half"]
    return row | {
        "ranks": ranks.size,
        "weights_gib_per_rank": round(sum(weights) / 2**30, 4),
        "live_kv_gib_per_rank": round(model.geometry.kv_bytes(row["window_tokens_at_the_end"] or 0, dtype) / 2**30, 4),
        "frames_per_second": round(1000 * frames / milliseconds, 2) if milliseconds else None,
    }


def freed(device: torch.device) -> None:
    """What is not referred to any more, given back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "ranks",
        "ms per chunk, 2nd half",
        "frames/s",
        "speed",
        "window tokens",
        "weights GiB",
        "KV GiB",
        "peak GiB",
    )
    alone = next((row["frames_per_second"] for row in rows if row["ranks"] == 1), None)
    lines = [
        [
            str(row["ranks"]),
            str(row["chunk_ms_median_of_second_half"]),
            str(row["frames_per_second"]),
            f"{row['frames_per_second'] / alone:.2f}" if alone and row["frames_per_second"] else "-",
            str(row["window_tokens_at_the_end"]),
            str(row["weights_gib_per_rank"]),
            str(row["live_kv_gib_per_rank"]),
            str(row["peak_device_gib"]) + (f", {row['ended']}" if row["ended"] else ""),
        ]
        for row in rows
    ]
    return markdown_table(heads, lines)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="As `worldkv models list` names it.")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--random-weights", type=int, default=0, metavar="SEED")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--policy", help="None: the one that suits the model.")
    parser.add_argument("--device-mib", type=int, default=8 * 1024, help="Of stored chunks, per rank.")
    parser.add_argument("--host-mib", type=int, default=32 * 1024, help="Likewise.")
    parser.add_argument("--not-alone", action="store_true", help="Leave out the one process that holds it all.")
    parser.add_argument("--result", type=Path, help="Stem of the .md and .json to write.")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    ranks: Ranks = join(Seat(rank, size, "env://", PATIENCE_SECONDS), device) if size > 1 else ALONE
    rows = []
    try:
        if rank == 0 and not (options.not_alone and size > 1):
            rows.append(row_of(options, device, ALONE))
            freed(device)
        if size > 1:
            ranks.gather(torch.zeros(1, device=device), 0)  # the others wait here
            rows.append(row_of(options, device, ranks))
    finally:
        leave()
    if rank > 0:
        return
    content = {"circumstances": circumstances(device), "model": options.model, "size": options.size, "rows": rows}
    if options.result is not None:
        title = f"One session of {named(options.model).title} over ranks, {options.size} size, random weights"
        save(options.result, title, table(rows), content)
    print(table(rows))


if __name__ == "__main__":
    main()
