import math

import numpy as np
import pytest

from worldkv.camera.intrinsics import (
    LINGBOT_INTRINSICS,
    LINGBOT_SIZE,
    PictureSize,
    check_intrinsics,
    from_field_of_view,
    resize_and_crop,
)
from worldkv.errors import TrajectoryError


def test_resizing_scales_each_axis_by_itself():
    resized = resize_and_crop([100, 200, 50, 40], PictureSize(80, 100), PictureSize(160, 50))
    np.testing.assert_allclose(resized, [50, 400, 25, 80])


def test_cropping_moves_the_centre_and_keeps_the_focal_length():
    cropped = resize_and_crop([[100, 100, 50, 40]], PictureSize(80, 100), PictureSize(80, 100), PictureSize(60, 90))
    np.testing.assert_allclose(cropped, [[100, 100, 45, 30]])


def test_resizing_there_and_back_returns_the_intrinsics():
    small = PictureSize(60, 104)
    there = resize_and_crop(LINGBOT_INTRINSICS, LINGBOT_SIZE, small)
    np.testing.assert_allclose(resize_and_crop(there, small, LINGBOT_SIZE), LINGBOT_INTRINSICS)


@pytest.mark.parametrize("degrees", [30.0, 90.0, 120.0])
def test_field_of_view_spans_the_width(degrees):
    fx, fy, cx, cy = from_field_of_view(degrees, PictureSize(48, 64))
    assert 2 * math.degrees(math.atan(32 / fx)) == pytest.approx(degrees)
    assert (fy, cx, cy) == (fx, 32, 24)


@pytest.mark.parametrize("degrees", [0, 180, -5, float("nan")])
def test_impossible_field_of_view_is_refused(degrees):
    with pytest.raises(TrajectoryError, match="allowed is between 0 and 180"):
        from_field_of_view(degrees, LINGBOT_SIZE)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (np.ones(4), r"shape \[4\], expected \[frames, 4\]"),
        (np.ones((3, 5)), r"shape \[3, 5\]"),
        ([[1, 1, 0, 0], [1, np.nan, 0, 0]], "frame 1 of 2: .*not finite with positive focal"),
        ([[1, 1, 0, 0], [0, 1, 0, 0]], "frame 1 of 2: .*positive focal lengths"),
    ],
)
def test_unsound_intrinsics_are_refused_with_the_source(rows, fault):
    with pytest.raises(TrajectoryError, match=f"k.npy: .*{fault}"):
        check_intrinsics(rows, "k.npy")
