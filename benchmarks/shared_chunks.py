"""The shared chunk tier against a memory copy on one node, and against Ray's own transfers between two.

    python benchmarks/shared_chunks.py --out benchmarks/shared_chunks_cpu_202611

A Ray of two nodes on the loopback device of this machine, started here: both ends of a transfer use the same cores.
Each round takes fresh chunks; baseline and tier take turns, so that both meet the same neighbours.

- put: what the caller waits for, and until the chunk is verified and the server's own, which happens behind its back.
- get: chunks that lie on the node, all asked for at once as a window does: the first time in this process, when digests
  are checked, and again. Its baseline copies the same bytes to memory that is in use already.
- alone: the same for a single chunk that is not asked for ahead.
- fetch: chunks of the other node, sent for at once and verified; the baseline is `ray.get` of arrays of the same bytes.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
}
os.environ.update(ALWAYS)  # read by Ray when it is imported
FOLDERS = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

import numpy as np  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402

from cluster.chunks.connect import open_node_tier  # noqa: E402
from cluster.chunks.settings import MIB, ChunkSettings  # noqa: E402
from cluster.chunks.tier import NodeTier  # noqa: E402
from worldkv.memory.chunk import KVChunk, make_chunk  # noqa: E402
from worldkv.memory.codec import CODECS  # noqa: E402

# bfloat16 [L, T, H, D]: 1, 16 and 64 MiB of keys and values; so many chunks a round.
SHAPES = {1: (4, 128, 8, 64), 16: (16, 512, 8, 64), 64: (32, 1024, 8, 64)}
CHUNKS = {1: 16, 16: 8, 64: 4}
STORE_BYTES, TIER_BYTES = 1024 * MIB, 768 * MIB
WARM_ROUNDS = 1


def chunks_of(mebibytes: int, first: int) -> list[KVChunk]:
    """Of random content, another one for each number."""
    generator = torch.Generator().manual_seed(mebibytes)
    encoded = CODECS["bf16"].encode(*torch.randn(2, *SHAPES[mebibytes], generator=generator).bfloat16())
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    numbers = range(first, first + CHUNKS[mebibytes])
    return [make_chunk(tenant="bench", epoch="none", index=i, c2w_F44=poses, encoded=encoded) for i in numbers]


def seconds(act: Callable[[], object]) -> float:
    """It takes; what it returns is let go of only then."""
    started = time.perf_counter()
    kept = act()
    taken = time.perf_counter() - started
    del kept
    return taken


def put_all(tier: NodeTier, chunks: list[KVChunk]) -> None:
    for chunk in chunks:
        tier.put(chunk)


def get_all(tier: NodeTier, ids: list[str]) -> list[KVChunk]:
    tier.prefetch(ids)
    return [tier.get(chunk_id) for chunk_id in ids]


def on_one_node(tier: NodeTier, mebibytes: int, number: int) -> dict[str, float]:
    """One round; seconds per chunk."""
    chunks = chunks_of(mebibytes, 1000 * number)
    ids = [chunk.id for chunk in chunks]
    source_NB = np.ones((len(ids), chunks[0].nbytes), np.uint8)
    target_NB = np.zeros_like(source_NB)

    def copy() -> float:
        return seconds(lambda: [np.copyto(*pair) for pair in zip(target_NB, source_NB, strict=True)])

    taken = {"copy": copy(), "put, waited": seconds(partial(put_all, tier, chunks))}
    taken["put, visible"] = taken["put, waited"] + seconds(lambda: tier.drain(60))
    taken["get, first"] = seconds(lambda: get_all(tier, ids))
    gc.collect()
    taken["get, again"] = seconds(lambda: get_all(tier, ids))
    taken["get, alone"] = seconds(lambda: tier.get(ids[0])) * len(ids)
    taken["copy"] = min(taken["copy"], copy())
    for chunk_id in ids:
        tier.remove(chunk_id)
    return {name: spent / len(ids) for name, spent in taken.items()}


class Far:
    """A worker on the other node."""

    def __init__(self, settings: ChunkSettings) -> None:
        torch.set_num_threads(1)
        self.tier = open_node_tier(settings)

    def fetch(self, ids: list[str]) -> float:
        """Seconds from the question to the last verified chunk; their headers were found before."""
        for outline in self.tier.find("bench", ids).values():
            self.tier.put(outline)
        taken = seconds(lambda: get_all(self.tier, ids))
        for chunk_id in ids:
            self.tier.remove(chunk_id)
        return taken

    def transfer(self, boxed: list[list[ray.ObjectRef[NDArray[np.uint8]]]]) -> float:
        """The same bytes as plain objects."""
        return seconds(lambda: ray.get([ref for (ref,) in boxed]))


def between_nodes(tier: NodeTier, far: ray.actor.ActorHandle[Far], mebibytes: int, number: int) -> dict[str, float]:
    """One round; seconds per chunk."""
    chunks = chunks_of(mebibytes, 1000 * number + 500)
    ids = [chunk.id for chunk in chunks]
    put_all(tier, chunks)
    tier.flush(60)
    boxed = [[ray.put(np.frombuffer(chunk.to_bytes(), np.uint8))] for chunk in chunks]
    acts = {"fetch": lambda: ray.get(far.fetch.remote(ids)), "Ray": lambda: ray.get(far.transfer.remote(boxed))}
    taken = {name: float(acts[name]()) for name in sorted(acts, reverse=bool(number % 2))}
    for chunk_id in ids:
        tier.remove(chunk_id)
    return {name: spent / len(ids) for name, spent in taken.items()}


def measure(tier: NodeTier, far: ray.actor.ActorHandle[Far], mebibytes: int, rounds: int) -> dict[str, object]:
    """All rounds of one size; the first serves to touch the store's memory and is not counted."""
    found: list[dict[str, float]] = []
    for number in range(WARM_ROUNDS + rounds):
        one = on_one_node(tier, mebibytes, number) | between_nodes(tier, far, mebibytes, number)
        found += [one] if number >= WARM_ROUNDS else []
        time.sleep(1.0)  # what was dropped is free in the store a little later
    gibibytes = mebibytes / 1024
    row: dict[str, object] = {"mebibytes": mebibytes, "chunks": CHUNKS[mebibytes], "rounds": rounds}
    row["seconds"] = {name: [round(one[name], 6) for one in found] for name in found[0]}
    row["GiB/s"] = {name: round(gibibytes / statistics.median(one[name] for one in found), 2) for name in found[0]}
    row["ratios"] = {
        f"{name} / {base}": round(statistics.median(one[base] / one[name] for one in found), 2)
        for name, base in (("get, first", "copy"), ("get, again", "copy"), ("get, alone", "copy"), ("fetch", "Ray"))
    }
    print(row["mebibytes"], row["GiB/s"], row["ratios"], flush=True)
    return row


def main() -> None:
    """Measure, print one line per size, and write all figures."""
    words = argparse.ArgumentParser(description="Rates of the shared chunk tier.")
    words.add_argument("--out", type=Path, help="where to write .md and .json")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--sizes", type=int, nargs="+", default=list(SHAPES), choices=SHAPES, help="in MiB")
    given = words.parse_args()
    torch.set_num_threads(1)
    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes its address there
    temp = tempfile.mkdtemp(prefix="wkv-", dir="/tmp")
    node = {"num_cpus": 2, "object_store_memory": STORE_BYTES}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**node, "include_dashboard": False, "no_monitor": True, "temp_dir": temp},
    )
    try:
        other = cluster.add_node(wait=True, **node)
        ray.init(address=cluster.address, namespace="bench", logging_level="error", log_to_driver=False)
        settings = ChunkSettings(TIER_BYTES)
        tier = open_node_tier(settings)
        far = ray.remote(Far).options(label_selector={"ray.io/node-id": other.node_id}).remote(settings)
        rows = [measure(tier, far, mebibytes, given.rounds) for mebibytes in given.sizes]
        tier.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)
    if given.out:
        write(given.out, rows)


def write(stem: Path, rows: list[dict[str, object]]) -> None:
    """The result file and its figures."""
    facts = circumstances(torch.device("cpu"))
    facts["Ray"] = f"{ray.__version__}, two nodes on the loopback device"
    lines = [[str(row["mebibytes"]), *(f"{value:.2f}" for value in cells(row))] for row in rows]
    heads = ["MiB", *(f"{name}, GiB/s" for name in rows[0]["GiB/s"]), *rows[0]["ratios"]]  # type: ignore[misc]
    save(stem, "The shared chunk tier", markdown_table(heads, lines), {"circumstances": facts, "rows": rows})


def cells(row: dict[str, object]) -> list[float]:
    """Rates, then ratios."""
    rates, ratios = row["GiB/s"], row["ratios"]
    assert isinstance(rates, dict)
    assert isinstance(ratios, dict)
    return [*rates.values(), *ratios.values()]


if __name__ == "__main__":
    main()
