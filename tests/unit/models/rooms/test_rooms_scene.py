from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldkv.camera import Trajectory
from worldkv.errors import TrajectoryError
from worldkv.models.rooms import layout, paths
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene

SIZE, SMALL, CHUNK, RECENT = 20, 12, 3, 2
WINDOW = CHUNK * (RECENT + 1)
FAST = Pace(turn_degrees=17.0, distance=0.25)


def scene_of(world: layout.Layout) -> Scene:
    scene = Scene(0, SIZE)
    scene._world = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in layout.stack([world]).items()}
    scene.layout = world
    return scene


def going(states: Sequence[tuple[float, float, float]]) -> Trajectory:
    """Through (x, z, yaw in degrees)."""
    walk = np.array(states, float) * (1, 1, np.pi / 180)
    poses = paths.to_poses(walk).astype(float)
    return Trajectory(poses, np.tile((10.0, 10.0, 10.0, 10.0), (len(poses), 1)))


def along(scene: Scene, walk_F3: np.ndarray) -> Trajectory:
    return Trajectory(paths.to_poses(walk_F3).astype(float), np.tile(scene.view.intrinsics, (len(walk_F3), 1)))


def revisits(scene: Scene, trajectory: Trajectory, **options: int) -> list[bool]:
    _, depth = scene.truth(trajectory)
    return scene.revisits(trajectory, depth, chunk=CHUNK, recent_chunks=RECENT, **options).tolist()


@pytest.fixture
def walled_hall(hall) -> Scene:
    """A hall with a wall along x = 6 that hides its west half from its east half."""
    world = hall()
    cells = world.cells_GG.copy()
    cells[6, :] = layout.WALL
    return scene_of(replace(world, cells_GG=cells))


def test_nothing_is_a_revisit_inside_the_first_window(walled_hall):
    assert revisits(walled_hall, going([(9.5, 6.5, 0)] * WINDOW)) == [False] * WINDOW


def test_standing_still_revisits_once_the_first_sight_has_left_the_window(walled_hall):
    flags = revisits(walled_hall, going([(9.5, 6.5, 0)] * (WINDOW + 6)))
    assert flags == [False] * WINDOW + [True] * 6


def test_an_exact_return_after_leaving_is_a_revisit(walled_hall):
    away = [(9.5, 6.5, 180)] * WINDOW
    flags = revisits(walled_hall, going([(9.5, 6.5, 0)] * 3 + away + [(9.5, 6.5, 0)] * 3))
    assert flags[:3] == [False] * 3
    assert flags[-3:] == [True] * 3


def test_what_was_never_seen_is_no_revisit(walled_hall):
    east, west = [(9.5, 6.5, 90)] * (WINDOW + 3), [(3.5, 6.5, 270)] * 3
    assert revisits(walled_hall, going(east + west))[-3:] == [False] * 3


def test_a_wall_seen_from_its_other_side_is_no_revisit(walled_hall):
    # So near that its far side fills the whole picture, in a place at which the first view looked.
    west_side, east_side = [(4.0, 6.5, 90)] * 3, [(7.4, 6.5, 270)] * 3
    elsewhere = [(4.0, 6.5, 0)] * WINDOW
    assert revisits(walled_hall, going(west_side + elsewhere + east_side))[-3:] == [False] * 3


def test_the_same_surfaces_from_nearer_are_a_revisit(walled_hall):
    far, near = [(9.5, 6.5, 0)] * 3, [(9.5, 7.0, 0)] * 3
    away = [(9.5, 6.5, 180)] * WINDOW
    assert revisits(walled_hall, going(far + away + near))[-3:] == [True] * 3


def test_half_of_a_picture_new_is_no_revisit(walled_hall):
    first, turned = [(9.5, 6.5, 0)] * 3, [(9.5, 6.5, 40)] * 3
    away = [(9.5, 6.5, 180)] * WINDOW
    assert revisits(walled_hall, going(first + away + turned))[-3:] == [False] * 3


def test_a_longer_recent_window_leaves_fewer_revisits():
    scene = Scene(3, SIZE)
    trajectory = scene.trajectory("back", 60, Pace())
    _, depth = scene.truth(trajectory)
    short, long = (scene.revisits(trajectory, depth, chunk=CHUNK, recent_chunks=n) for n in (2, 8))
    assert not (long & ~short).any()
    assert long.sum() < short.sum()


def test_what_was_first_seen_after_the_given_frames_does_not_count(walled_hall):
    north, south = (9.5, 6.5, 0), (9.5, 6.5, 180)
    there_and_back = going([north] * 3 + [south] * WINDOW + [north] * WINDOW + [south] * 3)
    all_seen, first_chunk, both = (
        revisits(walled_hall, there_and_back, **o) for o in ({}, {"given": 3}, {"given": 12})
    )
    new, again = [False] * WINDOW, [True] * WINDOW
    assert first_chunk == [False] * 3 + new + again + [False] * 3
    assert both == all_seen == [False] * 3 + new + again + [True] * 3


def test_given_frames_that_end_within_a_chunk_count_one_by_one(walled_hall):
    north, south = (9.5, 6.5, 0), (9.5, 6.5, 180)
    turning = going([north, north, south] + [north] * WINDOW + [south] * 3)
    assert revisits(walled_hall, turning, given=2)[-3:] == [False] * 3
    assert revisits(walled_hall, turning, given=3)[-3:] == [True] * 3


def test_with_nothing_given_nothing_is_a_revisit_and_with_all_given_whatever_was_seen_is(walled_hall):
    still = going([(9.5, 6.5, 0)] * (WINDOW + 6))
    assert not any(revisits(walled_hall, still, given=0))
    assert revisits(walled_hall, still, given=WINDOW + 6) == revisits(walled_hall, still)


def test_given_frames_do_not_count_before_they_have_left_the_window(walled_hall):
    still = going([(9.5, 6.5, 0)] * (WINDOW + 6))
    assert revisits(walled_hall, still, given=WINDOW) == [False] * WINDOW + [True] * 6


def test_a_last_chunk_that_is_not_whole_is_judged_too(walled_hall):
    assert revisits(walled_hall, going([(9.5, 6.5, 0)] * (WINDOW + 4))) == [False] * WINDOW + [True] * 4


def test_the_second_half_of_a_roam_mostly_shows_what_the_first_half_showed_from_elsewhere():
    shares = []
    for seed in range(3):
        scene = Scene(seed, SMALL)
        walk = paths.roam(scene.layout, 96, FAST, seed=seed * 1000)
        trajectory = along(scene, walk)
        _, depth = scene.truth(trajectory)
        judged, seen = (
            scene.revisits(trajectory, depth, chunk=CHUNK, recent_chunks=RECENT, given=given) for given in (48, None)
        )
        assert not (judged & ~seen).any()
        assert judged[:48].tolist() == seen[:48].tolist()
        shares.append(judged[48:].mean())
        gap = np.abs(walk[48:, None] - walk[None, :48]).max(-1).min(1)
        assert (gap > 1e-3).mean() > 0.7  # some ways run over the same middles of cells
    assert np.mean(shares) > 0.7
    assert min(shares) > 0.35


def test_a_patrol_sees_the_same_surfaces_again_from_ever_new_places():
    shares = []
    for seed in range(3):
        scene = Scene(seed, SMALL)
        walk = paths.patrol(scene.layout, 120, FAST, seed=seed)
        shares.append(np.mean(revisits(scene, along(scene, walk))[60:]))
        assert len(np.unique(walk.round(4), axis=0)) > 110
    assert np.mean(shares) > 0.5


def test_the_way_back_is_all_revisits_beyond_the_window():
    scene = Scene(5, SIZE)
    flags = revisits(scene, scene.trajectory("back", 60, Pace()))
    assert all(flags[45:])


def test_truth_is_the_rendering_of_each_pose_in_bytes():
    scene = Scene(1, SIZE)
    trajectory = scene.trajectory("wander", 40, Pace())
    frames, depth = scene.truth(trajectory)
    assert (frames.shape, frames.dtype) == ((40, SIZE, SIZE, 3), np.uint8)
    assert depth.shape == (40, SIZE, SIZE)
    part = replace(trajectory, c2w_F44=trajectory.c2w_F44[35:], intrinsics_F4=trajectory.intrinsics_F4[35:])
    np.testing.assert_array_equal(scene.truth(part)[0], frames[35:])


@pytest.mark.parametrize("kind", ["back", "roam", "wander"])
def test_trajectories_are_named_for_what_they_are_and_repeat(kind):
    first, again = (Scene(2, SIZE).trajectory(kind, 30, Pace()) for _ in range(2))
    assert first.name == f"rooms-2-{kind}-30"
    np.testing.assert_array_equal(first.c2w_F44, again.c2w_F44)
    np.testing.assert_array_equal(first.intrinsics_F4[7], (10, 10, 10, 10))
    other = Scene(2, SIZE).trajectory(kind, 30, Pace(), seed=1)
    assert not np.array_equal(first.c2w_F44, other.c2w_F44)


def test_a_placed_trajectory_keeps_its_moves_and_starts_where_one_can_stand():
    scene = Scene(4, SIZE)
    turn = going([(100.0, 50.0, yaw) for yaw in range(0, 90, 10)])
    placed = scene.place(turn)
    x, _, z = placed.c2w_F44[0, :3, 3]
    assert paths.is_clear(scene.layout, x, z)
    relative = [np.linalg.inv(t.c2w_F44[0]) @ t.c2w_F44[-1] for t in (turn, placed)]
    np.testing.assert_allclose(*relative, atol=1e-5)


def test_a_trajectory_that_would_run_into_a_wall_is_refused_by_frame():
    straight = going([(0.0, 0.5 * step, 0.0) for step in range(60)])
    with pytest.raises(TrajectoryError, match=r"rooms world 4.* frame \d+"):
        Scene(4, SIZE).place(straight)
