"""The memory benchmark on the rooms model: policies x paths x lengths x histories, over many worlds.

A path leaves places and comes back. With history `truth` the model is shown the true first half and must make the
second; a frame is scored against the truth where nearly all it shows was seen in that first half, before the recent
window. With history `own` everything but the first chunk is generated, and a frame is scored against the session's own
first visit of the same pose: does the world it made up stay as it was?

Shapes: F video frames, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from worldkv.camera import Trajectory
from worldkv.denoise import noise_levels
from worldkv.errors import ConfigError
from worldkv.eval.fidelity import psnr, ssim
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.rooms.layout import UNTRAINED_SEEDS
from worldkv.models.rooms.model import RoomsModel
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import PathKind, Scene
from worldkv.rollout import ChunkRecord, rollout
from worldkv.session import Session, open_session

History = Literal["truth", "own"]
# Two poses are the same place when they differ by less than this; the paths repeat poses exactly or not at all.
SAME_POSE = 1e-3


@dataclass(frozen=True)
class Settings:
    """What all cases of a benchmark share."""

    worlds: int = 8
    seed: int = 0
    """First world; worlds seed .. seed + worlds - 1 are used. Training saw none below UNTRAINED_SEEDS."""
    denoise_steps: int = 2
    noise_shift: float = 3.0
    batch: int = 8
    """Worlds rolled out together."""
    memory_bytes: int = 64 * 2**30
    """Capacity of the chunk memory; ample, so that no policy is held back by it."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    policy: str
    path: str
    frames: int
    history: History
    psnr_mean: float
    """dB; mean over worlds of the mean over scored frames."""
    psnr_ci95: float
    """Half width of the 95 % interval of that mean over worlds (Student's t); NaN for a single world."""
    ssim_mean: float
    window_tokens_mean: float
    """Tokens attended to, the chunk's own included, over the scored half."""
    stored_bytes_per_chunk: float
    """Of evicted chunks in memory; for a policy that evicts nothing, of the chunks in its window."""
    frames_per_second: float
    """Generated video frames of all worlds in the batch over wall-clock seconds."""
    retrieved_mean: float
    """Chunks brought back per generated chunk."""
    worlds: int
    scored_frames_mean: float
    """Revisit frames per world."""
    psnr_per_world: tuple[float, ...] = ()
    """By seed, worlds without a revisit left out: the same worlds under every policy, to be compared pair by pair."""

    def as_json(self) -> dict[str, object]:
        """The row as plain JSON values; None for what could not be measured, because JSON has no NaN."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _World:
    scene: Scene
    trajectory: Trajectory
    truth_FHWC: NDArray[np.uint8]
    revisit_F: NDArray[np.bool_]


Case = tuple[PathKind, int, History, MemoryPolicy]
"""path, video frames, history, policy"""
Progress = Callable[[str, int, int], None]
"""(case, chunks done, chunks in all)"""


def cases(
    policies: Sequence[MemoryPolicy],
    paths: Sequence[PathKind],
    frames: Sequence[int],
    histories: Sequence[History],
) -> list[Case]:
    """All cases, ordered so that worlds are rendered once per path and length."""
    return [
        (path, n, history, policy) for path in paths for n in frames for history in histories for policy in policies
    ]


def run(
    model: RoomsModel,
    settings: Settings,
    wanted: Sequence[Case],
    progress: Progress = lambda case, done, total: None,
) -> Iterator[Row]:
    """Roll out every case and yield its row as soon as it is there. Raises ConfigError on unusable lengths."""
    per_chunk = model.geometry.chunk_latent_frames
    if settings.seed + settings.worlds > UNTRAINED_SEEDS:
        raise ConfigError(
            f"seed={settings.seed}, worlds={settings.worlds}: worlds from {UNTRAINED_SEEDS} on served in training"
        )
    for _, frames, _, _ in wanted:
        if frames % (2 * per_chunk):
            raise ConfigError(f"frames={frames}: must be a multiple of {2 * per_chunk}, two halves of whole chunks")
    drawn: tuple[PathKind, int] | None = None
    worlds: list[_World] = []
    for path, frames, history, policy in wanted:
        if drawn != (path, frames):
            worlds, drawn = _draw(model, settings, path, frames, progress), (path, frames)
        yield _case(model, settings, worlds, history, policy, path, progress)


def _draw(model: RoomsModel, settings: Settings, path: PathKind, frames: int, progress: Progress) -> list[_World]:
    size = model.latent_shape[1]
    worlds: list[_World] = []
    for seed in range(settings.seed, settings.seed + settings.worlds):
        progress(f"drawing world {seed}, {path} {frames}", 0, 1)
        scene = Scene(seed, size, model.device)
        trajectory = scene.trajectory(path, frames, Pace())
        truth, depth = scene.truth(trajectory)
        # The recent window of the default policies; one definition of a revisit for all of them.
        revisit = scene.revisits(
            trajectory,
            depth,
            chunk=model.geometry.chunk_latent_frames,
            recent_chunks=MemoryPolicy("").recent_chunks or 0,
            # What a session saw only in its own second half it made up, and no truth can judge that.
            given=frames // 2,
        )
        worlds.append(_World(scene, trajectory, truth, revisit))
    return worlds


def _case(
    model: RoomsModel,
    settings: Settings,
    worlds: Sequence[_World],
    history: History,
    policy: MemoryPolicy,
    path: PathKind,
    progress: Progress,
) -> Row:
    frames = len(worlds[0].trajectory)
    name = f"{policy.name} {path} {frames} {history}"
    outcomes: list[_Outcome] = []
    generated, seconds, behind = 0, 0.0, 0
    chunks = frames // model.geometry.chunk_latent_frames
    total = chunks * -(-len(worlds) // settings.batch)
    for start in range(0, len(worlds), settings.batch):

        def tick(done: int, behind: int = behind) -> None:
            progress(name, behind + done, total)

        batch, made, took = _roll(model, settings, worlds[start : start + settings.batch], history, policy, tick)
        behind += chunks
        outcomes += batch
        generated, seconds = generated + made, seconds + took
    scored = [x for x in outcomes if x.scored]
    psnrs = np.array([x.psnr for x in scored])
    return Row(
        policy=policy.name,
        path=path,
        frames=frames,
        history=history,
        psnr_mean=_mean(psnrs),
        psnr_ci95=_half_interval(psnrs),
        ssim_mean=_mean([x.ssim for x in scored]),
        window_tokens_mean=_mean([x.window_tokens for x in outcomes]),
        stored_bytes_per_chunk=_mean([x.bytes_per_chunk for x in outcomes]),
        frames_per_second=round(generated / seconds, 3),
        retrieved_mean=_mean([x.retrieved for x in outcomes]),
        worlds=len(scored),
        scored_frames_mean=_mean([x.scored for x in scored]),
        psnr_per_world=tuple(round(x.psnr, 4) for x in scored),
    )


@dataclass(frozen=True)
class _Outcome:
    """One world of one case."""

    psnr: float
    ssim: float
    scored: int
    window_tokens: float
    bytes_per_chunk: float
    retrieved: float


def _roll(
    model: RoomsModel,
    settings: Settings,
    worlds: Sequence[_World],
    history: History,
    policy: MemoryPolicy,
    tick: Callable[[int], None],
) -> tuple[list[_Outcome], int, float]:
    """Outcomes of a batch, and its generated frames and the seconds they took."""
    tier = ResidentTier("device", model.device, settings.memory_bytes)
    memory = ChunkMemory([tier], model.epoch)
    sessions = [
        open_session(model, memory, policy, w.trajectory, seed=settings.seed, rollout=w.scene.seed) for w in worlds
    ]
    frames = len(worlds[0].trajectory)
    shown = frames // 2 if history == "truth" else model.geometry.chunk_latent_frames
    levels = noise_levels(settings.denoise_steps, settings.noise_shift)
    records: list[list[ChunkRecord]] = []
    generated, seconds, started = 0, 0.0, time.perf_counter()
    for batch in rollout(model, sessions, levels=levels, given=[w.truth_FHWC[:shown] for w in worlds]):
        now = time.perf_counter()
        if batch[0].generated:
            generated, seconds = generated + sum(len(r.frames_FHWC) for r in batch), seconds + now - started
        started = now
        records.append(batch)
        tick(len(records))
    outcomes = []
    for b, (world, session) in enumerate(zip(worlds, sessions, strict=True)):
        outcomes.append(_score(world, session, [batch[b] for batch in records], history))
        session.close()
    return outcomes, generated, seconds


def _score(world: _World, session: Session, records: Sequence[ChunkRecord], history: History) -> _Outcome:
    video = np.concatenate([record.frames_FHWC for record in records])
    frames = np.arange(len(video))
    if history == "truth":
        late = frames[(frames >= len(video) // 2) & world.revisit_F]
        reference = world.truth_FHWC[late]
    else:
        late, first = own_revisits(world.trajectory, session.video_frames_per_chunk)
        reference = video[first]
    second_half = [record for record in records if record.chunk >= len(records) // 2]
    stored = len(session.stored)
    return _Outcome(
        psnr=float(psnr(video[late], reference).mean()) if len(late) else float("nan"),
        ssim=float(ssim(video[late], reference).mean()) if len(late) else float("nan"),
        scored=len(late),
        window_tokens=float(np.mean([record.window_tokens for record in second_half])),
        bytes_per_chunk=session.stored_bytes / stored if stored else session.live_bytes / len(session.live),
        retrieved=float(np.mean([len(record.retrieved) for record in second_half])),
    )


def own_revisits(trajectory: Trajectory, per_chunk: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames of the second half whose pose an earlier chunk outside the recent window had, and its first frame."""
    pose = trajectory.c2w_F44[:, :3].reshape(len(trajectory), -1)
    recent = MemoryPolicy("").recent_chunks or 0
    late, first = [], []
    for frame in range(len(pose) // 2, len(pose)):
        seen = max(0, frame // per_chunk - recent) * per_chunk
        # The first chunk was given, not made: its frames say nothing about the model's own world.
        match = np.flatnonzero(np.abs(pose[per_chunk:seen] - pose[frame]).max(axis=1) < SAME_POSE)
        if len(match):
            late.append(frame)
            first.append(int(match[0]) + per_chunk)
    return np.array(late, np.int64), np.array(first, np.int64)


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else float("nan")


def _half_interval(values: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of the mean; by Student's t, for 1.96 would flatter a few worlds."""
    n = len(values)
    return round(float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n)), 3) if n > 1 else float("nan")
