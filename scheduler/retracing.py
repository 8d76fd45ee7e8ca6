"""Going back the way one came: seen as soon as a motion is undone, and followed as far as it is likely to go on.

A path is one motion after another: a turn, a stride. Who undoes the last one by chance seldom undoes the one before it
as well; who has undone several is on the way back. How often the next is undone too is learned, by how many were.

Shapes: P places of the path, n new ones, F frames ahead, K motions undone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scheduler.snapshot import Floats, Ints

LONGEST_PATH = 4096
"""Places remembered at least, some three minutes of a moving camera; twice as many at most."""
AS_GOOD_AS_THERE = 0.25
"""Nearer to a place of the path than this part of the step that led there: retraced, and no other motion's doing."""
MOTIONS = 4
"""So many undone count like any more."""
WENT_ON, LEFT = 0, 1
PRIOR = 1.0
"""Of each, before anything was seen: even."""
TENANT_TIMES = 20.0
"""A tenant's counts weigh at most like so many of the session's own."""


class Retraced(NamedTuple):
    """The way back."""

    c2w_F44: Floats
    """Where it leads, frame by frame; from the path's begin on it rests there."""
    probability: float
    """That it is followed so far."""


def new_counts() -> Floats:
    """How often [K, 2] after so many motions undone the next was too (0), or was not (1)."""
    return np.zeros((MOTIONS, 2))


@dataclass
class Retracing:
    """Mutable; one session's path. Only `learn` changes it."""

    tenant_K2: Floats
    """Shared by the sessions of one tenant."""
    own_K2: Floats = field(default_factory=new_counts)
    at: int | None = None
    """Place of the path where the camera is again; None while it is on no way back."""
    undone: int = 0
    """Motions, whole or in part, of this way back."""
    _path_P44: Floats = field(default_factory=lambda: np.empty((64, 4, 4)))
    _kind_P: Ints = field(default_factory=lambda: np.empty(64, np.int64))
    """Class of the motion that led to each place."""
    _length: int = 0

    def learn(self, c2w_n44: Floats, kind_n: Ints) -> None:
        """Take in the next places of the path and the motions that led there; not those where the camera rested."""
        done = 0
        while done < len(kind_n):
            new_n44, new_kind_n = c2w_n44[done:], kind_n[done:]
            taken = self._look_for_return(new_n44) if self.at is None else self._go_on(new_n44)
            self._append(new_n44[:taken], new_kind_n[:taken])
            done += taken

    def ahead(self, frames: int) -> Retraced | None:
        """The way back for so many frames; None where the camera is on none."""
        if not self.at:
            return None
        steps = min(frames, self.at)
        c2w_F44 = self._path_P44[self.at - steps : self.at][::-1]
        if steps < frames:
            c2w_F44 = np.concatenate([c2w_F44, np.repeat(c2w_F44[-1:], frames - steps, axis=0)])
        changes = int(self._changes(steps).sum())
        chances = [self._chance(min(self.undone + more, MOTIONS - 1)) for more in range(max(1, changes))]
        return Retraced(c2w_F44, float(np.prod(chances)))

    def _look_for_return(self, new_n44: Floats) -> int:
        """Find the first place that undoes the step before it; how many places that takes."""
        known = min(2, self._length)
        place_p44 = np.concatenate([self._path_P44[self._length - known : self._length], new_n44])
        back_p, step_p = _apart(place_p44[2:], place_p44[:-2]), _apart(place_p44[1:-1], place_p44[:-2])
        found_p = back_p <= AS_GOOD_AS_THERE * step_p
        if not found_p.any():
            return len(new_n44)
        first = int(found_p.argmax())
        self.at, self.undone = self._length - known + first, 0
        return first + 2 - known + 1

    def _go_on(self, new_n44: Floats) -> int:
        """Follow the way back as far as the new places do; where they do not, it ends."""
        assert self.at is not None
        steps = min(len(new_n44), self.at)
        path_s44 = self._path_P44[self.at - steps : self.at + 1][::-1]
        off_s, step_s = _apart(new_n44[:steps], path_s44[1:]), _apart(path_s44[1:], path_s44[:-1])
        stray_s = off_s > AS_GOOD_AS_THERE * step_s
        followed = int(stray_s.argmax()) if stray_s.any() else steps
        for _ in range(int(self._changes(followed).sum())):
            self._count(WENT_ON)
            self.undone = min(self.undone + 1, MOTIONS - 1)
        self.at -= followed
        if followed < steps:
            self._count(LEFT)
        if followed < steps or not self.at:
            self.at = None
        return followed

    def _changes(self, steps: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the next steps back begin to undo another motion."""
        assert self.at is not None
        kind_s = self._kind_P[self.at - steps + 1 : self.at + 2][::-1]
        return np.asarray(kind_s[1:] != kind_s[:-1])

    def _count(self, what: int) -> None:
        self.own_K2[self.undone, what] += 1
        self.tenant_K2[self.undone, what] += 1

    def _chance(self, undone: int) -> float:
        seen = float(self.tenant_K2[undone].sum())
        part = min(1.0, TENANT_TIMES / seen) if seen else 0.0
        went_on, left = (self.own_K2[undone] + part * self.tenant_K2[undone] + PRIOR).tolist()
        return float(went_on / (went_on + left))

    def _append(self, new_n44: Floats, kind_n: Ints) -> None:
        if self._length + len(kind_n) > 2 * LONGEST_PATH:
            gone = self._length - LONGEST_PATH
            self._path_P44[:LONGEST_PATH] = self._path_P44[gone : self._length]
            self._kind_P[:LONGEST_PATH] = self._kind_P[gone : self._length]
            self._length -= gone
            self.at = None if self.at is None or self.at < gone else self.at - gone
        room = len(self._kind_P)
        while room < self._length + len(kind_n):
            room *= 2
        if room > len(self._kind_P):
            self._path_P44 = np.resize(self._path_P44, (room, 4, 4))
            self._kind_P = np.resize(self._kind_P, room)
        self._path_P44[self._length : self._length + len(kind_n)] = new_n44
        self._kind_P[self._length : self._length + len(kind_n)] = kind_n
        self._length += len(kind_n)


def _apart(one_n44: Floats, other_n44: Floats) -> Floats:
    """How far places are apart, [n]: the largest difference of any number of their poses."""
    return np.asarray(np.abs(one_n44 - other_n44).reshape(-1, 16).max(axis=1, initial=0.0))
