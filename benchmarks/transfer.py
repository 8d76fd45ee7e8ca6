"""How fast chunks cross between the host and a device, beside plain copies of the same memory in the same run.

    python benchmarks/transfer.py [--device cuda] [--slab-gib 32] [--json FILE]

With CUDA: pinned copies as the baseline, the engine's streams, the slab pinned in the background. Without: copies of
the host's memory, so the link is memcpy and shares the cores with everything else. Plain copy and engine take turns,
and a share is the median over the turns. What the engine itself costs is measured over a link that copies nothing.
Prints markdown tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.crossing import Crossing, Label
from worldkv.memory.digests import digests_of
from worldkv.memory.fragments import PIN_PIECE_BYTES
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.store import ChunkMemory
from worldkv.memory.ticket import Copy, Direction, Mark
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.slab import SlabTier
from worldkv.memory.transfer import TransferEngine

MIB = 2**20
BASELINE_BYTES = 256 * MIB
CHUNK_MIB = (2, 8, 32, 96)
LARGEST_MIB = CHUNK_MIB[-1]
LAYERS = 32
TURNS = 5
OVERHEAD_MIB = (2, 8)
OVERHEAD_TRANSFERS = 2000
DIRECTIONS: tuple[Direction, ...] = ("down", "up")

Move = Callable[[], int]
"""Copies and returns how many bytes; returns when they have arrived, or leaves that to `Bench.settle`."""
Rooms = dict[Direction, tuple[Tensor, Tensor]]
"""Host and device memory, uint8 [BASELINE_BYTES], by direction."""
Result = TypeVar("Result")


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


def engine(bench: Bench, rooms: Rooms, chunk_bytes: int, hashers: Executor | None = None) -> Move:
    """As many chunks as make up the total, in turn through the rooms; digests of what came down by `hashers`."""
    slots, count = BASELINE_BYTES // chunk_bytes, bench.total_bytes // chunk_bytes

    def copy(direction: Direction, number: int, digests: list[Future[Any]]) -> Copy:
        start = number % slots * chunk_bytes
        host_LN, device_LN = (room_N[start : start + chunk_bytes].view(LAYERS, -1) for room_N in rooms[direction])
        if direction == "up":
            return Copy(host_LN, device_LN, "up")

        def landed(layers: range) -> None:
            assert hashers is not None
            digests.append(hashers.submit(digests_of, host_LN[layers.start : layers.stop]))

        return Copy(device_LN, host_LN, "down", landed=landed if hashers else None)

    def move() -> int:
        digests: list[Future[Any]] = []
        tickets = [bench.engine.submit(copy(d, n, digests)) for n in range(count) for d in rooms]
        for ticket in tickets:
            ticket.wait()
        for digest in digests:
            digest.result()
        return count * chunk_bytes * len(rooms)

    return move


def measure_rates(bench: Bench, hashers: Executor) -> tuple[list[Row], float]:
    """Each way, and both at once: the plain copy, the engine for every chunk size, and down with digests.

    Also the time that digests add to the engine's copies of the largest chunk, as a share of it.
    """
    rows, digest_cost = [], 0.0
    for name, directions in (("down", DIRECTIONS[:1]), ("up", DIRECTIONS[1:]), ("both", DIRECTIONS)):
        rooms: Rooms = {d: (_room(bench.on_host), _room(bench.on_device)) for d in directions}
        moves = {f"plain copy/{BASELINE_BYTES // MIB}": plain_copy(bench, directions)}
        moves |= {f"engine/{mib}": engine(bench, rooms, mib * MIB) for mib in CHUNK_MIB}
        if name == "down":
            moves[f"engine, digests/{LARGEST_MIB}"] = engine(bench, rooms, LARGEST_MIB * MIB, hashers)
        rates = bench.turns(moves)
        plain = next(iter(rates.values()))
        for move, got in rates.items():
            what, mib = move.split("/")
            rows.append(Row(what, name, int(mib), statistics.median(got), min(got), max(got), _ratio(got, plain)))
        if name == "down":
            digest_cost = _ratio(rates[f"engine/{LARGEST_MIB}"], rates[f"engine, digests/{LARGEST_MIB}"]) - 1
    return rows, digest_cost


class FreeLink:
    """Copies nothing and takes no time; also the end of each of its copies."""

    def copy(self, destinations: Sequence[Tensor], sources: Sequence[Tensor], after: Sequence[Mark]) -> Mark:
        """See `Link.copy`."""
        return self

    def done(self) -> bool:
        """See `Mark.done`."""
        return True

    def wait(self) -> None:
        """See `Mark.wait`."""

    def hold_stream(self) -> None:
        """See `Mark.hold_stream`."""


def measure_overhead(bench: Bench, hashers: Executor) -> list[dict[str, Any]]:
    """What a transfer down costs beside its copy, in microseconds, with the engine's threads and one that submits.

    Every payload is one fragment. With digests: all but the hashing. The events that order a copy after its source are
    part of it, those of the link are not.
    """
    rows, room_N = [], _room(bench.on_host)
    # Across the end of a pinned piece a payload would be two fragments.
    aligned = -room_N.data_ptr() % PIN_PIECE_BYTES
    with TransferEngine(FreeLink(), FreeLink()) as transfers:
        transfers.start()
        for mib in OVERHEAD_MIB:
            payload_LN = torch.ones((LAYERS, mib * MIB // LAYERS), dtype=torch.uint8, device=bench.device)
            back_LN = room_N[aligned : aligned + payload_LN.nbytes].view(payload_LN.shape)
            for digests in (None, hashers):
                taken = [_overhead(transfers, (payload_LN, back_LN), digests) for _ in range(TURNS + 1)][1:]
                wall, process, submitting = (statistics.median(times) for times in zip(*taken, strict=True))
                what = "engine, digests" if digests else "engine"
                rows.append({"what": what, "chunk_mib": mib, "wall_us": wall, "cpu_us": process})
                rows[-1]["submitting_cpu_us"] = submitting
    return rows


def _overhead(transfers: TransferEngine, ends: tuple[Tensor, Tensor], hashers: Executor | None) -> tuple[float, ...]:
    source_LN, destination_LN = ends
    digests: list[Future[Any]] = []

    def landed(layers: range) -> None:
        assert hashers is not None
        digests.append(hashers.submit(len, destination_LN[layers.start : layers.stop]))

    clocks = (time.perf_counter, time.process_time, time.thread_time)
    start = [clock() for clock in clocks]
    copies = (
        Copy(source_LN, destination_LN, "down", landed=landed if hashers else None) for _ in range(OVERHEAD_TRANSFERS)
    )
    for ticket in [transfers.submit(copy) for copy in copies]:
        ticket.wait()
    for digest in digests:
        digest.result()
    return tuple(1e6 * (clock() - began) / OVERHEAD_TRANSFERS for clock, began in zip(clocks, start, strict=True))


def measure_memory(bench: Bench, hashers: Executor) -> list[Row]:
    """What a chunk memory makes of it, chunk after chunk: demoted; fetched into room, or in exchange for others."""
    count = max(2, bench.total_bytes // BASELINE_BYTES)
    chunks = [_chunk(bench.device, i) for i in range(2 * count)]
    ids, nbytes = [chunk.id for chunk in chunks], count * chunks[0].encoded.nbytes

    def memory_of(on_device: int, on_host: int) -> ChunkMemory:
        slot = chunks[0].encoded.nbytes
        tiers = (
            DeviceTier.open("device", bench.device, on_device * slot),
            HostTier.open("host", on_host * slot, headroom=lambda: None),
        )
        tiers[1].wait_pinned()
        memory = ChunkMemory(tiers, "weights", mover=VerifyingMover(Crossing(bench.engine, *tiers, hashers)))
        for chunk in chunks:
            memory.admit(chunk)
        return memory

    roomy, tight, full = memory_of(2 * count, 2 * count), memory_of(count, count + 1), memory_of(count, count)
    roomy.demote(ids[count:])

    def fetch(memory: ChunkMemory, wanted: Sequence[str]) -> int:
        assert None not in memory.fetch(wanted)
        return nbytes

    def demote() -> int:
        roomy.demote(ids[:count])
        return nbytes

    moves: dict[str, Move] = {
        "plain copy/down": plain_copy(bench, DIRECTIONS[:1]),
        "memory, demote/down": demote,
        "plain copy/up": plain_copy(bench, DIRECTIONS[1:]),
        "memory, fetch/up": lambda: fetch(roomy, ids[:count]),
        "memory, fetch, device full/up": lambda: fetch(tight, tight.lying()[1]),
        "memory, fetch, both full/up": lambda: fetch(full, full.lying()[1]),
    }
    rates = bench.turns(moves)
    assert full.stats().dropped == tight.stats().dropped == roomy.stats().dropped == 0
    rows = []
    for move, got in rates.items():
        what, direction = move.split("/")
        ratio, mib = _ratio(got, rates[f"plain copy/{direction}"]), nbytes // count // MIB
        rows.append(Row(what, direction, mib, statistics.median(got), min(got), max(got), ratio))
    return [row for row in rows if not row.what.startswith("plain")]


def _chunk(device: torch.device, index: int) -> KVChunk:
    k, v = (torch.full((LAYERS, 512, 12, 128), float(index), dtype=torch.bfloat16, device=device) for _ in range(2))
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    return make_chunk(
        tenant="default", epoch="weights", index=index, c2w_F44=poses, encoded=CODECS["bf16"].encode(k, v)
    )


def _room(tier: SlabTier) -> Tensor:
    return tier.reserve(1, BASELINE_BYTES).payload_LN.view(-1).fill_(1)


def _ratio(rates: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(rates, base, strict=True))


def measure_codecs(bench: Bench, hashers: Executor) -> list[dict[str, Any]]:
    """One chunk at a time, end to end: encoded, down, sealed with its digests; then up, verified, ready; decoded."""
    shape = (16, 1560, 12, 128) if bench.device.type == "cuda" else (4, 390, 12, 128)
    k, v = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    crossing = Crossing(bench.engine, bench.on_device, bench.on_host, hashers)
    return [_codec_row(bench, crossing, name, (k, v)) for name in ("bf16", "int8", "int4")]


def _codec_row(bench: Bench, crossing: Crossing, codec: str, kv: tuple[Tensor, Tensor]) -> dict[str, Any]:
    taken: dict[str, list[float]] = {stage: [] for stage in ("encode", "down", "up", "decode")}
    label = Label("benchmark", "weights", 0, np.tile(np.eye(4, dtype=np.float32), (3, 1, 1)))
    out = tuple(torch.empty_like(x) for x in kv)

    def timed(stage: str, work: Callable[[], Result]) -> Result:
        bench.settle()
        start = time.perf_counter()
        result = work()
        bench.settle()
        taken[stage].append(1e3 * (time.perf_counter() - start))
        return result

    nbytes = CODECS[codec].nbytes(kv[0].shape)
    for _ in range(TURNS + 1):
        timed("encode", partial(CODECS[codec].encode, *kv))
        chunk = timed("down", lambda: crossing.down(CODECS[codec], kv, label).chunk())
        there = timed("up", crossing.up(chunk.id).chunk)
        timed("decode", partial(there.load, *out))
        for tier in (bench.on_host, bench.on_device):
            tier.remove(chunk.id)
    return {"codec": codec, "chunk_mib": nbytes / MIB} | {
        f"{stage}_ms": statistics.median(times[1:]) for stage, times in taken.items()
    }


def measure_start(device: torch.device, slab_bytes: int) -> dict[str, float]:
    """From the first line of `HostTier.open` until a chunk has been down and up again, and until all is pinned."""
    payload_LN = torch.ones((LAYERS, 8 * MIB // LAYERS), dtype=torch.uint8, device=device)
    back_LN = torch.empty_like(payload_LN)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    # Not asked for headroom: the memory of some virtual machines grows as it is touched.
    with closing(HostTier.open("start", slab_bytes, headroom=lambda: None)) as tier:
        room = tier.reserve(*payload_LN.shape)
        room.payload_LN.copy_(payload_LN)
        back_LN.copy_(room.payload_LN)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        served = time.perf_counter() - start
        tier.wait_pinned()
        return {
            "slab_gib": slab_bytes / 2**30,
            "first_chunk_seconds": served,
            "pinned_gib": tier.pinned_bytes / 2**30,
            "all_pinned_seconds": time.perf_counter() - start,
        }


def run(device: torch.device, slab_bytes: int) -> dict[str, Any]:
    """All measurements, as JSON takes them."""
    cuda = device.type == "cuda"
    threads = max(1, min(8, (os.cpu_count() or 2) // 2))
    started = time.perf_counter()
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if cuda else "cpu"}
    result |= {"torch": torch.__version__, "hash_threads": threads, "turns": TURNS}
    result["start"] = measure_start(device, slab_bytes)
    capacity = 3 * BASELINE_BYTES
    with (
        ThreadPoolExecutor(threads) as hashers,
        closing(DeviceTier.open("device", device, capacity)) as on_device,
        closing(HostTier.open("host", capacity, headroom=lambda: None)) as on_host,
        TransferEngine.open(device) as transfers,
    ):
        on_host.wait_pinned()
        bench = Bench(device, transfers, on_device, on_host, (16 if cuda else 1) * BASELINE_BYTES)
        result["overhead"] = measure_overhead(bench, hashers)
        rows, result["digest_cost_ratio"] = measure_rates(bench, hashers)
        rows += measure_memory(bench, hashers)
        result["rates"] = [asdict(row) for row in rows]
        result["codecs"] = measure_codecs(bench, hashers)
        result["stats"] = asdict(transfers.stats())
    return result | {"seconds": time.perf_counter() - started}


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    lines = _head("what", "direction", "chunk MiB", "GB/s, median (lowest to highest)", "share of the plain copy")
    for row in result["rates"]:
        spread = f"{row['gb_per_second']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        lines.append(f"| {row['what']} | {row['direction']} | {row['chunk_mib']} | {spread} | {row['ratio']:.1%} |")
    clocks = {"wall_us": "wall", "cpu_us": "CPU of all threads", "submitting_cpu_us": "CPU of the submitting thread"}
    lines += ["", *_head("overhead per transfer, us", "chunk MiB", *clocks.values())]
    for row in result["overhead"]:
        lines.append(f"| {row['what']} | {row['chunk_mib']} | {' | '.join(f'{row[clock]:.1f}' for clock in clocks)} |")
    stages = {"encode": "encode", "down": "encode, down, sealed", "up": "up, verified", "decode": "decode"}
    lines += ["", *_head("codec", "chunk MiB", *(f"{name}, ms" for name in stages.values()))]
    for row in result["codecs"]:
        times = " | ".join(f"{row[f'{stage}_ms']:.2f}" for stage in stages)
        lines.append(f"| {row['codec']} | {row['chunk_mib']:.1f} | {times} |")
    start = result["start"]
    lines += [
        "",
        f"A slab of {start['slab_gib']:g} GiB: first chunk of 8 MiB down and up again after "
        f"{1e3 * start['first_chunk_seconds']:.1f} ms; {start['pinned_gib']:g} GiB pinned after "
        f"{start['all_pinned_seconds']:.1f} s.",
        f"Digests beside copies of {LARGEST_MIB} MiB down, {result['hash_threads']} threads: "
        f"{result['digest_cost_ratio']:+.1%} time. The whole run: {result['seconds']:.0f} s.",
    ]
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--slab-gib", type=float, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    result = run(device, int(options.slab_gib * 2**30))
    print(markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
