"""The camera code against tensors from the public LingBot-World and WorldKV code, within 5e-5 in float32."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from worldkv.camera import (
    LINGBOT_MOVE_COLUMNS,
    LINGBOT_SIZE,
    Motion,
    Pace,
    PictureSize,
    check_poses,
    fold_pixels,
    from_key_columns,
    interpolate_poses,
    latent_frame_times,
    normalise_translations,
    plucker_rays,
    ray_directions,
    relative_framewise,
    relative_to_first,
    resize_and_crop,
    to_key_columns,
    trajectory_from_notation,
)

TOLERANCE = 5e-5
PATCH = 8


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def golden(reference):
    return load_file(reference / "camera" / "camera.safetensors")


@pytest.fixture(scope="module")
def manifest(reference):
    return json.loads((reference / "camera" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def poses(golden):
    return check_poses(golden["poses_npy"], "poses_npy")


@pytest.mark.parametrize(
    ("name", "relate"),
    [("rel_framewise0_norm{}", relative_to_first), ("rel_framewise1_norm{}", relative_framewise)],
)
def test_relative_poses_match(golden, poses, name, relate):
    assert_close(relate(poses), golden[name.format(0)])
    assert_close(normalise_translations(relate(poses)), golden[name.format(1)])


def test_interpolated_poses_match(golden, poses):
    interpolated = interpolate_poses(poses, golden["interp_tgt"])
    assert_close(interpolated, golden["interp_out"])
    assert_close(normalise_translations(relative_framewise(interpolated)), golden["rel_interp"])


def test_intrinsics_match(golden, manifest):
    for case, sizes in manifest["get_Ks_transformed"].items():
        original, resized, final = (
            PictureSize(sizes[f"height_{stage}"], sizes[f"width_{stage}"]) for stage in ("org", "resize", "final")
        )
        actual = resize_and_crop(golden["intrinsics_npy"], original, resized, final)
        assert_close(actual, golden[f"Ks/{case}"])


def test_rays_match(golden, manifest):
    size = PictureSize(*manifest["config"]["image_hw"])
    poses, intrinsics = golden["rel_interp"].astype(np.float64), golden["K_final"].astype(np.float64)
    assert_close(plucker_rays(poses, intrinsics, size), golden["plucker6"])


def test_rays_match_at_full_size(golden, poses):
    size = PictureSize(464, 832)
    relative = normalise_translations(relative_framewise(interpolate_poses(poses, golden["interp_tgt"])))
    intrinsics = resize_and_crop(golden["intrinsics_npy"][:1], LINGBOT_SIZE, size)
    row, column = golden["real_px_yx"].T
    assert_close(plucker_rays(relative[:4], intrinsics, size)[:, row, column], golden["real_px_plucker"])


def test_model_conditions_match(golden, manifest, poses):
    size = PictureSize(*manifest["config"]["image_hw"])
    times = latent_frame_times(manifest["config"]["frame_num_arg"], manifest["config"]["chunk_size"])
    relative = normalise_translations(relative_framewise(interpolate_poses(poses, times)))
    intrinsics = resize_and_crop(golden["intrinsics_npy"][:1], LINGBOT_SIZE, size)
    rays = fold_pixels(plucker_rays(relative, intrinsics, size), PATCH)
    assert_close(rays[None], golden["dit_cond_cam"])
    directions = fold_pixels(ray_directions(relative, intrinsics, size), PATCH)
    assert_close(directions[None], golden["dit_cond_act"][:, : 3 * PATCH**2])


def test_key_arrays_round_trip(golden):
    keys = golden["action_npy"]
    actions = from_key_columns(keys, LINGBOT_MOVE_COLUMNS, "action_npy")
    np.testing.assert_array_equal(to_key_columns(actions, LINGBOT_MOVE_COLUMNS), keys)


def test_published_trajectories_match(reference):
    golden = load_file(reference / "worldkv_ops" / "trajectories.safetensors")
    for case in json.loads((reference / "worldkv_ops" / "retrieval.json").read_text()):
        motion = Motion(distance_per_frame=case["translation_distance"] / Pace().move_frames)
        trajectory = trajectory_from_notation(case["name"], pace=Pace(motion, hold_frames=_holds(case)))
        assert_close(trajectory.c2w_F44, golden[f"{case['name']}/poses"])
        times = latent_frame_times(len(trajectory))
        assert len(times) == case["latent_frames"]
        np.testing.assert_allclose([times[0], times[-1], times[1] - times[0]], case["tgt_first_last_step"])
        latent = interpolate_poses(trajectory.c2w_F44, times)
        assert_close(latent, golden[f"{case['name']}/c2ws_infer"])


def _holds(case):
    if case["noop_frames"] is None:
        return None
    holds = tuple(int(frames) for frames in case["noop_frames"].split(","))
    return holds if len(holds) > 1 else holds[0]
