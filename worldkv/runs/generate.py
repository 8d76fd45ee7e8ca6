"""Carry out a run: draw worlds, roll them out under each policy, commit episodes, then report.

Episodes are committed in a fixed order, so that a run that was stopped and resumed ends with the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from worldkv.config import RunConfig
from worldkv.dataset import DatasetReader, DatasetSchema, DatasetWriter, EncoderOptions, Episode
from worldkv.denoise import noise_levels
from worldkv.errors import ConfigError
from worldkv.memory.policy import MemoryPolicy, parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.models.rooms.model import SHIPPED_WEIGHTS, RoomsModel
from worldkv.report.figures import policy_figures
from worldkv.results import RunResult, WorldTruth
from worldkv.rollout import ChunkRecord, StageSeconds, rollout
from worldkv.runs import folder as run_folder
from worldkv.runs import memory_check
from worldkv.runs import worlds as run_worlds
from worldkv.runs.episodes import ACTION_NAMES, SCALARS, TRUTH_VIDEO, to_episode, to_worlds
from worldkv.runs.memory import open_memory, pin_faults
from worldkv.runs.meter import Meter
from worldkv.session import Session, open_session
from worldkv.stats import MemoryStats

Progress = Callable[[str, int, int], None]
"""(what is in work, chunks done, chunks in all)"""
Warn = Callable[[str], None]
"""(what does not go as it should, and what to do about it)"""


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
) -> Generated:
    """Roll out what the configuration asks for into its output folder. `meter`: whoever wants to watch.

    Committed episodes survive any interruption; `resume` continues after them. Whatever can be known to fail does
    so before any folder is touched. Raises the errors of `run_folder.claim`, of loading weights and
    trajectories, of `open_memory`, and OutputError on a full disk.
    """
    meter = meter or Meter()
    progress("loading the model", 0, 1)
    model = load_model(config)
    policies = [parse_policy(text) for text in config.policies]
    chunks = run_worlds.check(config, model)
    memory_check.check(config, model, policies, chunks)
    run_folder.check(config, resume=resume)
    progress("opening the memory", 0, 1)
    with closing(open_memory(config.memory, model, listener=meter.listener)) as memory:
        folder = run_folder.claim(config, resume=resume)
        schema, provenance = _schema(config, model, policies), _provenance(model)
        with DatasetWriter.open(folder / run_folder.DATASET, schema, provenance=provenance, resume=resume) as writer:
            work = _Work(config, model, policies, chunks, writer, memory, folder, progress, warn, meter)
            kept = len(writer.committed_keys)
            for start in range(0, config.worlds.count, config.batch_sessions):
                stop = min(start + config.batch_sessions, config.worlds.count)
                work.batch([config.worlds.first_seed + i for i in range(start, stop)])
            made = len(writer.committed_keys) - kept
        return Generated(folder, made, kept, work.fullest or memory.stats(), memory.stats())


@dataclass
class _Work:
    """The run's fixed parts, and how far it is."""

    config: RunConfig
    model: RoomsModel
    policies: Sequence[MemoryPolicy]
    chunks: int
    """Of each rollout."""
    writer: DatasetWriter
    memory: ChunkMemory
    folder: Path
    progress: Progress
    warn: Warn
    meter: Meter
    done: int = 0
    """Chunks of each batch that is behind us."""
    fullest: MemoryStats | None = None
    """See `Generated.memory`."""
    told: set[str] = field(default_factory=set)
    """Warnings that were given."""

    def batch(self, seeds: Sequence[int]) -> None:
        """Roll these worlds out under every policy; whatever is committed already is not made again."""
        worlds: list[WorldTruth] = []
        for policy in self.policies:
            missing = [seed for seed in seeds if _key(seed, policy) not in self.writer.committed_keys]
            if missing:
                worlds = worlds or self._draw(seeds)
                # The whole batch, not the missing part of it: a world must not depend on who shares its batch.
                episodes = self._roll(worlds, policy)
                for seed, episode in zip(seeds, episodes, strict=True):
                    if seed in missing:
                        self._tell(f"saving world {seed}, {policy.name}", self.chunks)
                        self.writer.commit(episode, _key(seed, policy))
            self.done += self.chunks

    def _draw(self, seeds: Sequence[int]) -> list[WorldTruth]:
        drawn = []
        for seed in seeds:
            self._tell(f"drawing world {seed}", 0)
            drawn.append(run_worlds.draw(self.config, self.model, seed))
        return drawn

    def _tell(self, what: str, chunks: int) -> None:
        batches = -(-self.config.worlds.count // self.config.batch_sessions)
        self.progress(what, self.done + chunks, self.chunks * len(self.policies) * batches)

    def _roll(self, worlds: Sequence[WorldTruth], policy: MemoryPolicy) -> list[Episode]:
        config, model, tenant = self.config, self.model, self.config.memory.tenant
        seed, clock = config.sampling.seed, self.meter.clock()
        with ExitStack() as open_sessions:
            sessions = []
            for world in worlds:
                where = (model, self.memory, policy, world.trajectory)
                sessions.append(open_session(*where, seed=seed, rollout=world.seed, tenant=tenant))
                open_sessions.callback(sessions[-1].close)
            records, made, seconds = self._advance(worlds, policy, sessions, clock)
            self._note_memory()
            self._warn_of(self.memory.check_integrity([session.stored for session in sessions], tenant=tenant))
        self._time(policy, made, seconds, clock)
        facts = self._facts(policy)
        return [
            to_episode(world, [batch[b] for batch in records], fps=config.output.video_fps, facts=facts)
            for b, world in enumerate(worlds)
        ]

    def _advance(
        self, worlds: Sequence[WorldTruth], policy: MemoryPolicy, sessions: Sequence[Session], clock: StageSeconds
    ) -> tuple[list[list[ChunkRecord]], int, float]:
        """To the end of the trajectories: all chunks, video frames generated, and the seconds these took."""
        sampling = self.config.sampling
        levels = noise_levels(sampling.denoise_steps, sampling.noise_shift)
        given = [w.truth_FHWC[: w.given_frames] for w in worlds]
        where = f"world {worlds[0].seed}" + (f" to {worlds[-1].seed}" if len(worlds) > 1 else "")
        made, seconds, mark, records = 0, 0.0, time.perf_counter(), []
        for batch in rollout(self.model, sessions, levels=levels, given=given, clock=clock):
            now = time.perf_counter()
            if batch[0].generated:
                made, seconds = made + sum(len(r.frames_FHWC) for r in batch), seconds + now - mark
            self.meter.batch(batch, [_key(w.seed, policy) for w in worlds], [w.truth_FHWC for w in worlds], mark, now)
            mark = now
            records.append(batch)
            self._warn_of(self.memory.idle(now))
            self.meter.tell(self.memory)
            self._tell(f"{where}, {policy.name}", len(records))
        return records, made, seconds

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

    def _time(self, policy: MemoryPolicy, made: int, seconds: float, clock: StageSeconds) -> None:
        timings = run_folder.read_timings(self.folder)
        entry = timings.setdefault(policy.name, {"generated_frames": 0, "seconds": 0.0, "stages": {}})
        entry["generated_frames"] += made
        entry["seconds"] += seconds
        for stage, took in clock.seconds.items():
            entry["stages"][stage] = entry["stages"].get(stage, 0.0) + took
        run_folder.write_text(self.folder / run_folder.TIMINGS, json.dumps(timings, indent=1) + "\n")

    def _facts(self, policy: MemoryPolicy) -> dict[str, int | float | str]:
        return {
            "policy": policy.name,
            "seed": self.config.sampling.seed,
            "history": self.config.history,
            "denoise_steps": self.config.sampling.denoise_steps,
            "model": self.model.name,
            "model_epoch": self.model.epoch,
        }


def _key(seed: int, policy: MemoryPolicy) -> str:
    return f"{run_worlds.name_of(seed)}/{policy.name}"


def _provenance(model: RoomsModel) -> dict[str, int | float | str]:
    return {"generator": "worldkv", "model": model.name, "model_epoch": model.epoch}


def _schema(config: RunConfig, model: RoomsModel, policies: Sequence[MemoryPolicy]) -> DatasetSchema:
    size = model.latent_shape[1:]
    facts = ("world", "trajectory", "policy", "history", "model", "model_epoch")
    counts = ("world_seed", "given_frames", "seed", "denoise_steps")
    return DatasetSchema(
        fps=config.output.video_fps,
        videos={"observation.images.main": size, TRUTH_VIDEO: size},
        action_names=ACTION_NAMES,
        retrieved_width=max(policy.retrieved_chunks for policy in policies),
        scalars=SCALARS,
        metadata={**dict.fromkeys(facts, "str"), **dict.fromkeys(counts, "int")},
        encoder=EncoderOptions(codec="ffv1") if config.output.lossless else EncoderOptions(),
    )


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
