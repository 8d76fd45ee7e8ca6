"""What looking ahead wins back where chunks lie far away: frames/s, stalls and hits, beside a memory that is near.

    python benchmarks/prefetch.py [--device cuda] [--worlds 4] [--frames 96] [--out benchmarks/prefetch_cpu_202611]

The same worlds go out and exactly back three times in each turn: with all chunks in tier 0 (nothing to wait for), with
tier 0 as small as a window and two chunks more of each world, and the rest on a disk that gives each chunk only after a
while, fetched when it is asked for, and the same with sessions that look ahead. The while is set so that reactive
fetches cost about a quarter of the throughput, measured in the same run. Turns take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from recording import circumstances, markdown_table, save

from worldkv.denoise import noise_levels
from worldkv.memory.chunk import KVChunk
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.policy import PRESETS
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tier import Tier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.rooms.model import RoomsModel
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.rollout import StageSeconds, rollout
from worldkv.session import Session, open_session
from worldkv.stats import MemoryStats

POLICY = PRESETS["worldkv"]
LOSS = 0.25  # of the throughput, that reactive fetches shall cost
READERS = 16
MODES = ("near", "reactive", "ahead")


class Distant(DiskTier):
    """A disk that takes its time for each chunk, however many are read at once."""

    seconds = 0.0

    def get(self, chunk_id: str) -> KVChunk:
        time.sleep(self.seconds)
        return super().get(chunk_id)


@dataclass(frozen=True)
class Turn:
    """One rollout of all worlds."""

    seconds: float
    """Of the chunks that were made."""
    stall_seconds: list[float]
    """Of each of these chunks: retrieving, and looking ahead."""
    memory: MemoryStats


def turn(model: RoomsModel, worlds: int, frames: int, mode: str, seconds_per_chunk: float, folder: Path) -> Turn:
    """Roll out all worlds as one batch, from an empty memory."""
    window = POLICY.retrieved_chunks * worlds
    size = chunk_bytes(model)
    device = ResidentTier("device", model.device, (10**6 if mode == "near" else window + 2 * worlds) * size)
    tiers: list[Tier] = [device]
    if mode != "near":
        disk = Distant.open("disk", folder, 2**33)
        disk.seconds = seconds_per_chunk
        tiers.append(disk)
    memory = ChunkMemory(tiers, model.epoch, mover=VerifyingMover(readers=ThreadPoolExecutor(READERS)))
    scenes = [Scene(world, model.latent_shape[1]) for world in range(worlds)]
    walks = [scene.trajectory("back", frames, Pace()) for scene in scenes]
    shown = [scene.truth(walk)[0][: frames // 2] for scene, walk in zip(scenes, walks, strict=True)]
    clock, made, stalls, looks = StageSeconds(), 0.0, [], Session.look_ahead
    with closing(memory), patch.object(Session, "look_ahead", looks if mode == "ahead" else lambda session: None):
        sessions = [open_session(model, memory, POLICY, walk, rollout=world) for world, walk in enumerate(walks)]
        before, waited = time.perf_counter(), 0.0
        for batch in rollout(model, sessions, levels=noise_levels(2, 3.0), given=shown, clock=clock):
            now, waiting = time.perf_counter(), clock.seconds["retrieve"] + clock.seconds.get("look ahead", 0.0)
            if batch[0].generated:
                made += now - before
                stalls.append(waiting - waited)
            before, waited = now, waiting
        stats = memory.stats()
        for session in sessions:
            session.close()
    return Turn(made, stalls, stats)


def chunk_bytes(model: RoomsModel) -> int:
    """Of one stored chunk, as a rollout of a few makes it."""
    memory = ChunkMemory([ResidentTier("device", model.device, 2**40)], model.epoch)
    session = open_session(model, memory, POLICY, Scene(0, model.latent_shape[1]).trajectory("wander", 15, Pace()))
    for _ in rollout(model, [session], levels=[1.0]):
        pass
    size = session.stored_bytes // len(session.stored)
    session.close()
    return size


def row(mode: str, turns: Sequence[Turn], frames: int) -> dict[str, str | float]:
    """Medians over turns; stalls over all chunks of all turns."""
    stalls = sorted(stall for turn in turns for stall in turn.stall_seconds)
    seconds, last = statistics.median(turn.seconds for turn in turns), turns[-1].memory
    chunk_seconds = seconds / len(turns[-1].stall_seconds)
    tier0, ahead = last.tiers[0], last.prefetch
    return {
        "mode": mode,
        "frames_per_second": round(frames / seconds, 2),
        "chunk_ms": round(1000 * chunk_seconds, 1),
        "stall_ms_mean": round(1000 * statistics.mean(stalls), 2),
        "stall_ms_p99": round(1000 * stalls[int(0.99 * (len(stalls) - 1))], 2),
        "hit_share_of_device": round(tier0.hits / max(1, tier0.lookups), 4),
        "prefetch_issued": ahead.issued,
        "prefetch_useful": ahead.useful,
        "prefetch_late": ahead.late,
        "prefetch_wasted": ahead.wasted,
    }


def main() -> None:
    """Measure, print a table, and write it down with --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = RoomsModel.load(device=torch.device(given.device))
    with tempfile.TemporaryDirectory() as root:
        near = turn(model, given.worlds, given.frames, "near", 0.0, Path(root))
        probe = turn(model, given.worlds, given.frames, "reactive", 0.0, Path(root) / "probe")
        # A reactive fetch waits for one chunk after the other.
        pause = LOSS / (1 - LOSS) * near.seconds / probe.memory.tiers[1].hits
        turns: dict[str, list[Turn]] = {mode: [] for mode in MODES}
        for number in range(given.turns):
            for mode in MODES:
                folder = Path(root) / f"{mode}{number}"
                turns[mode].append(turn(model, given.worlds, given.frames, mode, pause, folder))
    rows = [row(mode, turns[mode], given.worlds * given.frames // 2) for mode in MODES]
    near_s, reactive_s, ahead_s = (statistics.median(turn.seconds for turn in turns[mode]) for mode in MODES)
    figures = {
        "pause_per_chunk_ms": round(1000 * pause, 2),
        "reactive_loss_ratio": round(1 - near_s / reactive_s, 4),
        "won_back_ratio": round((reactive_s - ahead_s) / (reactive_s - near_s), 4),
    }
    table = markdown_table(list(rows[0]), [[str(value) for value in line.values()] for line in rows])
    print(table, figures, sep="\n\n")
    if given.out:
        body = table + "\n\n" + markdown_table(list(figures), [[str(value) for value in figures.values()]])
        content = {"circumstances": circumstances(model.device), "rows": rows, **figures}
        save(given.out, "Looking ahead, beside fetching when it is asked for", body, content)


if __name__ == "__main__":
    main()
