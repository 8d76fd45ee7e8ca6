"""What benchmarks of the link between host and device share: turns, rows, and plain copies as the baseline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch

from worldkv.memory.crossing import Crossing
from worldkv.memory.digests import computed_on
from worldkv.memory.ticket import Direction
from worldkv.memory.tiers.slab import SlabTier
from worldkv.memory.transfer import TransferEngine

MIB = 2**20
BASELINE_BYTES = 256 * MIB
LAYERS = 32
TURNS = 5
DIRECTIONS: tuple[Direction, ...] = ("down", "up")

Move = Callable[[], int]
"""Copies and returns how many bytes; returns when they have arrived, or leaves that to `Bench.settle`."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    direction: str
    chunk_mib: int
    gb_per_second: float
    lowest: float
    highest: float
    ratio: float
    """Of the plain copy of the same direction; median over the turns."""


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    device: torch.device
    engine: TransferEngine
    on_device: SlabTier
    on_host: SlabTier
    total_bytes: int
    """Moved in one turn and direction."""

    def turns(self, moves: dict[str, Move]) -> dict[str, list[float]]:
        """GB/s of each move in TURNS turns, after one to warm up."""
        rates: dict[str, list[float]] = {name: [] for name in moves}
        for _ in range(TURNS + 1):
            for name, move in moves.items():
                self.settle()
                start = time.perf_counter()
                nbytes = move()
                self.settle()
                rates[name].append(nbytes / (time.perf_counter() - start) / 1e9)
        return {name: got[1:] for name, got in rates.items()}

    def crossing(self, on_device: SlabTier, on_host: SlabTier, hashers: Executor) -> Crossing:
        """The link between two tiers, its digests computed where `Crossing.open` would have them computed."""
        there = self.device.type == "cuda" and computed_on(self.device)
        return Crossing(self.engine, on_device, on_host, hashers, there)

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def plain_copy(bench: Bench, directions: Sequence[Direction]) -> Move:
    """Asynchronous copies of whole pinned buffers, each direction on a stream of its own."""
    cuda = bench.device.type == "cuda"
    host = {d: torch.ones(BASELINE_BYTES, dtype=torch.uint8, pin_memory=cuda) for d in directions}
    device = {d: torch.ones(BASELINE_BYTES, dtype=torch.uint8, device=bench.device) for d in directions}
    streams = {d: torch.cuda.Stream(bench.device) if cuda else None for d in directions}

    def move() -> int:
        rounds = bench.total_bytes // BASELINE_BYTES
        for _ in range(rounds):
            for d in directions:
                source, destination = (device[d], host[d]) if d == "down" else (host[d], device[d])
                with torch.cuda.stream(streams[d]):
                    destination.copy_(source, non_blocking=True)
        return rounds * BASELINE_BYTES * len(directions)

    return move


def ratio_of(rates: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(rates, base, strict=True))


def row_of(what: str, direction: str, chunk_mib: int, rates: list[float], base: list[float]) -> Row:
    """The figures of some turns beside those of the baseline in the same turns."""
    return Row(what, direction, chunk_mib, statistics.median(rates), min(rates), max(rates), ratio_of(rates, base))
