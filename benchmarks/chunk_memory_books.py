"""What the chunk memory's own work costs, without copies: forks of a long session, and admit + fetch per chunk.

Prints JSON. The payloads are one shared tensor, so that only books and policies are timed.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.codec import CODECS
from worldkv.memory.eviction import EVICTION_POLICIES
from worldkv.memory.index import PoseIndex
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier

FORKS, LONG_SESSION, SESSION_CHUNKS, FETCHED = 64, 2_000, 10_000, 4
CPU = torch.device("cpu")


def chunks(count: int) -> list[KVChunk]:
    """Chunks that differ in index, pose and id alone."""
    kv = torch.zeros(2, 1, 6, 1, 8)
    poses_F44 = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    one = make_chunk(tenant="default", epoch="e", index=0, c2w_F44=poses_F44, encoded=CODECS["bf16"].encode(*kv))
    walk = np.cumsum(np.random.default_rng(0).normal(size=(count, 3)), axis=0).astype(np.float32)
    made = []
    for index in range(count):
        moved = poses_F44.copy()
        moved[:, :3, 3] = walk[index]
        made.append(replace(one, index=index, c2w_F44=moved, checksum=f"{index:032x}"))
    return made


def fork_seconds(session: list[KVChunk]) -> list[float]:
    """Of each fork: the list of chunks and the index of poses, all that grows with a session."""
    memory = ChunkMemory([ResidentTier("host", CPU, 2**30)], "e")
    stored, index = ChunkList(), PoseIndex(parity=False)
    for chunk in session:
        stored.append(chunk.index, memory.admit(chunk))
        index.add(chunk.index, chunk.c2w_F44)
    forks = []
    seconds = [timed(lambda: forks.append((stored.fork(), index.copy()))) for _ in range(FORKS)]
    assert memory.check_integrity([stored, *(twin for twin, _ in forks)]) == []
    return seconds


def step_seconds(session: list[KVChunk], policy: str) -> list[float]:
    """Of each chunk of a session whose memory holds a tenth of it in two tiers: admit it, fetch a few older ones."""
    room = len(session) // 20 * session[0].nbytes
    tiers = [ResidentTier("device", CPU, room), ResidentTier("host", CPU, room)]
    rules = [TierRules(EVICTION_POLICIES[policy]()) for _ in tiers]
    memory, rng = ChunkMemory(tiers, "e", rules), np.random.default_rng(1)
    seconds = []
    for chunk in session:
        # As far back as the memory is large: hits in both tiers, and misses once older chunks were kept instead.
        back = rng.integers(0, min(chunk.index + 1, len(session) // 10), FETCHED)
        wanted = [session[chunk.index - int(b)].id for b in back]

        def step(chunk: KVChunk = chunk, wanted: list[str] = wanted) -> None:
            memory.admit(chunk, group=0)
            memory.fetch(wanted)

        seconds.append(timed(step))
    assert memory.check_integrity() == []
    return seconds


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    forks = fork_seconds(chunks(LONG_SESSION))
    session = chunks(SESSION_CHUNKS)
    steps = {}
    for policy in EVICTION_POLICIES:
        seconds = step_seconds(session if policy == "lru" else session[: SESSION_CHUNKS // 5], policy)
        part = len(seconds) // 10
        # The first tenth of a session that fills the memory evicts nothing: the second is the first that does.
        first, last = (np.percentile(x, 99) * 1e6 for x in (seconds[part : 2 * part], seconds[-part:]))
        steps[policy] = {"chunks": len(seconds), "p99_us_second_tenth": round(first), "p99_us_last_tenth": round(last)}
        steps[policy]["median_us"] = round(float(np.median(seconds)) * 1e6)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
        "forks": {"chunks": LONG_SESSION, "median_us": np.median(forks) * 1e6, "max_us": max(forks) * 1e6},
        "admit_one_fetch_four": steps,
    }
    print(json.dumps(result, indent=1, default=float))


if __name__ == "__main__":
    main()
