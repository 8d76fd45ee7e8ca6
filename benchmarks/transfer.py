"""How fast chunks cross between the host and a device, beside plain copies of the same memory in the same run.

    python benchmarks/transfer.py [--device cuda] [--slab-gib 32] [--tune] [--json FILE]

With CUDA: pinned copies as the baseline, the engine's streams, the slab pinned in the background. Without: copies of
the host's memory, so the link is memcpy and shares the cores with everything else. Plain copy and engine take turns,
and a share is the median over the turns. What the engine itself costs is measured over a link that copies nothing.
Prints markdown tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from chunk_transfers import measure_codecs, measure_crossing, measure_memory
from link_bench import BASELINE_BYTES, DIRECTIONS, LAYERS, MIB, TURNS, Bench, Move, Row, plain_copy, ratio_of, row_of
from torch import Tensor

from worldkv.memory import digests, fragments, lane
from worldkv.memory.fragments import PIN_PIECE_BYTES
from worldkv.memory.ticket import Copy, Direction, Mark
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.slab import SlabTier
from worldkv.memory.transfer import TransferEngine

CHUNK_MIB = (2, 8, 32, 96)
OVERHEAD_MIB = (2, 8)
OVERHEAD_TRANSFERS = 2000
# For --tune: bytes of a haul, and bytes enqueued before the oldest haul is waited for.
TUNED_MIB = (4, 8, 16, 32), (32, 64, 128)

Rooms = dict[Direction, tuple[Tensor, Tensor]]
"""Host and device memory, uint8 [BASELINE_BYTES], by direction."""


def engine(bench: Bench, rooms: Rooms, chunk_bytes: int, *, together: bool = True) -> Move:
    """As many chunks as make up the total, in turn through the rooms; handed over all at once, or one by one."""
    slots, count = BASELINE_BYTES // chunk_bytes, bench.total_bytes // chunk_bytes
    cut: dict[Direction, list[tuple[Tensor, Tensor]]] = {
        direction: [
            tuple(room_N[i * chunk_bytes : (i + 1) * chunk_bytes].view(LAYERS, -1) for room_N in pair)
            for i in range(slots)
        ]
        for direction, pair in rooms.items()
    }

    def copy(direction: Direction, number: int) -> Copy:
        host_LN, device_LN = cut[direction][number % slots]
        ends = (host_LN, device_LN) if direction == "up" else (device_LN, host_LN)
        return Copy(*ends, direction)

    def move() -> int:
        copies = (copy(d, n) for n in range(count) for d in rooms)
        submitted = bench.engine.submit_all(list(copies)) if together else map(bench.engine.submit, copies)
        for ticket in list(submitted):
            ticket.wait()
        return count * chunk_bytes * len(rooms)

    return move


def measure_rates(bench: Bench) -> list[Row]:
    """Each way, and both at once: the plain copy, and the engine for every chunk size."""
    rows = []
    for name, directions in (("down", DIRECTIONS[:1]), ("up", DIRECTIONS[1:]), ("both", DIRECTIONS)):
        rooms: Rooms = {d: (_room(bench.on_host), _room(bench.on_device)) for d in directions}
        moves = {f"plain copy/{BASELINE_BYTES // MIB}": plain_copy(bench, directions)}
        moves |= {f"engine/{mib}": engine(bench, rooms, mib * MIB) for mib in CHUNK_MIB}
        moves |= {f"engine, one by one/{mib}": engine(bench, rooms, mib * MIB, together=False) for mib in CHUNK_MIB[:2]}
        rates = bench.turns(moves)
        plain = next(iter(rates.values()))
        for move, got in rates.items():
            what, mib = move.split("/")
            rows.append(row_of(what, name, int(mib), got, plain))
    return rows


def tune(bench: Bench) -> list[dict[str, Any]]:
    """The shortest chunks, each way, by the length of a haul and by how much may be enqueued."""
    rows = []
    found = fragments.FRAGMENT_BYTES, lane.ENQUEUED_BYTES
    rooms: dict[Direction, Rooms] = {d: {d: (_room(bench.on_host), _room(bench.on_device))} for d in DIRECTIONS}
    try:
        for haul_mib, enqueued_mib in itertools.product(*TUNED_MIB):
            fragments.FRAGMENT_BYTES, lane.ENQUEUED_BYTES = haul_mib * MIB, enqueued_mib * MIB
            moves: dict[str, Move] = {}
            for direction in DIRECTIONS:
                moves[f"{direction} plain"] = plain_copy(bench, (direction,))
                moves[direction] = engine(bench, rooms[direction], CHUNK_MIB[0] * MIB)
            rates = bench.turns(moves)
            shares = {f"{d}_share": ratio_of(rates[d], rates[f"{d} plain"]) for d in DIRECTIONS}
            rows.append({"haul_mib": haul_mib, "enqueued_mib": enqueued_mib, **shares})
    finally:
        fragments.FRAGMENT_BYTES, lane.ENQUEUED_BYTES = found
    return rows


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


def measure_overhead(bench: Bench) -> list[dict[str, Any]]:
    """What a transfer down costs beside its copy, in microseconds, with the engine's threads and one that submits.

    Every payload is one fragment. The events that order a copy after its source are part of it, those of the link are
    not.
    """
    rows, room_N = [], _room(bench.on_host)
    # Across the end of a pinned piece a payload would be two fragments.
    aligned = -room_N.data_ptr() % PIN_PIECE_BYTES
    with TransferEngine(FreeLink(), FreeLink()) as transfers:
        transfers.start()
        for mib in OVERHEAD_MIB:
            payload_LN = torch.ones((LAYERS, mib * MIB // LAYERS), dtype=torch.uint8, device=bench.device)
            back_LN = room_N[aligned : aligned + payload_LN.nbytes].view(payload_LN.shape)
            for together in (True, False):
                taken = [_overhead(transfers, (payload_LN, back_LN), together) for _ in range(TURNS + 1)][1:]
                wall, process, submitting = (statistics.median(times) for times in zip(*taken, strict=True))
                what = "engine" if together else "engine, one by one"
                rows.append({"what": what, "chunk_mib": mib, "wall_us": wall, "cpu_us": process})
                rows[-1]["submitting_cpu_us"] = submitting
    return rows


def _overhead(transfers: TransferEngine, ends: tuple[Tensor, Tensor], together: bool) -> tuple[float, ...]:
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    start = [clock() for clock in clocks]
    copies = (Copy(*ends, "down") for _ in range(OVERHEAD_TRANSFERS))
    for ticket in list(transfers.submit_all(list(copies)) if together else map(transfers.submit, copies)):
        ticket.wait()
    return tuple(1e6 * (clock() - began) / OVERHEAD_TRANSFERS for clock, began in zip(clocks, start, strict=True))


def _room(tier: SlabTier) -> Tensor:
    return tier.reserve(1, BASELINE_BYTES).payload_LN.view(-1).fill_(1)


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


def run(device: torch.device, slab_bytes: int, *, tuned: bool) -> dict[str, Any]:
    """All measurements, as JSON takes them; `tuned`: those of `tune` instead."""
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
        if tuned:
            return result | {"tuned": tune(bench)}
        result["overhead"] = measure_overhead(bench)
        rows = measure_rates(bench)
        crossed, result["digest_cost_ratio"] = measure_crossing(bench, hashers)
        result["digest_fault"] = digests.fault(device)
        rows += crossed + measure_memory(bench, hashers)
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
        f"Time that digests add to bare copies of chunks, by {result['hash_threads']} threads or by the device: "
        + "; ".join(f"{what}: {cost:+.1%}" for what, cost in result["digest_cost_ratio"].items())
        + f". {result['digest_fault'] or ''}",
        f"Hauls down and up: {result['stats']['down']['hauls']} and {result['stats']['up']['hauls']} for "
        f"{result['stats']['down']['done']} and {result['stats']['up']['done']} transfers. The whole run: "
        f"{result['seconds']:.0f} s.",
    ]
    return "\n".join(lines)


def tuned_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of `tune`."""
    lines = _head("MiB of a haul", "MiB enqueued", "down, share of the plain copy", "up")
    for row in rows:
        shares = " | ".join(f"{row[f'{direction}_share']:.1%}" for direction in DIRECTIONS)
        lines.append(f"| {row['haul_mib']} | {row['enqueued_mib']} | {shares} |")
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--slab-gib", type=float, default=32)
    parser.add_argument("--tune", action="store_true", help="only 2 MiB chunks, for several lengths of a haul")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    result = run(device, int(options.slab_gib * 2**30), tuned=options.tune)
    print(tuned_markdown(result["tuned"]) if options.tune else markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
