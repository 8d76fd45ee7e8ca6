"""Carry out a run: draw worlds, roll them out under each policy, commit episodes, then report.

Episodes are committed in a fixed order, so that a run that was stopped and resumed ends with the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from worldkv.config import RunConfig
from worldkv.dataset import DatasetReader, DatasetWriter, Episode
from worldkv.errors import ConfigError
from worldkv.memory.policy import parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.models.rooms.model import SHIPPED_WEIGHTS, RoomsModel
from worldkv.report.figures import policy_figures
from worldkv.results import RunResult, WorldTruth
from worldkv.runs import folder as run_folder
from worldkv.runs import worlds as run_worlds
from worldkv.runs.batch import Batch, BatchRollout, Outline, Took, batches, outline
from worldkv.runs.episodes import to_worlds
from worldkv.runs.memory import open_memory, pin_faults
from worldkv.runs.meter import Meter
from worldkv.runs.settled import settled
from worldkv.stats import MemoryStats

Progress = Callable[[str, int, int], None]
"""(what is in work, chunks done, chunks in all)"""
Warn = Callable[[str], None]
"""(what does not go as it should, and what to do about it)"""
Rolled = Callable[[BatchRollout], None]


def load_model(config: RunConfig) -> RoomsModel:
    """The configured model. Raises CheckpointError, or ConfigError for a device that is not there."""
    wanted = config.model.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device = 'cuda': torch finds no CUDA device here")
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return RoomsModel.load(config.model.weights or SHIPPED_WEIGHTS, torch.device("cuda" if cuda else "cpu"))


@dataclass(frozen=True)
class Generated:
    """What `generate` did."""

    folder: Path
    made: int
    """Episodes committed now."""
    kept: int
    """Episodes that were there already."""
    memory: MemoryStats
    """All lookups, and each tier as full as it was at the end of some batch."""
    left: MemoryStats
    """The memory at the end, when no session holds any chunk."""


def generate(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda name, done, total: None,
    warn: Warn = lambda text: None,
    meter: Meter | None = None,
    rolled: Rolled = lambda under_way: None,
) -> Generated:
    """Roll out what the configuration asks for into its output folder.

    Committed episodes survive any interruption; `resume` continues after them. `rolled` is told of every batch that was
    rolled out, while its sessions are still open. Whatever can be known to fail does
    so before any folder is touched. Raises the errors of `run_folder.claim`, of loading weights and
    trajectories, of `open_memory`, and OutputError on a full disk.
    """
    meter = meter or Meter()
    progress("loading the model", 0, 1)
    model = load_model(config)
    ahead = outline(config, model)
    run_folder.check(config, resume=resume)
    progress("opening the memory", 0, 1)
    with closing(open_memory(config.memory, model, listener=meter.listener)) as memory, settled():
        folder = run_folder.claim(config, resume=resume)
        with open_dataset(folder, ahead, resume=resume) as writer:
            work = _Work(config, model, ahead.chunks, writer, memory, folder, progress, warn, meter, rolled)
            kept = len(writer.committed_keys)
            for batch in batches(config):
                work.roll(batch)
            made = len(writer.committed_keys) - kept
        return Generated(folder, made, kept, work.fullest or memory.stats(), memory.stats())


def open_dataset(folder: Path, ahead: Outline, *, resume: bool) -> DatasetWriter:
    """The dataset of a run's folder. Raises as `DatasetWriter.open`."""
    return DatasetWriter.open(folder / run_folder.DATASET, ahead.schema, provenance=ahead.provenance, resume=resume)


@dataclass
class _Work:
    """The run's fixed parts, and how far it is."""

    config: RunConfig
    model: RoomsModel
    chunks: int
    """Of each rollout."""
    writer: DatasetWriter
    memory: ChunkMemory
    folder: Path
    progress: Progress
    warn: Warn
    meter: Meter
    rolled: Rolled
    done: int = 0
    """Chunks of each batch that is behind us."""
    fullest: MemoryStats | None = None
    """See `Generated.memory`."""
    told: set[str] = field(default_factory=set)
    """Warnings that were given."""
    drawn: list[WorldTruth] = field(default_factory=list)
    """The worlds of the newest batch: the next one often is of the same."""

    def roll(self, batch: Batch) -> None:
        """Roll a batch out; what is committed already is not made again."""
        missing = [key for key in batch.keys if key not in self.writer.committed_keys]
        if missing:
            # The whole batch, not the missing part of it: a world must not depend on who shares its batch.
            for key, episode in zip(batch.keys, self._make(batch), strict=True):
                if key in missing:
                    self._tell(f"saving {key}", self.chunks)
                    self.writer.commit(episode, key)
        self.done += self.chunks

    def _make(self, batch: Batch) -> list[Episode]:
        if tuple(world.seed for world in self.drawn) != batch.seeds:
            self.drawn = self._draw(batch.seeds)
        where = (self.config, self.model, batch, self.drawn, self.meter)
        with closing(BatchRollout(*where).begin(self.memory)) as under_way:
            while not under_way.finished:
                under_way.step()
                self._warn_of(self.memory.idle(time.perf_counter()))
                self.meter.tell(self.memory)
                self._tell(str(batch), len(under_way.records))
            self._note_memory()
            self._warn_of(under_way.check_integrity())
            episodes = under_way.episodes()
            self.rolled(under_way)
        add_timings(self.folder, batch, under_way.took)
        return episodes

    def _draw(self, seeds: Sequence[int]) -> list[WorldTruth]:
        drawn = []
        for seed in seeds:
            self._tell(f"drawing world {seed}", 0)
            drawn.append(run_worlds.draw(self.config, self.model, seed))
        return drawn

    def _tell(self, what: str, chunks: int) -> None:
        self.progress(what, self.done + chunks, self.chunks * len(batches(self.config)))

    def _note_memory(self) -> None:
        """While sessions still hold their chunks."""
        self.fullest = self.memory.stats().at_fullest(self.fullest)
        self._warn_of(pin_faults(self.memory))

    def _warn_of(self, faults: Sequence[str]) -> None:
        """Of each once: bugs, or tiers that someone else has changed; a run goes on."""
        for fault in faults:
            if fault not in self.told:
                self.told.add(fault)
                self.warn(fault)


def add_timings(folder: Path, batch: Batch, took: Took) -> None:
    """Add what a batch took to the run's figures of its policy. Raises OutputError."""
    timings = run_folder.read_timings(folder)
    entry = timings.setdefault(parse_policy(batch.policy).name, {"generated_frames": 0, "seconds": 0.0, "stages": {}})
    entry["generated_frames"] += took.made
    entry["seconds"] += took.seconds
    for stage, seconds in took.clock.seconds.items():
        entry["stages"][stage] = entry["stages"].get(stage, 0.0) + seconds
    run_folder.write_text(folder / run_folder.TIMINGS, json.dumps(timings, indent=1) + "\n")


def collect(folder: Path, config: RunConfig, command: str) -> RunResult:
    """What a finished run came out as, read from its folder. Raises DatasetError on a damaged dataset."""
    reader = DatasetReader.open(folder / run_folder.DATASET)
    timings = run_folder.read_timings(folder)
    chunk = load_model(config).geometry.chunk_latent_frames
    return RunResult(
        model=str(reader.identity.provenance["model"]),
        epoch=str(reader.identity.provenance["model_epoch"]),
        frames_per_chunk=chunk,
        fps=config.output.video_fps,
        worlds=to_worlds(list(reader), chunk),
        frames_per_second={p: t["generated_frames"] / t["seconds"] for p, t in timings.items() if t["seconds"]},
        stage_seconds={p: t["stages"] for p, t in timings.items()},
        config_yaml=config.to_yaml(),
        command=command,
    )


def summary(result: RunResult) -> str:
    """The run's figures per policy as JSON text."""
    content = {
        "model": result.model,
        "model_epoch": result.epoch,
        "worlds": [{"name": w.name, "seed": w.seed, "trajectory": w.trajectory.name} for w in result.worlds],
        "policies": [asdict(figures) for figures in policy_figures(result)],
        "command": result.command,
    }
    return json.dumps(content, indent=1) + "\n"
