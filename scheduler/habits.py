"""Habits of who holds the keys, learned online: how long a motion is kept, and which one follows it.

Motions are told apart by which way they turn and move: what a person holds, whether keys are known or poses alone. Per
class of motion the table counts how long runs lasted and what came next; a session's own counts are used first, then
its tenant's, then a prior that knows nothing. So the forecast of a fresh session is that of its tenant.

Shapes: A = 81 classes of motion, R run lengths, Q ways, H chunks, S latent frames.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scheduler.forecast import Forecast
from scheduler.snapshot import Floats, Ints, SessionView
from worldkv.camera.forecast import poses_of_screws, screws
from worldkv.camera.poses import relative_framewise

CLASSES = 81
"""Turn left, right or neither; the same of pitch, of moving sideways, of moving on."""
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
CHANGES = 3
"""Changes of motion followed per way."""


@dataclass
class Counts:
    """Mutable, one owner; what was seen of one session or tenant."""

    stays_AR: Floats = field(default_factory=lambda: np.zeros((CLASSES, LONGEST_RUN + 1)))
    """Frames after which a run of this length went on."""
    leaves_AR: Floats = field(default_factory=lambda: np.zeros((CLASSES, LONGEST_RUN + 1)))
    """Frames after which it ended."""
    next_AA: Floats = field(default_factory=lambda: np.zeros((CLASSES, CLASSES)))
    """Which class came after."""
    screw_A6: Floats = field(default_factory=lambda: np.zeros((CLASSES, 6)))
    """Mean motion per frame of the class."""
    frames_A: Floats = field(default_factory=lambda: np.zeros(CLASSES))


class _Habit(NamedTuple):
    """What a class of motion is followed by."""

    leaving_R: Floats
    """Chance that a run ends after so many frames."""
    following_A: Floats
    """Cumulated weight of the classes that come after it."""


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

    def learn(self, c2w_F44: Floats) -> None:
        """Take in poses of consecutive frames, of which the first was the last one of the time before."""
        if len(c2w_F44) < 2:
            return
        screw_F6 = screws(relative_framewise(c2w_F44)[1:])
        kinds = motion_classes(screw_F6).tolist()
        self._learned += 1
        for kind in {*kinds, *(() if self.run is None else (self.run.kind,))}:
            self._habits.pop(kind, None)
        if self._learned % REFRESHED_EVERY == 0:
            self._habits.clear()
        for kind, screw_6 in zip(kinds, screw_F6, strict=True):
            self._step(kind, screw_6)

    def _step(self, kind: int, screw_6: Floats) -> None:
        run = self.run
        for counts in (self.own, self.tenant):
            if run is not None:
                if run.kind == kind:
                    counts.stays_AR[kind, min(run.frames, LONGEST_RUN)] += 1
                else:
                    counts.leaves_AR[run.kind, min(run.frames, LONGEST_RUN)] += 1
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
        frame_QHf44 = c2w_QS44.reshape(len(weight_Q), chunks, -1, 4, 4)
        # The middle one's rotation is the mean of all where the turn rate is steady, and far cheaper where it is not.
        pose_QH44 = frame_QHf44[:, :, frame_QHf44.shape[2] // 2].copy()
        pose_QH44[..., :3, 3] = frame_QHf44[..., :3, 3].mean(axis=2)
        return Forecast(pose_QH44, np.repeat(weight_Q[:, None], chunks, axis=1), self.name)

    def _ways(self, frames: int) -> tuple[Ints, Ints, Floats]:
        """Classes [Q, C] of each way, the frame until which each is held, and the ways' probabilities."""
        assert self.run is not None
        draw_QC2 = _draws()
        kind_QC = np.full((WAYS, CHANGES + 1), self.run.kind)
        until_QC = np.full((WAYS, CHANGES + 1), frames)
        survival_R = _survival(self._habit(self.run.kind), self.run.frames, frames)
        kept = float(survival_R[-1])
        # The first way keeps on; the others change within the horizon, at times spread evenly over its chances.
        target_Q = 1 - draw_QC2[1:, 0, 0] * (1 - kept)
        until_QC[1:, 0] = np.searchsorted(-survival_R, -target_Q, side="right").clip(0, frames)
        fresh: dict[int, Floats] = {}
        for way in range(1, WAYS):
            kind, start = self.run.kind, int(until_QC[way, 0])
            for change in range(1, CHANGES + 1):
                if start >= frames:
                    kind_QC[way, change:] = kind
                    break
                what, how_long = draw_QC2[way, change].tolist()
                cumulative_A = self._habit(kind).following_A
                kind = min(int(cumulative_A.searchsorted(what * cumulative_A[-1], side="right")), CLASSES - 1)
                if kind not in fresh:
                    fresh[kind] = -_survival(self._habit(kind), 0, frames)
                start += 1 + int(fresh[kind].searchsorted(-how_long))
                kind_QC[way, change] = kind
                until_QC[way, change] = frames if change == CHANGES else min(frames, start)
        weight_Q: Floats = np.full(WAYS, (1 - kept) / (WAYS - 1))
        weight_Q[0] = kept
        return kind_QC, until_QC, weight_Q

    def _habit(self, kind: int) -> _Habit:
        if kind not in self._habits:
            self._habits[kind] = _Habit(self._leaving(kind), self._following(kind))
        return self._habits[kind]

    def _leaving(self, kind: int) -> Floats:
        """Chance per run length that the run ends after it."""
        own, tenant = self.own, self.tenant
        seen = float(tenant.stays_AR[kind].sum() + tenant.leaves_AR[kind].sum())
        part = min(1.0, TENANT_FRAMES / seen) if seen else 0.0
        leaves_R = _smooth(own.leaves_AR[kind] + part * tenant.leaves_AR[kind])
        stays_R = _smooth(own.stays_AR[kind] + part * tenant.stays_AR[kind])
        prior = (leaves_R.sum() + PRIOR_LEAVES) / (leaves_R.sum() + stays_R.sum() + PRIOR_FRAMES)
        chance_R: Floats = (leaves_R + prior * PRIOR_FRAMES) / (leaves_R + stays_R + PRIOR_FRAMES)
        chance_R[0] = 0.0  # a run lasts one frame at least
        return chance_R

    def _following(self, kind: int) -> Floats:
        """Cumulated weight of what comes after a class; of what was ever seen where nothing was."""
        own_A, tenant_A = self.own.next_AA[kind], self.tenant.next_AA[kind]
        seen = tenant_A.sum()
        weight_A = own_A + tenant_A * (min(1.0, TENANT_CHANGES / seen) if seen else 0.0)
        if not weight_A.any():
            weight_A = self.own.frames_A
        cumulative_A: Floats = np.cumsum(weight_A)
        return cumulative_A

    def _walk(self, start_44: Floats, kind_QC: Ints, until_QC: Ints, latent_S: Ints) -> Floats:
        """Poses [Q, S, 4, 4] at the latent frames of ways that hold each class until a frame."""
        assert self.run is not None
        screw_A6 = np.where(self.own.frames_A[:, None] > 0, self.own.screw_A6, self.tenant.screw_A6)
        screw_QC6 = screw_A6[kind_QC]
        screw_QC6[kind_QC == self.run.kind] = self.run.screw_6
        since_QC = np.concatenate([np.zeros((len(kind_QC), 1), np.int64), until_QC[:, :-1]], axis=1)
        held_QSC = np.clip(latent_S[:, None], None, until_QC[:, None]) - since_QC[:, None]
        held_QSC = held_QSC.clip(0)
        # Beyond the last change the last class is held.
        turn_QSC6 = held_QSC[..., None] * screw_QC6[:, None]
        pose = poses_of_screws(turn_QSC6.reshape(-1, 6)).reshape(*held_QSC.shape, 4, 4)
        pose_QS44: Floats = start_44 @ functools.reduce(np.matmul, np.moveaxis(pose, 2, 0))
        return pose_QS44


def motion_classes(screw_F6: Floats) -> Ints:
    """The class of each motion per frame: signs of yaw, pitch, sideways and forward motion. Roll and height: no key."""
    part_F4 = screw_F6[:, [1, 0, 3, 5]]
    threshold_4 = np.array([TURN_THRESHOLD, TURN_THRESHOLD, MOVE_THRESHOLD, MOVE_THRESHOLD])
    sign_F4 = np.where(np.abs(part_F4) < threshold_4, 0, np.sign(part_F4)).astype(np.int64) + 1
    return np.asarray(sign_F4 @ np.array([27, 9, 3, 1]))


@functools.cache
def _draws() -> Floats:
    """Numbers in (0, 1) [Q, C, 2], evenly spread over the ways: the same for every forecast, so that it repeats."""
    golden = 0.6180339887498949
    way_Q, column_c = np.arange(WAYS), np.arange(2 * (CHANGES + 1))
    spread_Qc = ((way_Q[:, None] - 0.5) / (WAYS - 1) + column_c * golden) % 1.0
    # Shuffled by another stride per column, so that late changes do not always go one way.
    for column in range(1, spread_Qc.shape[1]):
        spread_Qc[1:, column] = spread_Qc[1:, column][(np.arange(WAYS - 1) * (2 + column % 3)) % (WAYS - 1)]
    return spread_Qc.reshape(WAYS, CHANGES + 1, 2)


def _survival(habit: _Habit, lasted: int, frames: int) -> Floats:
    """Chance [frames] that a run that has lasted so long goes on for 1, 2, ... more frames."""
    length_R = np.minimum(np.arange(lasted, lasted + frames), LONGEST_RUN)
    return np.asarray(np.cumprod(1 - habit.leaving_R[length_R]))


def _smooth(count_R: Floats) -> Floats:
    """Counts shared with run lengths nearby: 5 of 64 frames and 6 of 64 are the same habit."""
    total_R = np.concatenate([np.zeros(3), np.cumsum(count_R), np.full(2, count_R.sum())])
    return np.asarray((total_R[5:] - total_R[:-5]) / 5.0)
