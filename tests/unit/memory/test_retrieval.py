from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldkv.errors import ConfigError, TrajectoryError
from worldkv.memory.retrieval import (
    candidates,
    mean_pose,
    pose_distance,
    rank,
    select,
    select_random,
)

SEEDS = st.integers(0, 2**32 - 1)


def walk(seed: int, chunks: int, latent_frames: int = 3) -> np.ndarray:
    """Poses [N, F, 4, 4] of a camera that wanders and turns, much the same within a chunk."""
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (chunks, latent_frames, 1, 1))
    centre_N13 = rng.normal(size=(chunks, 1, 3))
    turn_N13 = rng.normal(size=(chunks, 1, 3))
    jitter = 0.05 * rng.normal(size=(2, chunks, latent_frames, 3))
    c2w[..., :3, 3] = centre_N13 + jitter[0]
    vectors = (turn_N13 + jitter[1]).reshape(-1, 3)
    c2w[..., :3, :3] = Rotation.from_rotvec(vectors).as_matrix().reshape(chunks, latent_frames, 3, 3)
    return c2w


def yaw(degrees: float, x: float = 0.0, latent_frames: int = 3) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    pose[0, 3] = x
    return np.tile(pose, (latent_frames, 1, 1))


class TestCandidates:
    @settings(deadline=None)
    @given(st.integers(0, 60), st.integers(0, 4), st.integers(0, 8))
    def test_sink_candidates_and_recent_cover_the_past_once(self, current: int, sink: int, recent: int):
        parts = set(candidates(current, sink, recent))
        sink_part = set(range(min(sink, current)))
        recent_part = set(range(max(0, current - recent), current)) - sink_part
        assert parts | sink_part | recent_part == set(range(current))
        assert not parts & (sink_part | recent_part)

    def test_published_range_loses_the_chunk_before_the_recent_ones(self):
        assert list(candidates(6, 1, 1)) == [1, 2, 3, 4]
        assert list(candidates(6, 1, 1, parity=True)) == [1, 2, 3]

    def test_early_chunks_have_no_candidates(self):
        assert [len(candidates(chunk, 1, 1)) for chunk in range(4)] == [0, 0, 0, 1]

    def test_negative_counts_are_refused(self):
        with pytest.raises(ConfigError, match="recent_chunks=-1"):
            candidates(3, 1, -1)


class TestMeanPose:
    @settings(deadline=None)
    @given(SEEDS)
    def test_default_is_a_rotation(self, seed: int):
        rotation_N33 = mean_pose(walk(seed, 5))[:, :3, :3]
        np.testing.assert_allclose(
            rotation_N33 @ rotation_N33.swapaxes(-1, -2), np.tile(np.eye(3), (5, 1, 1)), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(rotation_N33), 1, atol=1e-12)

    def test_lies_midway_between_two_rotations(self):
        c2w_F44 = np.concatenate([yaw(0, latent_frames=1), yaw(50, latent_frames=1)])
        np.testing.assert_allclose(mean_pose(c2w_F44), yaw(25)[0], atol=1e-12)
        shrunk = mean_pose(c2w_F44, parity=True)[:3, :3]
        assert np.linalg.det(shrunk) < 0.9

    @pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (2, 3, 3, 4)])
    def test_wrong_shape_is_refused(self, shape: tuple[int, ...]):
        with pytest.raises(TrajectoryError, match="shape"):
            mean_pose(np.zeros(shape))

    def test_value_that_is_not_finite_is_refused(self):
        c2w_F44 = yaw(0)
        c2w_F44[1, 0, 3] = np.nan
        with pytest.raises(TrajectoryError, match="not finite"):
            mean_pose(c2w_F44)


class TestPoseDistance:
    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 12), st.data())
    def test_identical_poses_rank_first(self, seed: int, chunks: int, data: st.DataObject):
        c2w_NF44 = walk(seed, chunks)
        chunk = data.draw(st.integers(0, chunks - 1))
        distance_N = pose_distance(c2w_NF44, c2w_NF44[chunk])
        assert distance_N[chunk] == 0
        assert select(distance_N, range(chunks), 1).tolist() == [chunk]

    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 12), st.booleans())
    def test_stays_within_zero_and_one(self, seed: int, chunks: int, parity: bool):
        c2w_NF44 = walk(seed, chunks + 1)
        distance_N = pose_distance(c2w_NF44[1:], c2w_NF44[0], parity=parity)
        assert (distance_N >= 0).all()
        assert (distance_N <= 1 + 1e-12).all()

    def test_translation_and_rotation_count_half_each(self):
        c2w_NF44 = np.stack([yaw(0, x=2), yaw(90), yaw(45, x=1)])
        np.testing.assert_allclose(pose_distance(c2w_NF44, yaw(0)), [0.5, 0.5, 0.5 * 0.25 + 0.25], atol=1e-12)

    def test_parity_measures_from_the_mean_matrix_itself(self):
        # A chunk that turns fast is not even near itself: its mean matrix has a trace below three.
        fast_F44 = np.concatenate([yaw(angle, latent_frames=1) for angle in (-60, 0, 60)])
        c2w_NF44 = np.stack([fast_F44, yaw(170)])
        assert pose_distance(c2w_NF44, fast_F44)[0] == 0
        assert pose_distance(c2w_NF44, fast_F44, parity=True)[0] > 0.1

    def test_rounding_noise_of_a_still_camera_does_not_rank(self):
        rng = np.random.default_rng(0)
        still_NF44 = (np.stack([yaw(30, x=5)] * 6) + 1e-7 * rng.normal(size=(6, 3, 4, 4))).astype(np.float32)
        distance_N = pose_distance(still_NF44, still_NF44[0])
        assert not distance_N.any()
        assert select(distance_N, range(6), 2).tolist() == [5, 4]

    def test_no_candidates_give_no_distances(self):
        assert pose_distance(np.zeros((0, 3, 4, 4)), yaw(0)).shape == (0,)


class TestRank:
    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 12), st.randoms(use_true_random=False))
    def test_does_not_depend_on_the_order_of_candidates(self, seed: int, chunks: int, random: Random):
        c2w_NF44 = walk(seed, chunks + 1)
        c2w_NF44[-1] = c2w_NF44[0]  # one tie
        ids = np.arange(10, 11 + chunks)
        shuffled = list(range(chunks + 1))
        random.shuffle(shuffled)
        plain = rank(pose_distance(c2w_NF44, c2w_NF44[0]), ids)
        mixed = rank(pose_distance(c2w_NF44[shuffled], c2w_NF44[0]), ids[shuffled])
        assert plain.tolist() == mixed.tolist()
        assert sorted(plain) == ids.tolist()

    def test_ties_go_to_the_newer_chunk(self):
        assert rank(np.array([0.5, 0.1, 0.5, 0.1]), [3, 8, 4, 2]).tolist() == [8, 2, 4, 3]

    def test_shapes_must_agree(self):
        with pytest.raises(ConfigError, match="shapes must agree"):
            rank(np.zeros(3), [1, 2])

    def test_select_takes_all_where_there_are_fewer(self):
        assert select(np.array([0.2, 0.1]), [1, 2], 5).tolist() == [2, 1]
        assert select(np.array([0.2, 0.1]), [1, 2], 0).tolist() == []
        with pytest.raises(ConfigError, match="count=-1"):
            select(np.array([0.2]), [1], -1)


class TestSelectRandom:
    @settings(deadline=None)
    @given(SEEDS, st.integers(0, 20), st.integers(0, 25))
    def test_draws_distinct_candidates_and_repeats_itself(self, seed: int, chunks: int, count: int):
        ids = range(5, 5 + chunks)
        drawn = select_random(ids, count, seed=seed, rollout=3, current_chunk=40)
        again = select_random(ids[::-1], count, seed=seed, rollout=3, current_chunk=40)
        assert drawn.tolist() == again.tolist()
        assert len(set(drawn.tolist())) == min(chunks, count)
        assert set(drawn.tolist()) <= set(ids)

    def test_differs_by_seed_rollout_and_chunk(self):
        def draw(seed: int = 1, rollout: int = 2, current_chunk: int = 3) -> list[int]:
            chosen = select_random(range(1000), 8, seed=seed, rollout=rollout, current_chunk=current_chunk)
            return chosen.tolist()

        draws = [draw(), draw(seed=2), draw(rollout=3), draw(current_chunk=4)]
        assert len({tuple(drawn) for drawn in draws}) == 4

    def test_the_draw_of_a_seed_is_the_same_for_ever(self):
        assert select_random(range(1000), 4, seed=1, rollout=2, current_chunk=3).tolist() == [170, 821, 39, 49]

    def test_every_candidate_is_as_likely(self):
        draws = [select_random(range(4), 1, seed=0, rollout=0, current_chunk=c)[0] for c in range(2000)]
        assert np.bincount(draws, minlength=4).min() > 430
