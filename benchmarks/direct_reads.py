"""Reading chunk files past the page cache (O_DIRECT) against reading them through it, as the disk tier does.

Files of random bytes, each read once per round after it was dropped from the page cache; the ways take turns file by
file, so that all meet the same neighbours. Every way reads into memory that is new, as the tier's is.
"""

import mmap
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from worldkv.memory.format import READ_BYTES, pread_into

SIZES_MEBIBYTES = (2, 4, 8)
FILES = 16
ROUNDS = 5
MIB = 2**20
AT_ONCE = 4
READERS = ThreadPoolExecutor(AT_ONCE)


def through_the_cache(path: Path, size: int, step: int) -> None:
    """The tier's way: told that the whole file will be read, in runs of `step`."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    _read(descriptor, torch.empty(size, dtype=torch.uint8).numpy().data, step)


def past_the_cache(path: Path, size: int, step: int) -> None:
    """O_DIRECT into whole pages."""
    _read(os.open(path, os.O_RDONLY | os.O_DIRECT), memoryview(mmap.mmap(-1, size)), step)


def past_the_cache_at_once(path: Path, size: int) -> None:
    """O_DIRECT into whole pages, a few parts of the file at the same time."""
    descriptor, out = os.open(path, os.O_RDONLY | os.O_DIRECT), memoryview(mmap.mmap(-1, size))
    part = size // AT_ONCE
    starts = range(0, size, part)
    assert all(READERS.map(lambda start: pread_into(descriptor, start, out[start : start + part]), starts))
    os.close(descriptor)


def _read(descriptor: int, out: memoryview, step: int) -> None:
    for start in range(0, len(out), step):
        assert pread_into(descriptor, start, out[start : start + step])
    os.close(descriptor)


WAYS: dict[str, Callable[[Path, int], None]] = {
    "through the cache, runs of 1 MiB": lambda path, size: through_the_cache(path, size, READ_BYTES),
    "through the cache, whole": lambda path, size: through_the_cache(path, size, size),
    "direct, runs of 1 MiB": lambda path, size: past_the_cache(path, size, READ_BYTES),
    "direct, whole": lambda path, size: past_the_cache(path, size, size),
    f"direct, {AT_ONCE} parts at once": past_the_cache_at_once,
}


def one_round(paths: list[Path], size: int) -> dict[str, float]:
    """Seconds of each way over all files; who begins changes with each file."""
    taken = dict.fromkeys(WAYS, 0.0)
    for place, path in enumerate(paths):
        names = list(WAYS)[place % len(WAYS) :] + list(WAYS)[: place % len(WAYS)]
        for name in names:
            forget(path)
            started = time.perf_counter()
            WAYS[name](path, size)
            taken[name] += time.perf_counter() - started
    return taken


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path) -> list[dict[str, object]]:
    """GB/s of each way and size, one figure for each round."""
    rows: list[dict[str, object]] = []
    for mebibytes in SIZES_MEBIBYTES:
        size, paths = mebibytes * MIB, [folder / f"direct-{mebibytes}-{i}" for i in range(FILES)]
        for path in paths:
            path.write_bytes(os.urandom(size))
        os.sync()
        rounds = [one_round(paths, size) for _ in range(ROUNDS)]
        rates = {way: [round(FILES * size / 1e9 / taken[way], 3) for taken in rounds] for way in WAYS}
        for way, found in rates.items():
            print(f"{mebibytes:3} MiB  {way:34} median {statistics.median(found):.2f} GB/s", flush=True)
        rows.append({"file_mebibytes": mebibytes, "files": FILES, "rounds": ROUNDS, "GB/s": rates})
        for path in paths:
            path.unlink()
    return rows
