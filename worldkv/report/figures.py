"""The numbers of a run that people compare: per policy, over worlds, over time. Pure functions of a RunResult.

A revisit counts only where the model made the frame itself: given frames are the truth and would flatter everyone.
Means over worlds weigh every world alike. Shapes: W worlds, F video frames, N chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from worldkv.results import PolicyRollout, RunResult, WorldRollouts

Floats = NDArray[np.float64]
MOST_WORLDS = 0.5
"""From this share of worlds on, a frame is marked as a revisit where all worlds share one time axis."""


@dataclass(frozen=True)
class PolicyFigures:
    """One row of the comparison. Means over worlds; deviations are standard deviations between worlds."""

    policy: str
    worlds: int
    """Worlds with at least one generated revisit: those the fidelity is taken from."""
    revisit_frames: int
    """Generated video frames that revisit, in all worlds."""
    psnr_mean_db: float | None
    """On revisits, against the truth; None when nothing was revisited."""
    psnr_deviation_db: float | None
    """None for fewer than two worlds."""
    ssim_mean: float | None
    ssim_deviation: float | None
    frames_per_second: float | None
    """Generated video frames of all worlds together per wall-clock second; None if not measured."""
    window_tokens: float
    """Attended to by the last chunk, its own included."""
    window_bytes: float
    """KV held inside the window after the last chunk, per world."""
    memory_bytes: float
    """KV held in memory after the last chunk, per world."""
    retrieved_chunks: int
    """Brought back over the whole run, in all worlds."""
    missed_chunks: int
    """Wanted but not available, in all worlds."""


class Band(NamedTuple):
    """A figure over time: mean over worlds, between the lowest and the highest world. NaN where no world has one."""

    mean_F: Floats
    low_F: Floats
    high_F: Floats


class KVSeries(NamedTuple):
    """What a policy holds after each chunk, mean over worlds."""

    frame_N: Floats
    """Video frames made when the chunk was finished."""
    window_bytes_N: Floats
    memory_bytes_N: Floats
    window_tokens_N: Floats


def policies(result: RunResult) -> list[str]:
    """The run's policies, in its own order."""
    return [rollout.policy for rollout in result.worlds[0].rollouts]


def rollouts_of(result: RunResult, policy: str) -> list[PolicyRollout]:
    """That policy's rollout in each world, in the order of the worlds."""
    return [rollout for world in result.worlds for rollout in world.rollouts if rollout.policy == policy]


def frame_count(world: WorldRollouts) -> int:
    """Video frames that every policy made: a trajectory may end in the middle of a chunk."""
    return min(len(rollout.psnr_F) for rollout in world.rollouts)


def generated_revisits(world: WorldRollouts) -> NDArray[np.bool_]:
    """Which frames [F] revisit and were made by the model."""
    flag_F = world.revisit_F[: frame_count(world)].copy()
    flag_F[: world.given_frames] = False
    return flag_F


def policy_figures(result: RunResult) -> list[PolicyFigures]:
    """One row per policy, in the order of the run."""
    return [_figures(result, policy) for policy in policies(result)]


def _figures(result: RunResult, policy: str) -> PolicyFigures:
    rollouts = rollouts_of(result, policy)
    flags = [generated_revisits(world) for world in result.worlds]
    pairs = [(rollout, flag_F) for rollout, flag_F in zip(rollouts, flags, strict=True) if flag_F.any()]
    psnr_W = [float(rollout.psnr_F[: len(flag_F)][flag_F].mean()) for rollout, flag_F in pairs]
    ssim_W = [float(rollout.ssim_F[: len(flag_F)][flag_F].mean()) for rollout, flag_F in pairs]
    last = [rollout.records[-1] for rollout in rollouts]
    records = [record for rollout in rollouts for record in rollout.records]
    return PolicyFigures(
        policy=policy,
        worlds=len(pairs),
        revisit_frames=sum(int(flag_F.sum()) for flag_F in flags),
        psnr_mean_db=_mean(psnr_W),
        psnr_deviation_db=_deviation(psnr_W),
        ssim_mean=_mean(ssim_W),
        ssim_deviation=_deviation(ssim_W),
        frames_per_second=result.frames_per_second.get(policy),
        window_tokens=float(np.mean([record.window_tokens for record in last])),
        window_bytes=float(np.mean([record.live_bytes for record in last])),
        memory_bytes=float(np.mean([record.stored_bytes for record in last])),
        retrieved_chunks=sum(len(record.retrieved) for record in records),
        missed_chunks=sum(record.missed for record in records),
    )


def _mean(value_W: list[float]) -> float | None:
    return float(np.mean(value_W)) if value_W else None


def _deviation(value_W: list[float]) -> float | None:
    return float(np.std(value_W, ddof=1)) if len(value_W) > 1 else None


def psnr_band(result: RunResult, policy: str) -> Band:
    """PSNR in dB per video frame over worlds; given frames have none."""
    rows = []
    for world, rollout in zip(result.worlds, rollouts_of(result, policy), strict=True):
        psnr_F = rollout.psnr_F.astype(np.float64)
        psnr_F[: world.given_frames] = np.nan
        rows.append(psnr_F)
    psnr_WF = _padded(rows)
    known_WF = ~np.isnan(psnr_WF)
    count_F = known_WF.sum(0)
    mean_F = np.where(known_WF, psnr_WF, 0.0).sum(0) / np.where(count_F, count_F, np.nan)
    # fmin and fmax pass over NaN where they can.
    return Band(mean_F, np.fmin.reduce(psnr_WF), np.fmax.reduce(psnr_WF))


def revisit_share(result: RunResult) -> Floats:
    """Per video frame, the share of worlds in which it is a generated revisit, 0 to 1."""
    flag_WF = _padded([generated_revisits(world).astype(np.float64) for world in result.worlds])
    return np.asarray(np.nan_to_num(flag_WF).mean(0), np.float64)


def kv_series(result: RunResult, policy: str) -> KVSeries:
    """Bytes and tokens after each chunk; worlds of different length are compared over the shortest."""
    rollouts = rollouts_of(result, policy)
    chunks = min(len(rollout.records) for rollout in rollouts)
    held_3N = np.zeros((3, chunks))
    for rollout in rollouts:
        records = rollout.records[:chunks]
        held_3N += [
            [getattr(record, name) for record in records] for name in ("live_bytes", "stored_bytes", "window_tokens")
        ]
    frame_N = np.arange(1, chunks + 1, dtype=np.float64) * result.frames_per_chunk
    window_N, memory_N, tokens_N = held_3N / len(rollouts)
    return KVSeries(frame_N, window_N, memory_N, tokens_N)


def psnr_so_far(world: WorldRollouts, rollout: PolicyRollout) -> Floats:
    """Mean PSNR in dB over the generated revisits up to and including each frame [F]; NaN before the first."""
    flag_F = generated_revisits(world)
    total_F = np.cumsum(np.where(flag_F, rollout.psnr_F[: len(flag_F)], 0.0), dtype=np.float64)
    count_F = np.cumsum(flag_F)
    return np.asarray(total_F / np.where(count_F, count_F, np.nan), np.float64)


def telling_gap(world: WorldRollouts) -> Floats:
    """How far the policies are apart in each frame [F], in dB; 0 but in the later half of the generated revisits.

    Early on, whatever is still in the window flatters those that forget.
    """
    flag_F = generated_revisits(world)
    flag_F &= np.cumsum(flag_F) > flag_F.sum() // 2
    psnr_PF = np.stack([rollout.psnr_F[: len(flag_F)] for rollout in world.rollouts])
    return np.where(flag_F, np.ptp(psnr_PF, axis=0), 0.0).astype(np.float64)


def _padded(rows: list[Floats]) -> Floats:
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=np.nan) for row in rows])
