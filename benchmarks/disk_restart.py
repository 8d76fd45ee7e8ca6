"""The disk tier against plain files of the same bytes, and a restart over many chunks.

    python benchmarks/disk_restart.py --folder /mnt/nvme/scratch --json rows.json

Three rounds on fresh files; baseline and tier take turns chunk by chunk, so that both meet the same neighbours:

- put: the tier's put; its baseline writes header and payload to a new file and calls fsync.
- get: the tier's get; its baseline reads the whole file into memory that is new, as the tier's is. Once with the
  file dropped from the page cache, which is what a disk is asked for, and once from the page cache.
- restart: `DiskTier.open` and `ChunkMemory.adopt` over int4 chunks of the rooms model: with all in the kernel's cache,
  with the files dropped from it and, with --drop-caches, with the folders' entries dropped too; that slows whatever
  else runs on the machine, and needs root.
- direct: reads past the page cache (`direct_reads`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import direct_reads
import numpy as np
import torch
from recording import circumstances

from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.disk import DiskTier

ROUNDS = 3
CHUNKS = 16
RESTART_CHUNKS = 10_000
# [L, T, H, D] of a chunk of the rooms model.
ROOMS_SHAPE = (10, 192, 5, 64)
# bfloat16 [L, T, H, D]; 4, 16 and 48 MiB of keys and values.
SHAPES = {4: (8, 256, 8, 64), 16: (16, 512, 8, 64), 48: (24, 1024, 8, 64)}


def chunks_of(shape: tuple[int, int, int, int], count: int, codec: str = "bf16") -> list[KVChunk]:
    """So many chunks of random content."""
    generator = torch.Generator().manual_seed(0)
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    made = []
    for index in range(count):
        kv = torch.randn(2, *shape, generator=generator).bfloat16()
        encoded = CODECS[codec].encode(*kv)
        made.append(make_chunk(tenant="bench", epoch="none", index=index, c2w_F44=poses, encoded=encoded))
    return made


def seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def write_plain(path: Path, chunk: KVChunk) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in chunk.pieces():
            file.write(piece)
        os.fsync(file.fileno())


def read_plain(path: Path) -> None:
    out = torch.empty(path.stat().st_size, dtype=torch.uint8)
    with path.open("rb", buffering=0) as file:
        file.readinto(out.numpy().data)


def forget(paths: list[Path]) -> None:
    """Drop the files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_turn(acts: dict[str, Callable[[int], object]], count: int) -> dict[str, float]:
    """Seconds of each act over all chunks; who begins changes with each chunk."""
    taken = dict.fromkeys(acts, 0.0)
    for index in range(count):
        for name in sorted(acts, reverse=bool(index % 2)):
            taken[name] += seconds(lambda name=name, index=index: acts[name](index))
    return taken


def one_round(folder: Path, chunks: list[KVChunk]) -> dict[str, float]:
    """Seconds of each path over all chunks."""
    plain = folder / "plain"
    plain.mkdir()
    files = [plain / chunk.id for chunk in chunks]
    tier = DiskTier.open("bench", folder / "tier", 2**40)
    puts = {"plain put": lambda i: write_plain(files[i], chunks[i]), "tier put": lambda i: tier.put(chunks[i])}
    taken = in_turn(puts, len(chunks))
    for state in ("disk", "cache"):
        if state == "disk":
            forget([*files, *(folder / "tier").glob("??/*.wkv")])
        gets = {
            f"plain get, {state}": lambda i: read_plain(files[i]),
            f"tier get, {state}": lambda i: tier.get(chunks[i].id),
        }
        taken |= in_turn(gets, len(chunks))
    taken["verify"] = seconds(lambda: [chunk.verify() for chunk in chunks])
    tier.close()
    shutil.rmtree(folder / "tier")
    shutil.rmtree(plain)
    return taken


def rates(folder: Path, mebibytes: int) -> dict[str, object]:
    """GB/s of each path, the median of the rounds, and the tier's share of its baseline in the same round."""
    chunks = chunks_of(SHAPES[mebibytes], CHUNKS)
    gigabytes = sum(chunk.nbytes for chunk in chunks) / 1e9
    rounds = [one_round(folder, chunks) for _ in range(ROUNDS)]
    row: dict[str, object] = {"chunk_mebibytes": mebibytes, "chunks": CHUNKS, "rounds": ROUNDS}
    for path in rounds[0]:
        row[f"{path} GB/s"] = [round(gigabytes / taken[path], 3) for taken in rounds]
    for verb in ("put", "get, disk", "get, cache"):
        shares = [taken[f"plain {verb}"] / taken[f"tier {verb}"] for taken in rounds]
        row[f"{verb}: tier/plain"] = [round(share, 3) for share in shares]
        print(f"{mebibytes:3} MiB  {verb:11} tier/plain median {statistics.median(shares):.2f}", flush=True)
    return row


def drop_kernel_caches() -> None:
    """Those of the whole machine, for names cannot be dropped one by one."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def restart(folder: Path, states: list[str]) -> dict[str, object]:
    """Seconds to fill a tier with chunks of the rooms model, and to open and take it up again in a new memory."""
    (template,) = chunks_of(ROOMS_SHAPE, 1, "int4")
    tier = DiskTier.open("bench", folder / "rooms", 2**40)

    def fill() -> None:
        for index in range(RESTART_CHUNKS):
            tier.put(
                make_chunk(
                    tenant="bench", epoch="none", index=index, c2w_F44=template.c2w_F44, encoded=template.encoded
                )
            )

    filled = seconds(fill)
    tier.close()
    files = list((folder / "rooms").glob("??/*.wkv"))
    taken: dict[str, dict[str, list[float]]] = {state: {"open": [], "adopt": [], "both": []} for state in states}
    for _ in range(ROUNDS):
        for state in states:
            if state == "cold":
                drop_kernel_caches()
            elif state == "files not cached":
                forget(files)
            started = time.perf_counter()
            memory = ChunkMemory([DiskTier.open("bench", folder / "rooms", 2**40)], "none")
            opened = time.perf_counter()
            assert memory.adopt() == RESTART_CHUNKS
            ended = time.perf_counter()
            for part, spent in (("open", opened - started), ("adopt", ended - opened), ("both", ended - started)):
                taken[state][part].append(round(spent, 3))
            assert memory.fetch([template.id], tenant="bench")[0] is not None
            memory.close()
    shutil.rmtree(folder / "rooms")
    print(f"restart over {RESTART_CHUNKS} chunks: {taken}", flush=True)
    return {
        "chunks": RESTART_CHUNKS,
        "chunk_bytes": template.header.total_bytes,
        "put_seconds_each": round(filled / RESTART_CHUNKS, 6),
        "seconds": taken,
    }


def main() -> None:
    """Measure, print one line per result, and write all figures."""
    words = argparse.ArgumentParser(description="Rates of the disk tier, and its restart.")
    words.add_argument("--folder", type=Path, help="where to write; a new folder is made in it, and removed")
    words.add_argument("--json", type=Path, help="file for all figures")
    words.add_argument("--drop-caches", action="store_true", help="restart without the kernel's cache too")
    given = words.parse_args()
    states = ["cached", "files not cached"] + ["cold"] * given.drop_caches
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        rows = {
            "rates": [rates(folder, mebibytes) for mebibytes in SHAPES],
            "restart": restart(folder, states),
            "direct": direct_reads.measure(folder),
            "circumstances": circumstances(torch.device("cpu")),
        }
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
