"""Which picture the video shows when: long parts are thinned, the turning point and the end are held. Pure.

Ten seconds must do: the part that is shown to the models is only there to say what they could know.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Phase = Literal["given", "turn", "generated", "end"]

# At most this long, however long the rollout: what is past it is seen in fast motion.
GIVEN_SECONDS = 4.0
GENERATED_SECONDS = 16.0
# Long enough to read the banner that has just changed.
TURN_SECONDS = 1.5
# Long enough to read the result.
END_SECONDS = 2.5


class Shot(NamedTuple):
    """One picture of the video."""

    frame: int
    """Which video frame of the rollouts it shows."""
    phase: Phase
    speed: int
    """Every how manieth video frame is shown; 1 is no fast motion."""


def timeline(frames: int, given: int, fps: int) -> list[Shot]:
    """The pictures of a video of `frames` video frames, the first `given` of them shown to the models."""
    given = min(given, frames)
    shots = _thinned(range(given), "given", GIVEN_SECONDS * fps)
    if 0 < given < frames:
        shots += [Shot(given - 1, "turn", 1)] * round(TURN_SECONDS * fps)
    shots += _thinned(range(given, frames), "generated", GENERATED_SECONDS * fps)
    return shots + [Shot(frames - 1, "end", 1)] * round(END_SECONDS * fps)


def _thinned(frames: range, phase: Phase, most: float) -> list[Shot]:
    """Evenly spaced frames, the last one among them, no more than `most`."""
    step = max(1, math.ceil(len(frames) / most))
    return [Shot(frame, phase, step) for frame in reversed(frames[::-1][::step])]
