"""Habits of who holds the keys, learned online: how long a motion is kept, and which one follows it.

Motions are told apart by which way they turn and move: what a person holds, whether keys are known or poses alone. Per
class of motion the table counts how long runs lasted and what came next; a session's own counts are used first, then
its tenant's, then a prior that knows nothing. So the forecast of a fresh session is that of its tenant.

Shapes: A = 81 classes of motion, R run lengths, Q ways, H chunks, S latent frames.
"""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scheduler.forecast import Forecast
from scheduler.retracing import Retracing, new_counts
from scheduler.snapshot import Floats, Ints, SessionView
from worldkv.camera.forecast import poses_along, screws
from worldkv.camera.poses import relative_framewise

CLASSES = 81
"""Turn left, right or neither; the same of pitch, of moving sideways, of moving on."""
AT_REST = 27 + 9 + 3 + 1
"""The class of no motion."""
LONGEST_RUN = 64
"""Frames; what lasts longer is counted as this."""
TURN_THRESHOLD, MOVE_THRESHOLD = 2e-3, 1e-3
# Radians and world units per frame: a tenth of the slowest motion of any supported model, far above rounding.
TENANT_FRAMES = 200.0
"""A tenant's counts weigh at most like so many frames of the session's own."""
TENANT_CHANGES = 20.0
"""The same for changes of motion, of which there are ten times fewer."""
PRIOR_LEAVES, PRIOR_FRAMES = 1.0, 12.0
# Knowing nothing, a motion is expected to last one chunk.
WAYS = 8
"""Ways followed per forecast: the present motion kept, and seven in which it changes. Sixteen, which take twice as
long, lower the error two chunks ahead by up to 5 % on the tuning trajectories; four raise it by 4 to 9 %."""
REFRESHED_EVERY = 16
"""Times that a session learns until what its tenant's other sessions taught meanwhile is looked at again."""
ENDED, WENT_ON = 0, 1
CHANGES = 3
"""Changes of motion followed per way."""


@dataclass
class Counts:
    """Mutable, one owner; what was seen of one session or tenant."""

    runs_A2R: Floats = field(default_factory=lambda: np.zeros((CLASSES, 2, LONGEST_RUN + 1)))
    """How often a run that had lasted so many frames ended (0), or went on (1)."""
    next_AA: Floats = field(default_factory=lambda: np.zeros((CLASSES, CLASSES)))
    """Which class came after."""
    screw_A6: Floats = field(default_factory=lambda: np.zeros((CLASSES, 6)))
    """Mean motion per frame of the class."""
    frames_A: Floats = field(default_factory=lambda: np.zeros(CLASSES))
    undone_K2: Floats = field(default_factory=new_counts)
    """How often ways back were followed on; see `scheduler.retracing`."""


class _Habit(NamedTuple):
    """What a class of motion is followed by. Lists: they are searched one value at a time."""

    leaving_R: Floats
    """Chance that a run ends after so many frames."""
    following: list[float]
    """Cumulated weight of the classes that come after it."""
    ended: dict[int, list[float]]
    """Frames that a way is followed -> less the chance that a fresh run goes on for 1, 2, ... so many frames."""


class Run(NamedTuple):
    """The motion under way."""

    kind: int
    frames: int
    """It has lasted."""
    screw_6: Floats
    """Of its last frame."""


@dataclass
class Habits:
    """What was learned of one session, with its tenant's counts behind it. Only `learn` changes it."""

    tenant: Counts
    """Shared by the sessions of one tenant."""
    own: Counts = field(default_factory=Counts)
    run: Run | None = None
    name: str = "habits"
    _habits: dict[int, _Habit] = field(default_factory=dict)
    """Worked out from the counts; forgotten when the session moves so itself, now and then for its tenant's sake."""
    _learned: int = 0
    _way_back: Retracing = field(init=False)

    def __post_init__(self) -> None:
        self._way_back = Retracing(self.tenant.undone_K2)

    def learn(self, c2w_F44: Floats) -> None:
        """Take in poses of consecutive frames, of which the first was the last one of the time before."""
        if len(c2w_F44) < 2:
            return
        screw_F6 = screws(relative_framewise(c2w_F44)[1:])
        kind_F = motion_classes(screw_F6)
        moved_F = kind_F != AT_REST
        self._way_back.learn(c2w_F44[1:][moved_F], kind_F[moved_F])
        kinds = kind_F.tolist()
        self._learned += 1
        for kind in {*kinds, *(() if self.run is None else (self.run.kind,))}:
            self._habits.pop(kind, None)
        # Not all at once: no plan should pay for all of them.
        for kind in [kind for kind in self._habits if (self._learned + kind) % REFRESHED_EVERY == 0]:
            del self._habits[kind]
        for kind, screw_6 in zip(kinds, screw_F6, strict=True):
            self._step(kind, screw_6)

    def _step(self, kind: int, screw_6: Floats) -> None:
        run = self.run
        for counts in (self.own, self.tenant):
            if run is not None:
                if run.kind == kind:
                    counts.runs_A2R[kind, WENT_ON, min(run.frames, LONGEST_RUN)] += 1
                else:
                    counts.runs_A2R[run.kind, ENDED, min(run.frames, LONGEST_RUN)] += 1
                    counts.next_AA[run.kind, kind] += 1
            counts.frames_A[kind] += 1
            counts.screw_A6[kind] += (screw_6 - counts.screw_A6[kind]) / counts.frames_A[kind]
        self.run = Run(kind, run.frames + 1 if run is not None and run.kind == kind else 1, screw_6)

    def predict(self, session: SessionView, chunks: int) -> Forecast | None:
        """The present motion kept, and ways in which it changes, evenly drawn; None before anything was learned."""
        if self.run is None or not chunks:
            return None
        frames = chunks * session.frames_per_chunk
        kind_QC, until_QC, weight_Q = self._ways(frames)
        latent_S = np.arange(1, frames + 1).reshape(chunks, -1)[:, :: session.latent_stride].reshape(-1)
        c2w_QS44 = self._walk(session.recent_F44[-1], kind_QC, until_QC, latent_S)
        c2w_QS44, weight_Q = self._with_way_back(c2w_QS44, weight_Q, latent_S)
        frame_QHf44 = c2w_QS44.reshape(len(weight_Q), chunks, -1, 4, 4)
        # The middle one's rotation is the mean of all where the turn rate is steady, and far cheaper where it is not.
        pose_QH44 = frame_QHf44[:, :, frame_QHf44.shape[2] // 2].copy()
        pose_QH44[..., :3, 3] = frame_QHf44[..., :3, 3].mean(axis=2)
        return Forecast(pose_QH44, np.repeat(weight_Q[:, None], chunks, axis=1), self.name)

    def _with_way_back(self, c2w_QS44: Floats, weight_Q: Floats, latent_S: Ints) -> tuple[Floats, Floats]:
        """The ways and their probabilities; beside them the way back that the camera is on, if it is on one."""
        back = self._way_back.ahead(int(latent_S[-1]))
        if back is None:
            return c2w_QS44, weight_Q
        weight_Q = np.append(weight_Q * (1 - back.probability), back.probability)
        return np.concatenate([c2w_QS44, back.c2w_F44[None, latent_S - 1]]), weight_Q

    def _ways(self, frames: int) -> tuple[Ints, Ints, Floats]:
        """Classes [Q, C] of each way, the frame until which each is held, and the ways' probabilities."""
        assert self.run is not None
        draws = _draws()
        survival_R = _survival(self._habit(self.run.kind), self.run.frames, frames)
        kept = float(survival_R[-1])
        # The first way keeps on; the others change within the horizon, at times spread evenly over its chances.
        ended = (-survival_R).tolist()
        kinds, untils = [[self.run.kind] * (CHANGES + 1)], [[frames] * (CHANGES + 1)]
        for draw in draws[1:]:
            kind, start = self.run.kind, min(bisect_right(ended, draw[0][0] * (1 - kept) - 1), frames)
            held, until = [kind], [start]
            for what, how_long in draw[1:]:
                if start < frames:
                    following = self._habit(kind).following
                    kind = min(bisect_right(following, what * following[-1]), CLASSES - 1)
                    start += 1 + bisect_left(self._ended(kind, frames), -how_long)
                held.append(kind)
                until.append(min(start, frames))
            until[-1] = frames
            kinds.append(held)
            untils.append(until)
        weight_Q: Floats = np.full(WAYS, (1 - kept) / (WAYS - 1))
        weight_Q[0] = kept
        return np.array(kinds), np.array(untils), weight_Q

    def _ended(self, kind: int, frames: int) -> list[float]:
        habit = self._habit(kind)
        if frames not in habit.ended:
            habit.ended[frames] = (-_survival(habit, 0, frames)).tolist()
        return habit.ended[frames]

    def _habit(self, kind: int) -> _Habit:
        if kind not in self._habits:
            self._habits[kind] = _Habit(self._leaving(kind), self._following(kind), {})
        return self._habits[kind]

    def _leaving(self, kind: int) -> Floats:
        """Chance per run length that the run ends after it."""
        own_2R, tenant_2R = self.own.runs_A2R[kind], self.tenant.runs_A2R[kind]
        seen = float(tenant_2R.sum())
        leaves_R, stays_R = _smooth(own_2R + (min(1.0, TENANT_FRAMES / seen) if seen else 0.0) * tenant_2R)
        left, went_on = float(leaves_R.sum()), float(stays_R.sum())
        prior = (left + PRIOR_LEAVES) / (left + went_on + PRIOR_FRAMES)
        chance_R: Floats = (leaves_R + prior * PRIOR_FRAMES) / (leaves_R + stays_R + PRIOR_FRAMES)
        chance_R[0] = 0.0  # a run lasts one frame at least
        return chance_R

    def _following(self, kind: int) -> list[float]:
        """Cumulated weight of what comes after a class; of what was ever seen where nothing was."""
        own_A, tenant_A = self.own.next_AA[kind], self.tenant.next_AA[kind]
        seen = tenant_A.sum()
        weight_A = own_A + tenant_A * (min(1.0, TENANT_CHANGES / seen) if seen else 0.0)
        if not weight_A.any():
            weight_A = self.own.frames_A
        cumulative: list[float] = np.cumsum(weight_A).tolist()
        return cumulative

    def _walk(self, start_44: Floats, kind_QC: Ints, until_QC: Ints, latent_S: Ints) -> Floats:
        """Poses [Q, S, 4, 4] at the latent frames of ways that hold each class until a frame."""
        assert self.run is not None
        # Most ways change once or twice: what none of them reaches need not be walked.
        last = 1 + int((until_QC < latent_S[-1]).any(axis=0).sum())
        kind_QC, until_QC = kind_QC[:, :last], until_QC[:, :last]
        screw_QC6 = self.own.screw_A6[kind_QC]
        unknown_QC = self.own.frames_A[kind_QC] == 0
        if unknown_QC.any():
            screw_QC6[unknown_QC] = self.tenant.screw_A6[kind_QC[unknown_QC]]
        screw_QC6[kind_QC == self.run.kind] = self.run.screw_6
        since_QC = np.concatenate([np.zeros((len(kind_QC), 1), np.int64), until_QC[:, :-1]], axis=1)
        held_QCS = (np.minimum(latent_S, until_QC[..., None]) - since_QC[..., None]).clip(0).astype(np.float64)
        pose = poses_along(screw_QC6.reshape(-1, 6), held_QCS.reshape(-1, len(latent_S)))
        pose_QCS44 = pose.reshape(*held_QCS.shape, 4, 4)
        # Of the last class it is the rest of the way: it is held until the end.
        pose_QS44: Floats = start_44 @ functools.reduce(np.matmul, np.moveaxis(pose_QCS44, 1, 0))
        return pose_QS44


def motion_classes(screw_F6: Floats) -> Ints:
    """The class of each motion per frame: signs of yaw, pitch, sideways and forward motion. Roll and height: no key."""
    part_F4 = screw_F6[:, [1, 0, 3, 5]]
    threshold_4 = np.array([TURN_THRESHOLD, TURN_THRESHOLD, MOVE_THRESHOLD, MOVE_THRESHOLD])
    sign_F4 = np.where(np.abs(part_F4) < threshold_4, 0, np.sign(part_F4)).astype(np.int64) + 1
    return np.asarray(sign_F4 @ np.array([27, 9, 3, 1]))


@functools.cache
def _draws() -> list[list[list[float]]]:
    """Numbers in (0, 1) [Q, C, 2], evenly spread over the ways: the same for every forecast, so that it repeats."""
    golden = 0.6180339887498949
    way_Q, column_c = np.arange(WAYS), np.arange(2 * (CHANGES + 1))
    spread_Qc = ((way_Q[:, None] - 0.5) / (WAYS - 1) + column_c * golden) % 1.0
    # Shuffled by another stride per column, so that late changes do not always go one way.
    for column in range(1, spread_Qc.shape[1]):
        spread_Qc[1:, column] = spread_Qc[1:, column][(np.arange(WAYS - 1) * (2 + column % 3)) % (WAYS - 1)]
    draws: list[list[list[float]]] = spread_Qc.reshape(WAYS, CHANGES + 1, 2).tolist()
    return draws


def _survival(habit: _Habit, lasted: int, frames: int) -> Floats:
    """Chance [frames] that a run that has lasted so long goes on for 1, 2, ... more frames."""
    length_R = np.minimum(np.arange(lasted, lasted + frames), LONGEST_RUN)
    return np.asarray(np.cumprod(1 - habit.leaving_R[length_R]))


def _smooth(count_2R: Floats) -> Floats:
    """Counts shared with run lengths nearby: 5 of 64 frames and 6 of 64 are the same habit."""
    total_2R = np.zeros((len(count_2R), count_2R.shape[1] + 5))
    np.cumsum(count_2R, axis=1, out=total_2R[:, 3:-2])
    total_2R[:, -2:] = total_2R[:, -3:-2]
    return np.asarray((total_2R[:, 5:] - total_2R[:, :-5]) / 5.0)
