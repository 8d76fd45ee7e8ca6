"""Mean poses of a session's stored chunks in flat arrays: exact ones, and float32 ones for screening.

A row is one mean pose and the run of consecutive chunks that share it to the last bit, so a camera that stands still
costs one row, not one per chunk. Rows lie in blocks, oldest chunk first; forks share blocks until one writes.

Shapes: R rows of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worldkv.memory.retrieval import Floats, yaw_pitch

# Large enough that calls into numpy cost less than the work; a fork's first write copies one block, 6 MB at most.
BLOCK_ROWS = 32_768
SINGLES = ("place_4R", "forward_4R", "quaternion_4R", "yaw_pitch_2R")
"""Columns of float32, rows last."""


class PoseRows:
    """One block of rows. Written by one index only, until `frozen`."""

    def __init__(self) -> None:
        self.count = 0
        self.frozen = False
        """Shared with a fork: to be cloned before the next write."""
        self.pose_R44 = np.empty((BLOCK_ROWS, 4, 4))
        self.first_R = np.empty(BLOCK_ROWS, np.int64)
        self.last_R = np.empty(BLOCK_ROWS, np.int64)
        """Oldest and newest chunk of each row."""
        self.place_4R = np.empty((4, BLOCK_ROWS), np.float32)
        """x, y, z from the origin, the square of their length."""
        self.forward_4R = np.empty((4, BLOCK_ROWS), np.float32)
        """x, y, z of the viewing direction, its product with the place from the origin."""
        self.quaternion_4R = np.empty((4, BLOCK_ROWS), np.float32)
        """w, x, y, z of the rotation."""
        self.yaw_pitch_2R = np.empty((2, BLOCK_ROWS), np.float32)
        """Of the rotation, as `retrieval.yaw_pitch`."""
        self.place_R = np.empty(BLOCK_ROWS, np.int64)
        self.turn_R = np.empty(BLOCK_ROWS, np.int64)
        """Numbers that rise where place or rotation differ from the row before: equal means equal to the last bit."""
        self.origin_3 = np.zeros(3)
        """The first place: float32 keeps more digits of a place that is counted from nearby."""
        self.reach = 0.0
        """No row lies farther from the origin, removed rows included."""
        self.extent = 0.0
        """No coordinate of a row is larger, removed rows included."""

    @property
    def full(self) -> bool:
        """Whether no row can be appended."""
        return self.count == BLOCK_ROWS

    def append(self, chunk: int, pose_44: Floats) -> None:
        """Add a chunk newer than all others: to the last row where it continues that, else as a row of its own."""
        row = self.count
        moved = turned = True
        if row:
            last_44 = self.pose_R44[row - 1]
            moved = last_44[:, 3].tobytes() != pose_44[:, 3].tobytes()
            turned = last_44[:, :3].tobytes() != pose_44[:, :3].tobytes()
            if not moved and not turned and self.last_R[row - 1] == chunk - 1:
                self.last_R[row - 1] = chunk
                return
        else:
            self.origin_3 = pose_44[:3, 3].copy()
        self.pose_R44[row], self.first_R[row], self.last_R[row] = pose_44, chunk, chunk
        self.place_R[row] = self.place_R[row - 1] + moved if row else 0
        self.turn_R[row] = self.turn_R[row - 1] + turned if row else 0
        place_3 = pose_44[:3, 3] - self.origin_3
        length_sq = float(place_3 @ place_3)
        with np.errstate(over="ignore"):  # beyond float32: `reach` tells, and such a block is not screened
            self.place_4R[:, row] = (*place_3, length_sq)
            self.forward_4R[:, row] = (*pose_44[:3, 2], place_3 @ pose_44[:3, 2])
        self.quaternion_4R[:, row] = quaternion(pose_44[:3, :3])
        self.yaw_pitch_2R[:, row] = yaw_pitch(pose_44[None])[:, 0]
        self.reach = max(self.reach, length_sq**0.5)
        self.extent = max(self.extent, float(np.abs(pose_44[:3, 3]).max()))
        self.count += 1

    def remove(self, row: int) -> None:
        """Take a row out; those behind it move up. Up to 6 MB are moved."""
        stop = self.count
        for rows in (self.pose_R44, self.first_R, self.last_R, self.place_R, self.turn_R):
            rows[row : stop - 1] = rows[row + 1 : stop]
        for name in SINGLES:
            columns = getattr(self, name)
            columns[:, row : stop - 1] = columns[:, row + 1 : stop]
        self.count -= 1

    def clone(self) -> PoseRows:
        """A block of its own with the same rows."""
        twin, used = PoseRows(), slice(self.count)
        for name in ("pose_R44", "first_R", "last_R", "place_R", "turn_R"):
            getattr(twin, name)[used] = getattr(self, name)[used]
        for name in SINGLES:
            getattr(twin, name)[:, used] = getattr(self, name)[:, used]
        twin.count, twin.origin_3, twin.reach, twin.extent = self.count, self.origin_3, self.reach, self.extent
        return twin


class Part(NamedTuple):
    """The rows start..stop-1 of a block."""

    rows: PoseRows
    start: int
    stop: int

    @property
    def used(self) -> slice:
        """The rows as a slice."""
        return slice(self.start, self.stop)


def quaternion(rotation_33: Floats) -> Floats:
    """Unit quaternion w, x, y, z of a rotation, of either sign."""
    (a, b, c), (d, e, f), (g, h, i) = rotation_33.tolist()
    # Four forms of the same quaternion, each times four of its own components; the longest keeps the most digits.
    forms_44 = np.array(
        [
            [1 + a + e + i, h - f, c - g, d - b],
            [h - f, 1 + a - e - i, b + d, c + g],
            [c - g, b + d, 1 - a + e - i, f + h],
            [d - b, c + g, f + h, 1 - a - e + i],
        ]
    )
    longest_4 = forms_44[forms_44.diagonal().argmax()]
    unit_4: Floats = longest_4 / np.sqrt(longest_4 @ longest_4)
    return unit_4
