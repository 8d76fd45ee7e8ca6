"""How fast verified chunks cross between host and device: beside the engine's bare copies, through a chunk memory, and
one at a time with their codec. Part of `transfer.py`, which runs it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from link_bench import BASELINE_BYTES, DIRECTIONS, LAYERS, MIB, TURNS, Bench, Move, Row, plain_copy, ratio_of, row_of
from torch import Tensor

from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.crossing import Crossing, Label
from worldkv.memory.digests import digests_of
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.store import ChunkMemory
from worldkv.memory.ticket import Copy, Direction
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier

Result = TypeVar("Result")
# Chunks under way at the same time: those of one window.
WINDOW = 4


def measure_crossing(bench: Bench, hashers: Executor) -> tuple[list[Row], dict[str, float]]:
    """Chunks of a window at a time, each way: bare copies, digests by the host's threads, digests by the device.

    Also the time that digests add to the bare copies, as a share of it.
    """
    rows, costs = [], {}
    slot = _chunk(bench.device, 0).encoded.nbytes
    with (
        closing(DeviceTier.open("device", bench.device, 2 * WINDOW * slot)) as on_device,
        closing(HostTier.open("host", 2 * WINDOW * slot, headroom=lambda: None)) as on_host,
    ):
        on_host.wait_pinned()
        ids = []
        for index in range(WINDOW):
            chunk = _chunk(bench.device, index)
            on_device.put(chunk)
            on_host.put(chunk)
            ids.append(chunk.id)
        del chunk
        there = bench.crossing(on_device, on_host, hashers).device_digests
        ways = {"host": False, "device": True} if there else {"host": False}
        if there:
            moves = {"digests by the device, no copy": _digested(bench, on_device, ids)}
            rates = bench.turns({"plain copy": plain_copy(bench, DIRECTIONS[:1]), **moves})
            rows += [row_of(what, "there", slot // MIB, rates[what], rates["plain copy"]) for what in moves]
        for direction in DIRECTIONS:
            moves = {"chunks, bare": _bare(bench, on_device, on_host, direction)}
            for where, device_digests in ways.items():
                crossing = Crossing(bench.engine, on_device, on_host, hashers, device_digests)
                moves[f"chunks, digests by the {where}"] = _verified(bench, crossing, ids, direction)
            rates = bench.turns({"plain copy": plain_copy(bench, (direction,)), **moves})
            for what in moves:
                rows.append(row_of(what, direction, slot // MIB, rates[what], rates["plain copy"]))
                costs[f"{what}, {direction}"] = ratio_of(rates["chunks, bare"], rates[what]) - 1
    return rows, {what: cost for what, cost in costs.items() if "bare" not in what}


def _digested(bench: Bench, on_device: DeviceTier, ids: Sequence[str]) -> Move:
    slot = on_device.capacity_bytes // (2 * WINDOW)
    rounds = max(1, bench.total_bytes // (WINDOW * slot))

    def move() -> int:
        for _ in range(rounds):
            for chunk_id in ids:
                digests_of(on_device.get(chunk_id).encoded.payload_LN)
        return rounds * WINDOW * slot

    return move


def _bare(bench: Bench, on_device: DeviceTier, on_host: HostTier, direction: Direction) -> Move:
    slot = on_device.capacity_bytes // (2 * WINDOW)
    rounds = max(1, bench.total_bytes // (WINDOW * slot))

    def move() -> int:
        for _ in range(rounds):
            rooms = [[tier.reserve(LAYERS, slot // LAYERS) for tier in (on_device, on_host)] for _ in range(WINDOW)]
            ends = [(one[0], one[1]) if direction == "down" else (one[1], one[0]) for one in rooms]
            copies = [Copy(a.payload_LN, b.payload_LN, direction, after=b.after) for a, b in ends]
            for ticket in bench.engine.submit_all(copies):
                ticket.wait()
        return rounds * WINDOW * slot

    return move


def _verified(bench: Bench, crossing: Crossing, ids: Sequence[str], direction: Direction) -> Move:
    start, target = (crossing.down_again, crossing.host) if direction == "down" else (crossing.up, crossing.device)
    slot = crossing.device.capacity_bytes // (2 * WINDOW)
    rounds = max(1, bench.total_bytes // (WINDOW * slot))

    def move() -> int:
        for _ in range(rounds):
            for chunk_id in ids:
                target.remove(chunk_id)
            for passage in [start(chunk_id) for chunk_id in ids]:
                passage.chunk()
                passage.ticket.wait()
        return rounds * WINDOW * slot

    return move


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
        memory = ChunkMemory(tiers, "weights", mover=VerifyingMover(bench.crossing(*tiers, hashers)))
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
        rows.append(row_of(what, direction, nbytes // count // MIB, got, rates[f"plain copy/{direction}"]))
    return [row for row in rows if not row.what.startswith("plain")]


def _chunk(device: torch.device, index: int) -> KVChunk:
    k, v = (torch.full((LAYERS, 512, 12, 128), float(index), dtype=torch.bfloat16, device=device) for _ in range(2))
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    return make_chunk(
        tenant="default", epoch="weights", index=index, c2w_F44=poses, encoded=CODECS["bf16"].encode(k, v)
    )


def measure_codecs(bench: Bench, hashers: Executor) -> list[dict[str, Any]]:
    """One chunk at a time, end to end: encoded, down, sealed with its digests; then up, verified, ready; decoded."""
    shape = (16, 1560, 12, 128) if bench.device.type == "cuda" else (4, 390, 12, 128)
    k, v = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    crossing = bench.crossing(bench.on_device, bench.on_host, hashers)
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
