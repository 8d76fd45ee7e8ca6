"""Where a session's camera will be: poses of its next chunks, each with a probability.

Of what is known the surest is used: a script (exact), a planner's horizon (as sure as it says), the habits of who holds
the keys (`scheduler.habits`), or else the present motion, continued. Whatever raises or makes no sense is passed over,
and named.

Shapes: Q ways the camera may go, H chunks ahead (0 is the one made next), F video frames, S latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from scheduler.snapshot import Floats, SessionView
from worldkv.camera import check_poses, extrapolate
from worldkv.camera.nearness import mean_pose
from worldkv.errors import TrajectoryError

RECENT_FRAMES = 2
# Held keys are the best guess of what is held next; a mean over more frames mixes in keys that were let go. With
# 2, 3, 5, 9 and 13 poses the error rose step by step on every tuning set.

STEADY_PROBABILITY = 0.5
"""Of motion that is only continued: nothing was learned yet. Halved per chunk."""

FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
# What a predictor written elsewhere raises when it is wrong. Running out of memory and Ctrl-C are no predictor's fault.


@dataclass(frozen=True, eq=False)
class Forecast:
    """Ways the camera may go. Those of one chunk ahead have probabilities that sum to 1 at most."""

    pose_QH44: Floats
    """Mean pose of the latent frames of each chunk."""
    probability_QH: Floats
    """0 where a way is not known that far ahead."""
    source: str
    ignored: tuple[str, ...] = ()
    """One line for each predictor that was passed over."""

    @property
    def chunks(self) -> int:
        """How many chunks it looks ahead."""
        return len(self.probability_QH[0]) if len(self.probability_QH) else 0


class Predictor(Protocol):
    """A source of forecasts, such as a planner's horizon or learned habits."""

    @property
    def name(self) -> str:
        """What a log line calls it."""
        ...

    def predict(self, session: SessionView, chunks: int) -> Forecast | None:
        """The next `chunks` chunks, or fewer; None where it knows nothing of this session. Changes nothing."""
        ...


class Planned(NamedTuple):
    """A caller's own horizon: poses from the first frame of the next chunk on, and how sure they are."""

    c2w_F44: Floats
    probability: float
    name: str = "planner"

    def predict(self, session: SessionView, chunks: int) -> Forecast | None:
        """Whole chunks of the horizon; the rest of the probability goes to nobody."""
        c2w_F44 = check_poses(self.c2w_F44, self.name)
        known = min(chunks, len(c2w_F44) // session.frames_per_chunk)
        pose_H44 = chunk_poses(c2w_F44[: known * session.frames_per_chunk], session)
        return Forecast(pose_H44[None], np.full((1, known), float(self.probability)), self.name) if known else None


class Scripted(NamedTuple):
    """The session's script, where it has one."""

    name: str = "script"

    def predict(self, session: SessionView, chunks: int) -> Forecast | None:
        """Exact; fewer chunks near the script's end."""
        if session.script_F44 is None:
            return None
        known = min(chunks, len(session.script_F44) // session.frames_per_chunk)
        pose_H44 = chunk_poses(session.script_F44[: known * session.frames_per_chunk], session)
        return Forecast(pose_H44[None], np.ones((1, known)), self.name) if known else None


class Steady(NamedTuple):
    """Velocity and turn rate of the last frames, held."""

    frames: int = RECENT_FRAMES
    name: str = "steady"

    def predict(self, session: SessionView, chunks: int) -> Forecast | None:
        """One way, whose probability falls with every chunk."""
        recent_F44 = session.recent_F44[-self.frames :]
        c2w_F44 = extrapolate(recent_F44, chunks * session.frames_per_chunk)
        probability_H: Floats = STEADY_PROBABILITY ** np.arange(1.0, chunks + 1)
        return Forecast(chunk_poses(c2w_F44, session)[None], probability_H[None], self.name)


def forecast(session: SessionView, chunks: int, predictors: Sequence[Predictor]) -> Forecast:
    """What the first of `predictors` says that knows the session; before them the script, after them steady motion."""
    ignored: list[str] = []
    for predictor in (Scripted(), *predictors, Steady()):
        try:
            found = predictor.predict(session, chunks)
            fault = None if found is None else _nonsense(found)
        except FAULTS as error:
            found, fault = None, f"raised {type(error).__name__}: {error}"
        if fault is not None:
            ignored.append(f"session {session.session}: predictor {predictor.name} was ignored: {fault}")
        elif found is not None:
            return Forecast(found.pose_QH44, found.probability_QH, found.source, tuple(ignored))
    return Forecast(np.empty((0, 0, 4, 4)), np.empty((0, 0)), "nothing", tuple(ignored))


def chunk_poses(c2w_F44: Floats, session: SessionView) -> Floats:
    """Mean pose of the latent frames of each chunk, [H, 4, 4], of video frames [H x frames per chunk, 4, 4]."""
    frame_HF44 = c2w_F44.reshape(-1, session.frames_per_chunk, 4, 4)[:, :: session.latent_stride]
    return mean_pose(frame_HF44)


def _nonsense(found: Forecast) -> str | None:
    """What is wrong with a forecast; None when it can be used."""
    pose_QH44, probability_QH = np.asarray(found.pose_QH44), np.asarray(found.probability_QH)
    if pose_QH44.shape != (*probability_QH.shape, 4, 4) or probability_QH.ndim != 2:
        return f"poses {list(pose_QH44.shape)} do not go with probabilities {list(probability_QH.shape)}"
    if not ((probability_QH >= 0).all() and (probability_QH.sum(axis=0) <= 1 + 1e-9).all()):
        return f"probabilities {probability_QH.tolist()} are no probabilities"
    try:
        check_poses(pose_QH44.reshape(-1, 4, 4), found.source)
    except TrajectoryError as error:
        return str(error)
    return None
