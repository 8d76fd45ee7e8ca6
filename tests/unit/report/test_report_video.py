import io
from dataclasses import replace

import av
import numpy as np
import pytest
from made_up_runs import flat_world, run_of
from PIL import Image, ImageColor

from worldkv.report.canvas import HEAD, MARGIN, Canvas, Look
from worldkv.report.labels import REVISIT_COLOUR
from worldkv.report.timeline import Shot, timeline
from worldkv.report.video import PREVIEW_BYTES, poster, preview, video
from worldkv.results import RunResult

FIRST_BORDER = (MARGIN - 2, HEAD + 20)


@pytest.fixture(scope="module")
def single(result: RunResult) -> RunResult:
    return replace(result, worlds=result.worlds[:1])


@pytest.fixture(scope="module")
def film(single: RunResult) -> bytes:
    return video(single)


def test_the_video_plays_in_every_browser(film: bytes) -> None:
    with av.open(io.BytesIO(film), "r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.width % 2 == 0
        assert stream.codec_context.height % 2 == 0


def test_the_index_comes_before_the_pictures(film: bytes) -> None:
    assert 0 < film.index(b"moov") < film.index(b"mdat")


def test_the_video_has_every_shot_and_a_place_to_seek_to_each_second(film: bytes, result: RunResult) -> None:
    with av.open(io.BytesIO(film), "r") as container:
        pictures = list(container.decode(video=0))
    assert len(pictures) == len(timeline(48, 24, result.fps))
    assert all(picture.key_frame for picture in pictures[:: result.fps])


def test_a_revisit_is_framed_and_nothing_else_is(result: RunResult) -> None:
    canvas = Canvas(result, Look(result.worlds))
    yellow = ImageColor.getrgb(REVISIT_COLOUR)
    world = result.worlds[0]
    for frame in range(0, 48, 5):
        picture = canvas.draw(Shot(frame, "generated", 1))
        assert (picture.getpixel(FIRST_BORDER) == yellow) == bool(world.revisit_F[frame] and frame >= 24)


def test_panels_show_the_frames_of_truth_and_policies_side_by_side(result: RunResult) -> None:
    canvas = Canvas(result, Look(result.worlds[1:2], panel=160, smooth=False))
    picture = np.asarray(canvas.draw(Shot(40, "generated", 1)))
    world = result.worlds[1]
    for column, frames_FHWC in enumerate([world.truth_FHWC, *(r.frames_FHWC for r in world.rollouts)]):
        left = MARGIN + column * 174
        np.testing.assert_array_equal(picture[HEAD + 2 : HEAD + 160 : 4, left + 2 : left + 160 : 4], frames_FHWC[40])


def test_the_poster_is_a_picture_of_the_video(single: RunResult, film: bytes) -> None:
    still = Image.open(io.BytesIO(poster(single)))
    with av.open(io.BytesIO(film), "r") as container:
        context = container.streams.video[0].codec_context
        assert still.size == (context.width, context.height)


def test_the_preview_is_small_and_moves(result: RunResult) -> None:
    packed = preview(result)
    with Image.open(io.BytesIO(packed)) as picture:
        assert picture.format == "GIF"
        assert picture.n_frames > 20
        assert picture.info["loop"] == 0
    assert len(packed) < PREVIEW_BYTES


@pytest.mark.parametrize("policies", [1, 6])
def test_any_number_of_policies_fits_the_picture(policies: int) -> None:
    psnr = {f"policy_with_a_long_name_{i}": [60] * 3 + [20] * 3 for i in range(policies)}
    run = run_of([flat_world(psnr, (4, 5), given=3)])
    assert all(side % 2 == 0 for side in Canvas(run, Look(run.worlds)).size)
    assert len(poster(run)) > 0


def test_the_same_run_gives_the_same_bytes() -> None:
    run = run_of([flat_world({"full": [60] * 3 + [20] * 3}, (4,), given=3)])
    assert (video(run), poster(run), preview(run)) == (video(run), poster(run), preview(run))


def test_worlds_without_revisits_still_have_a_video_and_a_poster() -> None:
    run = run_of([flat_world({"full": [60] * 3 + [20] * 3}, (), given=given) for given in (3, 3)])
    assert len(video(run)) > 0
    assert len(poster(run)) > 0
