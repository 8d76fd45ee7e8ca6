"""A run to watch: the side-by-side video, its most telling picture, and a small preview. All as bytes."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image, ImageColor

from worldkv.dataset.video import EncoderOptions, encode
from worldkv.report.canvas import Canvas, Look, pictures
from worldkv.report.figures import frame_count, telling_gap
from worldkv.report.timeline import Shot, timeline

if TYPE_CHECKING:
    from worldkv.results import RunResult, WorldRollouts

ROWS = 3
"""Worlds in the video, at most: more make panels too small to judge."""
# The page carries the video in base64 (4/3 of its bytes) and is to stay below 5 MB.
VIDEO_BYTES = 2_800_000
QUALITIES = (20, 25, 30, 36)
# A key frame per second or so: seeking is instant, and the file a quarter of one with key frames only.
KEY_FRAME_EVERY = 8

PREVIEW_BYTES = 1_500_000
PREVIEW_PANEL = 160
PREVIEW_SECONDS = 7.0
# (pictures at most, colours), the best first.
PREVIEW_LADDER = ((40, 192), (40, 96), (28, 64), (18, 40))


def video(result: RunResult) -> bytes:
    """The side-by-side video as an h264 mp4 whose index comes first, so that it plays while it loads."""
    worlds = result.worlds[:ROWS]
    frames_FHWC = pictures(Canvas(result, Look(worlds)), _shots(result, worlds))
    film = b""
    for crf in QUALITIES:
        options = EncoderOptions(crf=crf, gop=KEY_FRAME_EVERY)
        film = encode(frames_FHWC, result.fps, options)
        if len(film) <= VIDEO_BYTES:
            break
    return _index_first(film)


def poster(result: RunResult) -> bytes:
    """The picture of the video in which the policies are furthest apart on revisits, as png."""
    worlds = result.worlds[:ROWS]
    frames = min(frame_count(world) for world in worlds)
    gap_F = np.sum([telling_gap(world)[:frames] for world in worlds], axis=0)
    frame = int(gap_F.argmax()) if gap_F.any() else frames - 1
    sink = io.BytesIO()
    Canvas(result, Look(worlds)).draw(Shot(frame, "generated", 1)).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def preview(result: RunResult) -> bytes:
    """The world in which the policies are furthest apart, as a small looping gif."""
    world = max(result.worlds, key=lambda world: float(telling_gap(world).sum()))
    canvas = Canvas(result, Look((world,), panel=PREVIEW_PANEL, smooth=False))
    shots = _shots(result, (world,))
    packed = b""
    for most, colours in PREVIEW_LADDER:
        packed = _gif(canvas, shots, most, colours)
        if len(packed) <= PREVIEW_BYTES:
            break
    return packed


def _shots(result: RunResult, worlds: tuple[WorldRollouts, ...]) -> list[Shot]:
    frames = min(frame_count(world) for world in worlds)
    return timeline(frames, worlds[0].given_frames, result.fps)


def _gif(canvas: Canvas, shots: list[Shot], most: int, colours: int) -> bytes:
    """Moving shots thinned to `most`, held ones kept as one picture shown for longer."""
    moving = [shot for shot in shots if shot.phase in ("given", "generated")]
    kept = [moving[i] for i in np.unique(np.linspace(0, len(moving) - 1, most).round().astype(int))]
    each = round(1000 * PREVIEW_SECONDS / len(kept))
    turns = [shot for shot in shots if shot.phase == "turn"][:1]
    given = [shot for shot in kept if shot.phase == "given"]
    order = [*given, *turns, *kept[len(given) :], shots[-1]]
    holds = {"turn": 1200, "end": 2500}
    drawn = [canvas.draw(shot) for shot in order]
    palette = _palette(canvas, drawn, colours)
    packed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in drawn]
    sink = io.BytesIO()
    durations = [holds.get(shot.phase, each) for shot in order]
    packed[0].save(sink, "GIF", save_all=True, append_images=packed[1:], duration=durations, loop=0, optimize=False)
    return sink.getvalue()


def _palette(canvas: Canvas, drawn: list[Image.Image], colours: int) -> Image.Image:
    """One palette for all pictures, or colours would flicker: those of the marks, then what the panels need."""
    own = [channel for colour in canvas.colours for channel in ImageColor.getrgb(colour)]
    sample = np.concatenate([np.asarray(picture) for picture in drawn[:: max(1, len(drawn) // 6)]])
    cut = Image.fromarray(sample).quantize(colours - len(own) // 3, method=Image.Quantize.MEDIANCUT)
    entries = own + (cut.getpalette() or [])
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries + own[:3] * (256 - len(entries) // 3))
    return palette


def _index_first(film: bytes) -> bytes:
    """The same packets with the index before them, which the muxer can only do in a file on a disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with (
            av.open(io.BytesIO(film), "r") as source,
            av.open(str(path), "w", format="mp4", options=options) as target,
        ):
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        return path.read_bytes()
