import numpy as np
import pytest
from pydantic import ValidationError

from worldkv.config import WorldsConfig
from worldkv.errors import TrajectoryError
from worldkv.models.rooms import clips as training
from worldkv.models.rooms import layout, paths
from worldkv.models.rooms.layout import GRID, WALL, Layout
from worldkv.models.rooms.paths import CLEARANCE, Pace

SEEDS = range(30)
PACE = Pace(turn_degrees=6.0, distance=0.1)
FAST = Pace(turn_degrees=17.0, distance=0.25)
KINDS = {"wander": paths.wander, "back": paths.back, "roam": paths.roam, "patrol": paths.patrol}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))


def gap_to_walls(world: Layout, walk_F3: np.ndarray) -> float:
    """Least distance, along x or z, of any pose to any wall."""
    walls = np.argwhere(world.cells_GG == WALL)
    middle = np.abs(walk_F3[:, None, :2] - (walls + 0.5)[None])
    return float((middle - 0.5).max(-1).min())


def gap_to_objects(world: Layout, walk_F3: np.ndarray) -> float:
    x, z, radius, _ = world.object_xzrh_K4.T
    return float((np.hypot(walk_F3[:, :1] - x, walk_F3[:, 1:2] - z) - radius).min())


@EVERY_KIND
@pytest.mark.parametrize("frames", [2, 36, 96, 250])
def test_a_walk_has_the_frames_asked_for(kind, frames):
    assert KINDS[kind](layout.draw(1), frames, PACE, seed=1).shape == (frames, 3)


@EVERY_KIND
def test_a_walk_is_a_function_of_world_and_seed(kind):
    world = layout.draw(2)
    first, again, other = (KINDS[kind](world, 60, PACE, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@EVERY_KIND
def test_no_walk_comes_near_a_wall_or_into_an_object(kind):
    for seed in SEEDS:
        world = layout.draw(seed)
        walk = KINDS[kind](world, 120, PACE, seed=seed)
        assert gap_to_walls(world, walk) >= CLEARANCE - 1e-9
        assert gap_to_objects(world, walk) > 0.05


@EVERY_KIND
def test_no_step_is_larger_than_the_pace(kind):
    for seed in SEEDS:
        walk = KINDS[kind](layout.draw(seed), 120, PACE, seed=seed)
        step = np.diff(walk, axis=0)
        assert np.hypot(step[:, 0], step[:, 1]).max() <= PACE.distance + 1e-9
        assert np.abs(step[:, 2]).max() <= np.radians(PACE.turn_degrees) + 1e-9


@EVERY_KIND
def test_a_walk_goes_somewhere_and_looks_around(kind):
    moved, turned = [], []
    for seed in SEEDS:
        walk = KINDS[kind](layout.draw(seed), 120, PACE, seed=seed)
        moved.append(np.ptp(walk[:, :2], axis=0).max())
        turned.append(np.ptp(walk[:, 2]))
    assert np.median(moved) > 0.5
    assert np.median(turned) > np.radians(60)


def test_back_reads_the_same_in_both_directions():
    walk = paths.back(layout.draw(0), 96, PACE, seed=0)
    np.testing.assert_array_equal(walk, walk[::-1])


def test_back_refuses_an_odd_number_of_frames():
    with pytest.raises(TrajectoryError, match="even number of frames, got 95"):
        paths.back(layout.draw(0), 95, PACE, seed=0)


def test_roam_returns_to_its_places_from_other_directions():
    returned, yaws = 0, []
    for seed in SEEDS:
        walk = paths.roam(layout.draw(seed), 400, PACE, seed=seed)
        middles = (walk[:, :2] - 0.5).round(6) % 1 == 0
        at_start = middles.all(1) & (walk[:, :2].astype(int) == walk[0, :2].astype(int)).all(1)
        late = at_start & (np.arange(400) >= 200)
        returned += late.any()
        yaws += (walk[late, 2] - walk[0, 2]).tolist()
    assert returned > len(SEEDS) / 2
    assert np.std(np.sin(yaws)) > 0.3


def test_a_roam_of_a_few_frames_ends_and_stays_clear():
    for frames in range(1, 13):
        world = layout.draw(frames)
        walk = paths.roam(world, frames, PACE, seed=frames)
        assert walk.shape == (frames, 3)
        assert gap_to_walls(world, walk) >= CLEARANCE - 1e-9


def test_roam_sees_its_first_place_all_round_in_the_first_half():
    for seed in range(3):
        half = paths.roam(layout.draw(seed), 120, FAST, seed=seed)[:60]
        assert set((half[:, 2] // np.radians(45) % 8).astype(int)) == set(range(8))


def directions(walk_F3: np.ndarray) -> np.ndarray:
    """Cosine between where each step goes and where the camera looks, for the steps that go anywhere."""
    step = np.diff(walk_F3[:, :2], axis=0)
    length, yaw = np.hypot(*step.T), walk_F3[:-1, 2]
    going = length > 1e-6
    return (step * np.stack([np.sin(yaw), np.cos(yaw)], -1)).sum(1)[going] / length[going]


def test_on_patrol_the_camera_looks_independently_of_where_it_goes():
    worlds = {seed: layout.draw(seed) for seed in SEEDS}
    patrols = np.concatenate([directions(paths.patrol(w, 120, PACE, seed=s)) for s, w in worlds.items()])
    ahead, sideways, backwards = ((patrols > 0.7).mean(), (np.abs(patrols) < 0.7).mean(), (patrols < -0.7).mean())
    assert min(ahead, backwards) > 0.15
    assert sideways > 0.35
    assert abs(patrols.mean()) < 0.1
    wanders = np.concatenate([directions(paths.wander(w, 120, PACE, seed=s)) for s, w in worlds.items()])
    assert (np.abs(wanders) < 0.7).mean() == 0


def test_a_patrol_stays_around_its_start_and_criss_crosses_it():
    spread, crossings = [], []
    for seed in SEEDS:
        walk = paths.patrol(layout.draw(seed), 240, PACE, seed=seed)
        off = walk[:, :2] - walk[0, :2]
        spread.append(np.abs(off).max())
        crossings.append((np.diff(np.sign(off), axis=0) != 0).sum())
    assert max(spread) <= 3.0
    assert min(spread) > 0
    assert np.median(crossings) > 6


def test_a_drift_goes_straight_to_its_goal_while_the_camera_turns_evenly():
    walk = [(2.0, 3.0, 0.5)]
    paths._drift(walk, (2.6, 3.8), -0.9, PACE)
    arrived = np.array(walk)
    np.testing.assert_allclose(arrived[-1], (2.6, 3.8, -0.4))
    assert np.ptp(np.diff(arrived, axis=0), axis=0).max() < 1e-9
    turned = [(2.0, 3.0, 0.5)]
    paths._drift(turned, (2.0, 3.0), np.radians(60), PACE)
    assert len(turned) == 1 + 10
    nowhere = [(2.0, 3.0, 0.5)]
    paths._drift(nowhere, (2.0, 3.0), 0.0, PACE)
    assert nowhere == [(2.0, 3.0, 0.5)] * 2


def test_a_place_in_sight_is_never_behind_a_wall(hall):
    world = hall()
    world.cells_GG[6, :] = WALL
    rng = np.random.default_rng(0)
    found = np.array([paths._in_sight(world, (4.5, 6.5), (6.5, 6.5), 3.0, rng) for _ in range(200)])
    assert (found[:, 0] <= 6 - CLEARANCE).all()
    assert (np.abs(found - (6.5, 6.5)) <= 3.0).all()
    assert len(np.unique(found, axis=0)) > 100


def test_who_sees_no_place_to_go_stays(hall):
    world = hall()
    rng = np.random.default_rng(0)
    assert paths._in_sight(world, (4.5, 6.5), (40.0, 40.0), 1.0, rng) == (4.5, 6.5)


def test_poses_are_level_and_look_along_their_yaw():
    poses = paths.to_poses(np.array([(2.0, 3.0, 0.0), (2.0, 3.0, np.pi / 2)]))
    np.testing.assert_allclose(poses[0], [[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(poses[1, :3, 2], [1, 0, 0], atol=1e-6)  # to the right of +z is +x
    np.testing.assert_allclose(poses[1, :3, 1], [0, 1, 0])
    assert poses.dtype == np.float32


def test_outside_the_world_nothing_is_clear(hall):
    world = hall()
    assert paths.is_clear(world, 6.5, 6.5)
    for x, z in ((-5.0, 6.5), (6.5, GRID + 3.0), (0.5, 6.5), (1.1, 6.5), (6.5, 11.9)):
        assert not paths.is_clear(world, x, z)


def test_a_world_without_room_to_stand_is_refused(hall):
    world = hall()
    world.cells_GG[:] = WALL
    with pytest.raises(TrajectoryError, match="no free cell"):
        paths.wander(world, 10, PACE, seed=0)


def test_training_clips_have_the_length_of_training():
    for seed in range(40):
        clip = paths.training_clip(layout.draw(seed), 48, seed)
        assert clip.shape == (48, 3)
        assert gap_to_walls(layout.draw(seed), clip) >= CLEARANCE - 1e-9


def test_scattered_chunks_are_chunks_of_the_longer_walk_whole_and_none_twice():
    world = layout.draw(2)
    long = paths.patrol(world, 3 * 48, PACE, seed=2).reshape(-1, 3, 3)
    chunks = paths.scattered(paths.patrol, world, 48, PACE, seed=2, per_chunk=3).reshape(-1, 3, 3)
    places = [int(np.flatnonzero((long == chunk).all((1, 2)))[0]) for chunk in chunks]
    assert len(set(places)) == len(chunks) == 16
    assert places != sorted(places)
    assert min(places) < 16
    assert max(places) >= 32


def seeds_drawn(first_seed: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """World seeds of the first two batches of `clips.Clips`."""
    drawn, draw = [], layout.draw
    clips = training.Clips(first_seed, batch=4, frames=12)
    with monkeypatch.context() as patch:
        patch.setattr(training.layout, "draw", lambda seed: drawn.append(seed) or draw(seed))
        clips.make(0)
        clips.make(1)
    return drawn


def test_training_validation_and_benchmark_worlds_never_meet(monkeypatch):
    trained = seeds_drawn(training.TRAIN_SEED, monkeypatch)
    validated = seeds_drawn(training.VALIDATION_SEED, monkeypatch)
    assert trained == list(range(training.TRAIN_SEED, training.TRAIN_SEED + 8))
    assert validated == list(range(training.VALIDATION_SEED, training.VALIDATION_SEED + 8))
    assert training.VALIDATION_SEED < training.TRAIN_SEED - 10**8
    WorldsConfig(first_seed=training.VALIDATION_SEED - 1, count=1)
    with pytest.raises(ValidationError, match="first_seed"):
        WorldsConfig(first_seed=training.VALIDATION_SEED, count=1)
    with pytest.raises(ValidationError, match="served in training"):
        WorldsConfig(first_seed=training.VALIDATION_SEED - 1, count=2)


def test_a_long_roam_cuts_no_corner_on_its_way_from_place_to_place():
    for seed in (4, 6, 10, 16):
        world = layout.draw(seed)
        walk = paths.roam(world, 576, PACE, seed=seed * 1000)
        assert gap_to_walls(world, walk) >= CLEARANCE - 1e-9
