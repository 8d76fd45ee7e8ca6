import numpy as np
import pytest

from worldkv.camera import Trajectory, planar_poses
from worldkv.dataset import Episode
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.results import WorldTruth
from worldkv.rollout import ChunkRecord
from worldkv.runs.episodes import MIB, camera_actions, to_episode, to_worlds

PER_CHUNK, CHUNKS, SIZE = 3, 4, 16
FRAMES = PER_CHUNK * CHUNKS


def integrated(trajectory: Trajectory) -> np.ndarray:
    """Planar states (x, z, yaw in radians) that the actions lead to from the first pose, step by step."""
    first = trajectory.c2w_F44[0]
    x, z, yaw = first[0, 3], first[2, 3], np.arctan2(first[0, 2], first[2, 2])
    states = [(x, z, yaw)]
    for right, forward, turn in camera_actions(trajectory)[:-1]:
        x += right * np.cos(yaw) + forward * np.sin(yaw)
        z += -right * np.sin(yaw) + forward * np.cos(yaw)
        yaw += np.radians(turn)
        states.append((x, z, yaw))
    return np.array(states)


@pytest.mark.parametrize("kind", ["back", "roam", "wander"])
def test_actions_integrate_back_to_the_poses(kind):
    trajectory = Scene(7, SIZE).trajectory(kind, 120, Pace())
    x, z, yaw = integrated(trajectory).T
    np.testing.assert_allclose(planar_poses(x, z, np.degrees(yaw)), trajectory.c2w_F44, atol=1e-4)


def test_a_turn_through_the_back_stays_small():
    yaw = np.array([170.0, 176.0, 182.0, 188.0, 182.0])
    trajectory = Trajectory(planar_poses(np.zeros(5), np.zeros(5), yaw), np.ones((5, 4)))
    np.testing.assert_allclose(camera_actions(trajectory)[:, 2], [6, 6, 6, -6, 0], atol=1e-4)


def test_nothing_follows_the_last_frame_so_its_action_is_zero():
    trajectory = Scene(7, SIZE).trajectory("wander", 9, Pace())
    assert camera_actions(trajectory)[-1].tolist() == [0, 0, 0]


def record(chunk: int, rng: np.random.Generator) -> ChunkRecord:
    return ChunkRecord(
        chunk=chunk,
        frames_FHWC=rng.integers(0, 256, (PER_CHUNK, SIZE, SIZE, 3), dtype=np.uint8),
        generated=chunk >= 2,
        retrieved=tuple(range(max(0, chunk - 2))),
        missed=chunk % 2,
        window_tokens=192 * (chunk + 1),
        live_bytes=chunk * MIB // 2,
        stored_bytes=chunk * 12345 * 1024,
    )


def world(seed: int) -> WorldTruth:
    scene = Scene(seed, SIZE)
    trajectory = scene.trajectory("back", FRAMES, Pace())
    truth, _ = scene.truth(trajectory)
    return WorldTruth(f"rooms-{seed}", seed, trajectory, truth, np.arange(FRAMES) > 7, given_frames=6)


def episode(of: WorldTruth, policy: str, records: list[ChunkRecord]) -> Episode:
    return to_episode(of, records, fps=12, facts={"policy": policy})


def test_episodes_come_back_as_the_worlds_and_rollouts_they_were_made_of():
    rng = np.random.default_rng(0)
    worlds = [world(3), world(1)]
    made = {(w.name, p): [record(c, rng) for c in range(CHUNKS)] for p in ("sliding", "worldkv") for w in worlds}
    by_name = {w.name: w for w in worlds}
    found = to_worlds([episode(by_name[name], policy, r) for (name, policy), r in made.items()], PER_CHUNK)
    assert [w.name for w in found] == ["rooms-3", "rooms-1"]
    for got in found:
        wanted = by_name[got.name]
        assert (got.seed, got.given_frames, got.trajectory.name) == (wanted.seed, 6, wanted.trajectory.name)
        np.testing.assert_allclose(got.trajectory.c2w_F44, wanted.trajectory.c2w_F44, atol=1e-6)
        np.testing.assert_array_equal(got.truth_FHWC, wanted.truth_FHWC)
        np.testing.assert_array_equal(got.revisit_F, wanted.revisit_F)
        assert [rollout.policy for rollout in got.rollouts] == ["sliding", "worldkv"]
        for rollout in got.rollouts:
            for one, other in zip(rollout.records, made[got.name, rollout.policy], strict=True):
                assert_same_record(one, other)


def assert_same_record(one: ChunkRecord, other: ChunkRecord) -> None:
    np.testing.assert_array_equal(one.frames_FHWC, other.frames_FHWC)
    for name in ("chunk", "generated", "retrieved", "missed", "window_tokens", "live_bytes", "stored_bytes"):
        assert getattr(one, name) == getattr(other, name), name


def test_fidelity_is_taken_from_raw_frames_against_the_truth():
    of = world(2)
    rng = np.random.default_rng(1)
    records = [record(c, rng) for c in range(CHUNKS)]
    exact = ChunkRecord(0, of.truth_FHWC[:PER_CHUNK], False, (), 0, 0, 0, 0)
    made = episode(of, "full", [exact, *records[1:]])
    assert made.scalars["psnr"][:3].tolist() == [60, 60, 60]
    assert (made.scalars["psnr"][3:] < 20).all()
    assert made.metadata["world_seed"] == 2
