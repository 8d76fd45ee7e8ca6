"""The bytes of a video are a function of its frames, wherever the encoder's buffers lie and whatever the processor."""

import numpy as np
import numpy.typing as npt
import pytest

from worldkv.dataset import ENCODER_PRESETS
from worldkv.dataset import video as video_module
from worldkv.dataset.video import encode

LOSSY = ENCODER_PRESETS["default"]


def moving(height: int, width: int, frames: int) -> npt.NDArray[np.uint8]:
    """A window that moves over coloured squares: motion to follow, and something new at every edge."""
    squares = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = squares.repeat(4, axis=0).repeat(4, axis=1)
    return np.stack([picture[2 * i : 2 * i + height, i : i + width] for i in range(frames)])


@pytest.mark.parametrize("size", [(16, 16), (20, 20), (32, 32), (40, 24)])
def test_a_clip_encodes_to_the_same_bytes_every_time(size):
    """Small clips, for in these libx264 went wrong most often: with AVX-512, a few in a hundred encodings differed."""
    frames_FHWC = moving(*size, frames=24)
    first, held = encode(frames_FHWC, 12, LOSSY), []
    for i in range(64):
        held.append(bytearray(1 + i * 997 % 5000))  # so that the encoder's buffers lie elsewhere each time
        assert encode(frames_FHWC, 12, LOSSY) == first


@pytest.mark.parametrize("size", [(20, 20), (80, 80)])
def test_a_clip_encodes_to_the_same_bytes_without_vector_instructions(size, monkeypatch):
    frames_FHWC = moving(*size, frames=24)
    first = encode(frames_FHWC, 12, LOSSY)
    monkeypatch.setattr(video_module, "X264_PARAMS", f"{video_module.X264_PARAMS}:asm=0")
    assert encode(frames_FHWC, 12, LOSSY) == first
