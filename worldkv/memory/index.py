"""Where a session's stored chunks were seen from, and which of them were seen from nearest.

The nearest are those of `retrieval.select(retrieval.mean_pose_distance(...))` over all candidates, to the last bit and
tie; `screening` spares most of the work. With `parity` a mean pose is no rotation and nothing is spared: O(N).

Shapes: N chunks or rows, F latent frames of a chunk.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from worldkv.errors import ChunkNotFound
from worldkv.memory import retrieval, screening
from worldkv.memory.pose_rows import BLOCK_ROWS, Part, PoseRows
from worldkv.memory.retrieval import Floats, Ints

# A fork's next chunk opens a block of its own rather than copy a shared one that is larger than this: 0.2 MB. Smaller
# ones are copied, lest a session that is forked often consist of crumbs.
CLONED_ROWS = 1024


class PoseIndex:
    """Mean pose of each stored chunk of one session. One thread."""

    def __init__(self, *, parity: bool) -> None:
        self.parity = parity
        self._blocks: list[PoseRows] = []
        """Oldest chunk first; a row ends with a chunk that is not gone."""
        self._gone: set[int] = set()
        """Forgotten chunks that lie inside a row's run."""
        self._count = 0
        self._scratch_2N = np.empty((2, 0), np.float32)
        """Kept from query to query: fresh memory costs as much as the work done in it."""

    def __len__(self) -> int:
        return self._count

    def add(self, chunk: int, c2w_F44: NDArray[np.float32]) -> None:
        """Remember from where chunk `chunk` saw. O(1) where it is the newest, as it usually is; else O(N)."""
        pose_44 = retrieval.mean_pose(c2w_F44, parity=self.parity)
        if not self._blocks or chunk > self._last():
            self._append(chunk, pose_44)
            return
        entries = {known: self.mean_pose(known) for known in self.chunks()} | {chunk: pose_44}
        self._blocks, self._gone, self._count = [], set(), 0
        for known in sorted(entries):
            self._append(known, entries[known])

    def forget(self, chunk: int) -> None:
        """Never offer chunk `chunk` again. Raises ChunkNotFound if it is not in the index."""
        block, row = self._find(chunk)
        rows = self._writable(block)
        self._gone.add(chunk)
        self._count -= 1
        while rows.first_R[row] in self._gone and rows.first_R[row] <= rows.last_R[row]:
            self._gone.remove(int(rows.first_R[row]))
            rows.first_R[row] += 1
        while rows.last_R[row] in self._gone and rows.first_R[row] <= rows.last_R[row]:
            self._gone.remove(int(rows.last_R[row]))
            rows.last_R[row] -= 1
        if rows.first_R[row] > rows.last_R[row]:
            rows.remove(row)
        if not rows.count:
            del self._blocks[block]

    def chunks(self) -> list[int]:
        """All chunks in the index, oldest first."""
        return self.candidates(range(self._last() + 1)) if self._blocks else []

    def candidates(self, allowed: range) -> list[int]:
        """Stored chunks within `allowed`, oldest first."""
        runs = (
            run
            for part in self._parts(allowed)
            for run in zip(part.rows.first_R[part.used].tolist(), part.rows.last_R[part.used].tolist(), strict=True)
        )
        inside = (range(max(first, allowed.start), min(last + 1, allowed.stop)) for first, last in runs)
        return [chunk for chunk in itertools.chain.from_iterable(inside) if chunk not in self._gone]

    def mean_pose(self, chunk: int) -> Floats:
        """From where chunk `chunk` saw on average, [4, 4]. Raises ChunkNotFound if it is not in the index."""
        block, row = self._find(chunk)
        pose_44: Floats = self._blocks[block].pose_R44[row].copy()
        return pose_44

    def mean_poses(self, chunk_N: Sequence[int]) -> Floats:
        """From where chunks saw on average, [N, 4, 4]. Raises ChunkNotFound if one is not in the index."""
        return np.array([self.mean_pose(chunk) for chunk in chunk_N]).reshape(-1, 4, 4)

    def nearest(self, allowed: range, query_c2w_F44: NDArray[np.float32], count: int) -> list[int]:
        """The `count` stored chunks within `allowed` seen from nearest to the query's poses, nearest first.

        Of equally near chunks the newer comes first.
        """
        parts = self._parts(allowed)
        if not parts:
            return []
        query_44 = retrieval.mean_pose(query_c2w_F44, parity=self.parity)
        screened = None if self.parity else self._screen(parts, query_44, retrieval.checked(count))
        if screened is None:
            row_N = np.arange(sum(part.stop - part.start for part in parts))
            distance_N = retrieval.mean_pose_distance(screening.poses(parts, row_N), query_44, parity=self.parity)
        else:
            row_N = screened.row_N
            pose_N44 = screening.poses(parts, row_N)
            length_sq_N, angle_N = retrieval.length_sq(pose_N44, query_44), retrieval.angle(pose_N44, query_44)
            distance_N = retrieval.combined(length_sq_N, angle_N, screened.maxima)
        return self._select(parts, row_N, distance_N, allowed, count)

    def copy(self) -> PoseIndex:
        """An index of its own with the same entries (a fork); rows are shared until one of the two writes."""
        twin = PoseIndex(parity=self.parity)
        for rows in self._blocks:
            rows.frozen = True
        twin._blocks, twin._gone, twin._count = list(self._blocks), set(self._gone), self._count
        return twin

    def _screen(self, parts: list[Part], query_44: Floats, count: int) -> screening.Screened | None:
        room = len(self._blocks) * BLOCK_ROWS
        if self._scratch_2N.shape[1] < room:
            self._scratch_2N = np.empty((2, room), np.float32)
        return screening.screen(parts, query_44, count, self._scratch_2N)

    def _select(self, parts: list[Part], row_N: Ints, distance_N: Floats, allowed: range, count: int) -> list[int]:
        """The best chunks of the rows, each of which holds at least one."""
        # A chunk behind `count` rows is behind a chunk of each of them.
        best_n = retrieval.select(distance_N, np.arange(len(row_N)), count)
        kept_n = np.sort(best_n)
        chunk_rows = [
            (distance, chunk)
            for row, distance in zip(row_N[kept_n].tolist(), distance_N[kept_n].tolist(), strict=True)
            for chunk in itertools.islice(self._newest(*_row_at(parts, row), allowed), count)
        ]
        if not chunk_rows:
            return []
        distance_n, chunk_n = zip(*chunk_rows, strict=True)
        return [int(chunk) for chunk in retrieval.select(np.array(distance_n), chunk_n, count)]

    def _parts(self, allowed: range) -> list[Part]:
        """The rows that hold a chunk within `allowed`."""
        parts = []
        for rows in self._blocks:
            if rows.first_R[0] >= allowed.start and rows.last_R[rows.count - 1] < allowed.stop:
                parts.append(Part(rows, 0, rows.count))
                continue
            start = int(np.searchsorted(rows.last_R[: rows.count], allowed.start))
            stop = int(np.searchsorted(rows.first_R[: rows.count], allowed.stop))
            # Only a run that reaches across an end of `allowed` can have nothing but gone chunks inside.
            while start < stop and next(self._newest(rows, start, allowed), None) is None:
                start += 1
            while start < stop and next(self._newest(rows, stop - 1, allowed), None) is None:
                stop -= 1
            if start < stop:
                parts.append(Part(rows, start, stop))
        return parts

    def _newest(self, rows: PoseRows, row: int, allowed: range) -> Iterator[int]:
        """The chunks of a row within `allowed`, newest first."""
        first, last = max(int(rows.first_R[row]), allowed.start), min(int(rows.last_R[row]), allowed.stop - 1)
        return (chunk for chunk in range(last, first - 1, -1) if chunk not in self._gone)

    def _last(self) -> int:
        return int(self._blocks[-1].last_R[self._blocks[-1].count - 1])

    def _find(self, chunk: int) -> tuple[int, int]:
        """Block and row of a chunk."""
        block = bisect_right(self._blocks, chunk, key=lambda rows: int(rows.first_R[0])) - 1
        if block >= 0 and chunk not in self._gone:
            rows = self._blocks[block]
            row = int(np.searchsorted(rows.first_R[: rows.count], chunk, side="right")) - 1
            if rows.first_R[row] <= chunk <= rows.last_R[row]:
                return block, row
        raise ChunkNotFound(f"chunk {chunk} is not among the {len(self)} chunks of the index")

    def _append(self, chunk: int, pose_44: Floats) -> None:
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.full or (last.frozen and last.count > CLONED_ROWS):
            self._blocks.append(PoseRows())
        self._writable(len(self._blocks) - 1).append(chunk, pose_44)
        self._count += 1

    def _writable(self, block: int) -> PoseRows:
        if self._blocks[block].frozen:
            self._blocks[block] = self._blocks[block].clone()
        return self._blocks[block]


def _row_at(parts: list[Part], number: int) -> tuple[PoseRows, int]:
    """The block, and the row in it, of a row numbered over all parts."""
    for part in parts:
        if number < part.stop - part.start:
            return part.rows, part.start + number
        number -= part.stop - part.start
    raise AssertionError(f"row {number} lies past the last part")
