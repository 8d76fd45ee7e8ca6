import numpy as np
import pytest

from worldkv.camera.intrinsics import PictureSize, from_field_of_view
from worldkv.camera.poses import planar_poses
from worldkv.camera.rays import fold_pixels, plucker_rays, ray_directions
from worldkv.errors import TrajectoryError

SIZE = PictureSize(4, 6)
INTRINSICS_14 = from_field_of_view(90, SIZE)[None]


def test_channels_are_the_camera_centre_then_the_direction():
    poses = planar_poses([1, 2], [3, 4], [0, 50])
    rays = plucker_rays(poses, INTRINSICS_14, SIZE)
    assert rays.shape == (2, 4, 6, 6)
    assert rays.dtype == np.float32
    np.testing.assert_allclose(rays[1, ..., :3], np.broadcast_to([2, 0, 4], (4, 6, 3)))
    np.testing.assert_array_equal(rays[..., 3:], ray_directions(poses, INTRINSICS_14, SIZE))


def test_directions_have_unit_length():
    rays = ray_directions(planar_poses(0, 0, [0, 77]), INTRINSICS_14, SIZE)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-6)


def test_rays_pass_through_pixel_centres():
    # 90 degrees across 6 pixels: the pixel right of the middle lies half a pixel out at focal length 3.
    upper_right = ray_directions(planar_poses(0, 0, 0), INTRINSICS_14, SIZE)[0, 1, 3]
    np.testing.assert_allclose(upper_right / upper_right[2], [0.5 / 3, -0.5 / 3, 1], rtol=1e-6)


def test_a_camera_that_turned_right_looks_right():
    rays = ray_directions(planar_poses(0, 0, 90), INTRINSICS_14, SIZE)
    np.testing.assert_allclose(rays.mean(axis=(0, 1, 2))[[1, 2]], 0, atol=1e-6)
    assert (rays[..., 0] > 0).all()


def test_one_row_of_intrinsics_serves_all_frames():
    poses = planar_poses([0, 1, 2], 0, [0, 10, 20])
    each = plucker_rays(poses, np.repeat(INTRINSICS_14, 3, axis=0), SIZE)
    np.testing.assert_array_equal(plucker_rays(poses, INTRINSICS_14, SIZE), each)


def test_folding_keeps_every_value_and_orders_channel_row_column():
    picture = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    folded = fold_pixels(picture, 2)
    assert folded.shape == (12, 2, 2, 3)
    for channel, row, column in [(0, 0, 0), (1, 0, 1), (2, 1, 0)]:
        np.testing.assert_array_equal(folded[channel * 4 + row * 2 + column], picture[:, row::2, column::2, channel])


def test_folding_a_picture_without_whole_squares_is_refused():
    with pytest.raises(TrajectoryError, match="4x6 pixels has no whole squares of 4x4"):
        fold_pixels(np.zeros((1, 4, 6, 3), dtype=np.float32), 4)
