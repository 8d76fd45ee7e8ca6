"""Frames to mp4 and back. Deterministic: one encoder thread, bit-exact conversion and muxing, no routine of
libx264 whose result depends on the processor, no wall clock.

No B-frames ever: with them LeRobot's own merging of datasets fails on decreasing timestamps.
"""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags

from worldkv.errors import DatasetError

# swscale picks a routine per processor; these flags make all of them give the same bytes.
SCALE_FLAGS = "bicubic+accurate_rnd+bitexact"
# libx264 weighs blocks (mb-tree) in routines chosen by processor. That for AVX-512 answers differently for equal
# frames, as memory lies; with this option all processors run the portable one.
X264_PARAMS = "cpu-independent=1"
BT601 = 6
"""H.273 code for the matrix, primaries and transfer of SMPTE 170M, which is what the conversion uses."""
LIMITED_RANGE = 1

Codec = Literal["h264", "ffv1"]
ENCODER_OF: dict[Codec, str] = {"h264": "libx264", "ffv1": "ffv1"}
PIXEL_FORMAT_OF: dict[Codec, str] = {"h264": "yuv420p", "ffv1": "bgr0"}


@dataclass(frozen=True)
class EncoderOptions:
    """How videos are encoded; part of a dataset's identity."""

    codec: Codec = "h264"
    """h264 plays everywhere; ffv1 is lossless, four to eight times larger and plays in no browser."""
    crf: int = 18
    """Quality of h264, 0 (best) to 51; ffv1 ignores it."""
    gop: int = 2
    """Frames from one key frame to the next; small, because trainers read frames at random."""
    preset: str = "veryfast"
    """Speed of libx264."""

    def __post_init__(self) -> None:
        if self.codec not in ENCODER_OF or not 0 <= self.crf <= 51 or self.gop < 1:
            raise DatasetError(f"encoder options {asdict(self)}: codec is h264 or ffv1, crf 0..51, gop 1 or more")

    @property
    def lossless(self) -> bool:
        """True if decoding gives back the very pixels that were encoded."""
        return self.codec == "ffv1"

    @property
    def pixel_format(self) -> str:
        """FFmpeg's name of the stored pixel format."""
        return PIXEL_FORMAT_OF[self.codec]

    def check_size(self, name: str, height: int, width: int) -> None:
        """Raise DatasetError if frames of this size cannot be stored: 4:2:0 colour needs even sides."""
        if not self.lossless and (height % 2 or width % 2):
            raise DatasetError(
                f"{name}: {height}x{width} has an odd side, which {self.pixel_format} cannot store; "
                f"pad or crop it, or use the lossless preset"
            )


ENCODER_PRESETS = {"default": EncoderOptions(), "lossless": EncoderOptions(codec="ffv1", gop=1)}


def encode(frames_FHWC: npt.NDArray[np.uint8], fps: int, options: EncoderOptions) -> bytes:
    """Return the frames as an mp4 file; frame i has the timestamp i / fps."""
    sink = io.BytesIO()
    try:
        with av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = _open_stream(container, frames_FHWC.shape[1:3], fps, options)
            for frame in _converted(frames_FHWC, fps, options):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise DatasetError(f"encoding {frames_FHWC.shape} with {options} failed: {error}") from error
    return sink.getvalue()


def decode(path: Path, fps: int) -> npt.NDArray[np.uint8]:
    """Return all frames of an mp4 file as (F, H, W, 3); raises DatasetError unless frame i is at i / fps."""
    pictures = []
    try:
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if frame.time is None or abs(frame.time - index / fps) > 0.1 / fps:
                    raise DatasetError(f"{path}: frame {index} is at {frame.time} s, expected {index / fps} s")
                pictures.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path}: not a readable video ({error})") from error
    if not pictures:
        raise DatasetError(f"{path}: holds no video frame")
    return np.stack(pictures)


def check_written(path: Path, frames_FHWC: npt.NDArray[np.uint8], fps: int, options: EncoderOptions) -> None:
    """Decode a file just written; raises DatasetError unless it holds these frames (exactly, if lossless)."""
    found = decode(path, fps)
    if found.shape != frames_FHWC.shape:
        raise DatasetError(f"{path}: wrote frames {frames_FHWC.shape}, decoded {found.shape}")
    if options.lossless and not np.array_equal(found, frames_FHWC):
        raise DatasetError(f"{path}: the lossless codec {options.codec} gave back other pixels")


def _open_stream(container: Any, size: tuple[int, ...], fps: int, options: EncoderOptions) -> Any:
    settings = {"g": str(options.gop)}
    if not options.lossless:
        settings |= {"crf": str(options.crf), "preset": options.preset, "bf": "0", "x264-params": X264_PARAMS}
    stream = container.add_stream(ENCODER_OF[options.codec], rate=fps, options=settings)
    stream.height, stream.width = size
    stream.pix_fmt = options.pixel_format
    context = stream.codec_context
    context.thread_count = 1
    context.flags |= Flags.bitexact
    if not options.lossless:
        context.colorspace = context.color_primaries = context.color_trc = BT601
        context.color_range = LIMITED_RANGE
    return stream


def _converted(frames_FHWC: npt.NDArray[np.uint8], fps: int, options: EncoderOptions) -> Iterator[Any]:
    graph, time_base = _conversion(frames_FHWC.shape[1:3], fps, options.pixel_format), Fraction(1, fps)
    for index, pixels_HWC in enumerate(frames_FHWC):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC), format="rgb24")
        frame.pts, frame.time_base = index, time_base
        graph.push(frame)
        yield graph.pull()


def _conversion(size: tuple[int, ...], fps: int, pixel_format: str) -> av.filter.Graph:
    height, width = size
    graph = av.filter.Graph()
    source = f"video_size={width}x{height}:pix_fmt=rgb24:time_base=1/{fps}:pixel_aspect=1/1"
    matrix = "" if pixel_format == "bgr0" else "out_color_matrix=bt601:out_range=tv:"
    chain = [
        graph.add("buffer", source),
        graph.add("scale", f"{matrix}flags={SCALE_FLAGS}"),
        graph.add("format", f"pix_fmts={pixel_format}"),
        graph.add("buffersink"),
    ]
    for one, other in pairwise(chain):
        one.link_to(other)
    graph.configure()
    return graph
