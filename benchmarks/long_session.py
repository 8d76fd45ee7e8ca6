"""A session of eight hours, simulated: 40,000 chunks over three tiers, what each costs the memory, then 64 forks of it.

    python benchmarks/long_session.py --folder /mnt/nvme/scratch --out benchmarks/long_session_cpu_202611

Chunks have the size of the rooms model's, stored as int4, and poses of a walk through one of its worlds; what is in
them is one random payload, copied for each. No model runs. Timed is what a chunk costs session and memory: `retrieve`
(index, fetch, promotion), then admission with all that moves for it, then the index; not the encoding, not the seal.
The wall clock stands beside the CPU time of this process, kernel included: on a busy machine the one to read.
At every chunk all tiers must lie within their caps, at every tenth also the bytes that really lie on disk.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from recording import circumstances, markdown_table, save

from worldkv.config import MemoryConfig, TierConfig
from worldkv.geometry import KVGeometry
from worldkv.memory.chunk import make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.encoded import Encoded
from worldkv.memory.policy import PRESETS
from worldkv.memory.store import ChunkMemory
from worldkv.models.base import ModelState
from worldkv.models.ranks import ALONE
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.runs.memory import open_memory
from worldkv.runs.settled import settled
from worldkv.session import Session, open_session

CHUNKS, HOURS, FORKS, TENTHS = 40_000, 8, 64, 10
FLAT_RATIO, FORK_SECONDS = 1.1, 1e-3
GEOMETRY = KVGeometry(
    layers=10, heads=5, head_dim=64, rows=8, columns=8, chunk_latent_frames=3, trained_latent_frames=48
)
MODEL = SimpleNamespace(
    name="simulated",
    epoch="simulated",
    geometry=GEOMETRY,
    video_frames_per_latent=1,
    device=torch.device("cpu"),
    ranks=ALONE,
    open=lambda view, context: ModelState(),
)
# Full within the first tenth, so that all tenths have the same to do.
CAPACITY_MIB = {"device": 128, "host": 512, "disk": 1024}
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
# Chunks of a tenth by how many chunks each brought back from disk: from one count to below the next.
DISK_READS = (0, 1, 3, 100)


@dataclass
class Timer:
    """Milliseconds of each call, by both clocks."""

    ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CLOCKS})

    def __call__(self, act: Callable[[], object]) -> None:
        started = {name: clock() for name, clock in CLOCKS.items()}
        act()
        for name, clock in CLOCKS.items():
            self.ms[name].append(1e3 * (clock() - started[name]))

    def tenths(self, clock: str) -> list[dict[str, float]]:
        """Of each tenth of the calls, in their order."""
        return [figures(part) for part in np.array_split(self.ms[clock], TENTHS)]


def by_disk_reads(timer: Timer, disk_reads: list[int], clock: str) -> list[dict[str, dict[str, float]]]:
    """Of each tenth the figures of its chunks that had as much to do: what grows shows here whatever the walk asks."""
    parts = zip(*(np.array_split(of, TENTHS) for of in (timer.ms[clock], disk_reads)), strict=True)
    return [
        {
            f"{start}-{stop - 1}": figures(ms[chosen]) | {"chunks": int(chosen.sum())}
            for start, stop in pairwise(DISK_READS)
            if (chosen := (reads >= start) & (reads < stop)).any()
        }
        for ms, reads in parts
    ]


def figures(ms: np.ndarray) -> dict[str, float]:
    """Median, 99th percentile and largest."""
    return {
        "median_ms": round(float(np.median(ms)), 3),
        "p99_ms": round(float(np.percentile(ms, 99)), 3),
        "max_ms": round(float(np.max(ms)), 3),
    }


def new_session(folder: Path, chunks: int, scale: float) -> Session:
    """A session at its start, its memory as a configuration would make it."""
    tiers = tuple(
        TierConfig(name=name, capacity_mib=max(4, int(mib * scale)), folder=folder if name == "disk" else None)
        for name, mib in CAPACITY_MIB.items()
    )
    memory = open_memory(MemoryConfig(tiers=tiers), MODEL)
    frames = (chunks + 2) * GEOMETRY.chunk_latent_frames
    return open_session(MODEL, memory, PRESETS["worldkv"], Scene(0, 80).trajectory("wander", frames, Pace()))


def payload() -> Encoded:
    """Random keys and values of one chunk, as the default policy stores them."""
    shape = (GEOMETRY.layers, GEOMETRY.tokens_per_chunk, GEOMETRY.heads, GEOMETRY.head_dim)
    kv = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return CODECS[PRESETS["worldkv"].codec].encode(*kv)


def advance(session: Session, encoded: Encoded, timer: Timer) -> None:
    """The next chunk: what its model would see is retrieved, and the chunk that leaves the window for it is stored."""
    leaving = session.chunk - (session.policy.recent_chunks or 0)
    if leaving < session.policy.sink_chunks:
        session.chunk += 1
        return
    poses_F44 = session.latent_poses(leaving)
    own = encoded.over(encoded.payload_LN.clone())
    sealed = make_chunk(tenant=session.tenant, epoch=MODEL.epoch, index=leaving, c2w_F44=poses_F44, encoded=own)

    def step() -> None:
        session.retrieve()
        session.stored.append(leaving, session.memory.admit(sealed, group=session.serial))
        session.index.add(leaving, poses_F44)

    timer(step)
    session.chunk += 1


def within_caps(memory: ChunkMemory) -> bool:
    """Whether every tier says so of itself."""
    return all(tier.used_bytes <= tier.capacity_bytes for tier in memory.tiers)


def disk_bytes(folder: Path) -> int:
    """What really lies in the folder, in whole pages as the tier counts."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*.wkv"))


def play(session: Session, folder: Path, chunks: int) -> dict[str, object]:
    """Let the session run; what its chunks cost, and what its memory held after each tenth."""
    encoded, timer, idle, marks = payload(), Timer(), Timer(), []
    memory, disk_reads = session.memory, []
    for chunk in range(chunks):
        before = memory.stats().tiers[-1].hits
        advance(session, encoded, timer)
        disk_reads += [memory.stats().tiers[-1].hits - before] * (len(timer.ms["cpu"]) - len(disk_reads))
        idle(lambda now=chunk * HOURS * 3600 / CHUNKS: memory.idle(now))
        assert within_caps(memory), f"after chunk {chunk}: {[(t.name, t.used_bytes) for t in memory.tiers]}"
        if (chunk + 1) % (chunks // TENTHS) == 0:
            marks.append(mark(session, folder))
            print(f"chunk {chunk + 1}/{chunks}: {marks[-1]}", flush=True)
    return {
        "chunk": {clock: timer.tenths(clock) for clock in CLOCKS},
        "same_work": {clock: by_disk_reads(timer, disk_reads, clock) for clock in CLOCKS},
        "idle": {clock: timer_total(idle, clock) for clock in CLOCKS},
        "after": marks,
    }


def timer_total(timer: Timer, clock: str) -> dict[str, float]:
    """All calls together, the largest, and their share of the session's eight hours."""
    total = sum(timer.ms[clock])
    session_ms = HOURS * 3.6e6 * len(timer.ms[clock]) / CHUNKS
    return {
        "seconds": round(total / 1e3, 1),
        "max_ms": round(max(timer.ms[clock]), 1),
        "share": round(total / session_ms, 5),
    }


def mark(session: Session, folder: Path) -> dict[str, object]:
    """Where the session stands."""
    stats, on_disk = session.memory.stats(), disk_bytes(folder)
    assert on_disk <= session.memory.tiers[-1].capacity_bytes, f"{on_disk} bytes lie on disk"
    return {
        **{f"{tier.name}_chunks": tier.chunks for tier in stats.tiers},
        "disk_mib": on_disk // 2**20,
        "resident_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "indexed": len(session.index),
        "hits_percent": round(100 * stats.hits / max(1, stats.lookups), 1),
        "dropped": stats.dropped,
        "audits": stats.audits,
        "faults": stats.faults,
    }


def fork(session: Session) -> dict[str, object]:
    """Fork the session, let each fork play one chunk, and let go of all, forks first."""
    memory, timer, first, ends = session.memory, Timer(), Timer(), Timer()
    before, forks, encoded = memory.stats(), [], payload()
    for rollout in range(FORKS):
        timer(lambda rollout=rollout: forks.append(session.fork(rollout + 1)))
    copied = sum(tier.used_bytes for tier in memory.tiers) - sum(tier.used_bytes for tier in before.tiers)
    assert (copied, memory.stats().admitted_bytes) == (0, before.admitted_bytes), "a fork copied chunks"
    faults = memory.check_integrity([one.stored for one in (session, *forks)])
    for twin in forks:
        advance(twin, encoded, first)
    assert within_caps(memory)
    faults += memory.check_integrity([one.stored for one in (session, *forks)])
    for twin in forks:
        ends(twin.close)
    faults += memory.check_integrity([session.stored])
    session.close()
    faults += memory.check_integrity([])
    left = sum(tier.chunks for tier in memory.stats().tiers)
    assert (faults, left) == ([], 0), f"{left} chunks are left; {faults[:3]}"
    return {
        name: {clock: figures(np.array(one.ms[clock])) for clock in CLOCKS}
        for name, one in {"fork": timer, "first_chunk_of_a_fork": first, "close_of_a_fork": ends}.items()
    } | {"forks": FORKS, "chunk_bytes_copied": copied, "chunks_left_at_the_end": left, "faults": 0}


def verdict(session: dict[str, object], forks: dict[str, object]) -> dict[str, object]:
    """The two promises, by both clocks."""
    told: dict[str, object] = {}
    for clock in CLOCKS:
        first, *_, last = (tenth["p99_ms"] for tenth in session["chunk"][clock])
        told[clock] = {
            "p99_last_tenth_over_first": round(last / first, 3),
            "flat": last <= FLAT_RATIO * first,
            "largest_fork_ms": forks["fork"][clock]["max_ms"],
            "forks_in_time": forks["fork"][clock]["max_ms"] <= 1e3 * FORK_SECONDS,
        }
    return told


def lines(content: dict[str, object]) -> Iterator[str]:
    """The result as Markdown."""
    session, forks = content["session"], content["forks"]
    rows = [
        [f"{place + 1}", *(f"{of[place][key]:.2f}" for of in session["chunk"].values() for key in of[place])]
        for place in range(TENTHS)
    ]
    yield f"{content['chunks']} chunks of {content['chunk_bytes']} bytes; tiers of {content['capacity_mib']} MiB.\n"
    heads = [f"{name} {clock}, ms" for clock in CLOCKS for name in ("median", "p99", "max")]
    yield markdown_table(["tenth", *heads], rows)
    yield ""
    for clock, told in content["verdict"].items():
        yield f"- {clock}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
    for clock, told in session["idle"].items():
        yield f"- idle, {clock}: {told['seconds']} s, {told['share']:.2%} of the session, {told['max_ms']} ms at most"
    yield "\nChunks that brought back as many from disk, CPU time: median and p99 in ms, and how many there were.\n"
    works = [f"{start}-{stop - 1}" for start, stop in pairwise(DISK_READS)]
    rows = [
        [f"{n}", *(_cell(tenth.get(work)) for work in works)] for n, tenth in enumerate(session["same_work"]["cpu"], 1)
    ]
    yield markdown_table(["tenth", *(f"{work} from disk" for work in works)], rows)
    yield "\nAfter each tenth; `resident_mib` is the most that the process ever took.\n"
    marks = session["after"]
    yield markdown_table(["tenth", *marks[0]], [[f"{n}", *map(str, one.values())] for n, one in enumerate(marks, 1)])
    yield ""
    names = [name for name, one in forks.items() if isinstance(one, dict)]
    table = [
        [name, *(f"{forks[name][clock][key]:.3f}" for clock in CLOCKS for key in forks[name][clock])] for name in names
    ]
    yield markdown_table([f"{FORKS} forks", *heads], table)
    yield f"\n{forks['chunk_bytes_copied']} bytes of chunks copied, {forks['chunks_left_at_the_end']} chunks left."


def _cell(one: dict[str, float] | None) -> str:
    return "" if one is None else f"{one['median_ms']:.2f}, {one['p99_ms']:.2f} ({one['chunks']})"


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the disk tier's folder is made, and removed afterwards")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="a shorter session, with tiers as much smaller")
    parser.add_argument("--out", type=Path, help="result files, without their suffix")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="long_session_", dir=options.folder))
    try:
        session = new_session(root / "disk", options.chunks, options.chunks / CHUNKS)
        with settled():  # as `worldkv rollout` runs its sessions
            played = play(session, root / "disk", options.chunks)
            forks = fork(session)
        session.memory.close()
    finally:
        shutil.rmtree(root)
    content: dict[str, object] = {
        "circumstances": circumstances(MODEL.device),
        "chunks": options.chunks,
        "chunk_bytes": payload().nbytes,
        "capacity_mib": CAPACITY_MIB,
        "verdict": verdict(played, forks),
        "session": played,
        "forks": forks,
    }
    body = "\n".join(lines(content))
    print(body)
    if options.out:
        save(options.out, "A session of eight hours, and forks of it", body, content)


if __name__ == "__main__":
    main()
