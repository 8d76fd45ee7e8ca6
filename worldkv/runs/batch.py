"""The unit of work of a run: worlds rolled out together under one policy, chunk by chunk.

A batch is never split, for a world must not depend on who shares its batch. Between chunks it may be left and taken up
again from snapshots of its sessions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from worldkv.config import RunConfig
from worldkv.dataset import DatasetSchema, EncoderOptions, Episode
from worldkv.denoise import noise_levels
from worldkv.memory.policy import MemoryPolicy, parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.models.rooms.model import RoomsModel
from worldkv.results import WorldTruth
from worldkv.rollout import ChunkRecord, StageSeconds, rollout
from worldkv.runs import memory_check
from worldkv.runs import worlds as run_worlds
from worldkv.runs.episodes import ACTION_NAMES, SCALARS, TRUTH_VIDEO, to_episode
from worldkv.runs.meter import Meter
from worldkv.session import Session, open_session


@dataclass(frozen=True)
class Batch:
    """Which worlds, under which policy."""

    number: int
    """Its place in the order of commits, from 0."""
    seeds: tuple[int, ...]
    policy: str
    """As the configuration writes it."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its episodes in the dataset, in the order of `seeds`."""
        name = parse_policy(self.policy).name
        return tuple(f"{run_worlds.name_of(seed)}/{name}" for seed in self.seeds)

    def __str__(self) -> str:
        worlds = f"world {self.seeds[0]}" + (f" to {self.seeds[-1]}" if len(self.seeds) > 1 else "")
        return f"{worlds}, {parse_policy(self.policy).name}"


def batches(config: RunConfig) -> list[Batch]:
    """All batches of a run in the order of commits."""
    first, count, size = config.worlds.first_seed, config.worlds.count, config.batch_sessions
    groups = [tuple(range(first + at, first + min(at + size, count))) for at in range(0, count, size)]
    cells = [(seeds, policy) for seeds in groups for policy in config.policies]
    return [Batch(number, *cell) for number, cell in enumerate(cells)]


@dataclass(frozen=True)
class Outline:
    """What is known of a run once its weights are loaded."""

    chunks: int
    """Of each rollout."""
    schema: DatasetSchema
    provenance: Mapping[str, int | float | str]


def outline(config: RunConfig, model: RoomsModel) -> Outline:
    """Raises TrajectoryError, ConfigError or OutputError for whatever can be known to fail before anything is made."""
    policies = [parse_policy(text) for text in config.policies]
    chunks = run_worlds.check(config, model)
    memory_check.check(config, model, policies, chunks)
    provenance = {"generator": "worldkv", "model": model.name, "model_epoch": model.epoch}
    return Outline(chunks, _schema(config, model, policies), provenance)


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


@dataclass
class Took:
    """What a batch, or a policy, cost in time."""

    made: int = 0
    """Video frames generated."""
    seconds: float = 0.0
    """These took, wall clock."""
    clock: StageSeconds = field(default_factory=StageSeconds)


class BatchRollout:
    """One batch under way, from its `begin`, or from snapshots of its sessions. Single-threaded; close it."""

    def __init__(
        self, config: RunConfig, model: RoomsModel, batch: Batch, worlds: Sequence[WorldTruth], meter: Meter
    ) -> None:
        self.config, self.model, self.batch, self.worlds, self.meter = config, model, batch, worlds, meter
        self.sessions: list[Session] = []
        """In the order of the worlds."""
        self.records: list[list[ChunkRecord]] = []
        """Of each chunk so far, in the order of the worlds."""
        self.took = Took(clock=meter.clock())
        self._steps: Iterator[list[ChunkRecord]] | None = None

    def begin(self, memory: ChunkMemory) -> BatchRollout:
        """Open all sessions at the start of their trajectories."""
        policy = parse_policy(self.batch.policy)
        seed, tenant = self.config.sampling.seed, self.config.memory.tenant
        for world in self.worlds:
            where = (self.model, memory, policy, world.trajectory)
            self.sessions.append(open_session(*where, seed=seed, rollout=world.seed, tenant=tenant))
        return self

    @property
    def finished(self) -> bool:
        """Whether all trajectories are used up."""
        return all(session.finished for session in self.sessions)

    def step(self) -> list[ChunkRecord]:
        """Make the next chunk of every world."""
        if self._steps is None:
            sampling = self.config.sampling
            levels = noise_levels(sampling.denoise_steps, sampling.noise_shift)
            given = [world.truth_FHWC[: world.given_frames] for world in self.worlds]
            self._steps = rollout(self.model, self.sessions, levels=levels, given=given, clock=self.took.clock)
        started = time.perf_counter()
        records = next(self._steps)
        ended = time.perf_counter()
        if records[0].generated:
            self.took.made += sum(len(record.frames_FHWC) for record in records)
            self.took.seconds += ended - started
        self.meter.batch(records, self.batch.keys, [world.truth_FHWC for world in self.worlds], started, ended)
        self.records.append(records)
        return records

    def check_integrity(self) -> list[str]:
        """Faults in the books of the memory, while the sessions still hold their chunks."""
        held = [session.stored for session in self.sessions]
        return self.sessions[0].memory.check_integrity(held, tenant=self.config.memory.tenant)

    def episodes(self) -> list[Episode]:
        """In the order of the worlds, once finished."""
        facts: dict[str, int | float | str] = {
            "policy": parse_policy(self.batch.policy).name,
            "seed": self.config.sampling.seed,
            "history": self.config.history,
            "denoise_steps": self.config.sampling.denoise_steps,
            "model": self.model.name,
            "model_epoch": self.model.epoch,
        }
        fps = self.config.output.video_fps
        return [
            to_episode(world, [records[b] for records in self.records], fps=fps, facts=facts)
            for b, world in enumerate(self.worlds)
        ]

    def close(self) -> None:
        """Let go of all stored chunks; closing twice is allowed."""
        while self.sessions:
            self.sessions.pop().close()
