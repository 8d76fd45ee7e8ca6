"""Made-up runs: nothing is generated, but everything a report shows is plausible."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worldkv.camera import Trajectory
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.results import PolicyRollout, RunResult, WorldRollouts
from worldkv.rollout import ChunkRecord

SIZE, FRAMES, GIVEN, PER_CHUNK = 40, 48, 24, 3
CHUNK_BYTES = {"full": 4_915_200, "sliding": 4_915_200, "worldkv": 614_400}


def records_of(policy: str, frames_FHWC: NDArray[np.uint8], given: int) -> tuple[ChunkRecord, ...]:
    """One record per chunk, with the books of a sink of one chunk and two recent ones."""
    records = []
    for chunk in range(len(frames_FHWC) // PER_CHUNK):
        past = max(0, chunk - 3)
        retrieved = tuple(range(1, 1 + min(4, past))) if policy == "worldkv" else ()
        live = chunk + 1 if policy == "full" else min(3, chunk + 1)
        records.append(
            ChunkRecord(
                chunk=chunk,
                frames_FHWC=frames_FHWC[chunk * PER_CHUNK : (chunk + 1) * PER_CHUNK],
                generated=chunk * PER_CHUNK >= given,
                retrieved=retrieved,
                missed=int(policy == "worldkv" and chunk == 12),
                window_tokens=192 * (live + 1 + len(retrieved)),
                live_bytes=live * CHUNK_BYTES["full"],
                stored_bytes=past * CHUNK_BYTES["worldkv"] if policy == "worldkv" else 0,
            )
        )
    return tuple(records)


def run_of(worlds: Sequence[WorldRollouts], fps: int = 2) -> RunResult:
    """A run of these worlds."""
    policies = [rollout.policy for rollout in worlds[0].rollouts]
    return RunResult(
        model="rooms",
        epoch="3f9a",
        frames_per_chunk=PER_CHUNK,
        fps=fps,
        worlds=tuple(worlds),
        frames_per_second=dict.fromkeys(policies, 4.5),
        stage_seconds={policy: {"retrieve": 0.1, "denoise": 3.0 + i} for i, policy in enumerate(policies)},
        config_yaml="worlds: 3\nnote: <b>&amp;</b>\n",
        command="worldkv rollout configs/demo.yaml",
    )


def flat_world(psnr: dict[str, Sequence[float]], revisits: Sequence[int], given: int, seed: int = 0) -> WorldRollouts:
    """A world of grey pictures whose PSNR per frame is dictated."""
    frames = len(next(iter(psnr.values())))
    grey_FHWC = np.full((frames, 4, 4, 3), 128, np.uint8)
    revisit_F = np.zeros(frames, bool)
    revisit_F[list(revisits)] = True
    rollouts = tuple(
        PolicyRollout(name, records_of(name, grey_FHWC, given), np.float32(db), np.float32(db) / 100)
        for name, db in psnr.items()
    )
    path = Trajectory(
        c2w_F44=np.tile(np.eye(4), (frames, 1, 1)), intrinsics_F4=np.tile([2.0, 2.0, 2.0, 2.0], (frames, 1))
    )
    return WorldRollouts(f"world-{seed}", seed, path, grey_FHWC, revisit_F, given, rollouts)


def rooms_world(seed: int) -> WorldRollouts:
    """A true room: full KV is a little noisy, the sliding window loses the second half, WorldKV stays near."""
    scene, rng = Scene(seed, SIZE), np.random.default_rng(seed)
    trajectory = scene.trajectory("back", FRAMES, Pace())
    truth_FHWC, depth_FHW = scene.truth(trajectory)
    revisit_F = scene.revisits(trajectory, depth_FHW, chunk=PER_CHUNK, recent_chunks=2)
    made = {
        "full": truth_FHWC + rng.normal(0, 8, truth_FHWC.shape),
        "sliding": np.roll(truth_FHWC, SIZE // 2, axis=2) * 0.6 + 40,
        "worldkv": truth_FHWC + rng.normal(0, 4, truth_FHWC.shape),
    }
    rollouts = []
    for policy, wish_FHWC in made.items():
        frames_FHWC = wish_FHWC.clip(0, 255).astype(np.uint8)
        frames_FHWC[:GIVEN] = truth_FHWC[:GIVEN]
        error_F = ((frames_FHWC / 255.0 - truth_FHWC / 255.0) ** 2).mean((1, 2, 3))
        psnr_F = np.float32(-10 * np.log10(np.maximum(error_F, 1e-6)))
        rollouts.append(PolicyRollout(policy, records_of(policy, frames_FHWC, GIVEN), psnr_F, psnr_F / 60))
    return WorldRollouts(f"rooms-{seed}", seed, trajectory, truth_FHWC, revisit_F, GIVEN, tuple(rollouts))
