"""Where a session's stored chunks were seen from, and which of them were seen from nearest.

The nearest are those of `retrieval.select(retrieval.mean_pose_distance(...))` over all candidates, to the last bit and
tie; `screening` spares most of the work. With `parity` a mean pose is no rotation and nothing is spared: O(N).

Shapes: N chunks or rows, F latent frames of a chunk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from worldkv.errors import ChunkNotFound
from worldkv.memory import retrieval, screening
from worldkv.memory.pose_rows import BLOCK_ROWS, Part, PoseRows
from worldkv.memory.retrieval import Floats, Ints, Turn

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
        self._scratch_3N = np.empty((3, 0), np.float32)
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
        stored: list[int] = self.candidates(range(self._last() + 1)).tolist() if self._blocks else []
        return stored

    def candidates(self, allowed: range) -> Ints:
        """Stored chunks within `allowed`, oldest first."""
        parts = self._parts(allowed)
        if not parts:
            return np.arange(0)
        first_N = np.concatenate([part.rows.first_R[part.used] for part in parts])
        after_N = np.concatenate([part.rows.last_R[part.used] for part in parts]) + 1
        first_N[0], after_N[-1] = max(first_N[0], allowed.start), min(after_N[-1], allowed.stop)
        # Chunks that stand one after another differ from their place by the same number.
        broken_n = np.flatnonzero(first_N[1:] != after_N[:-1])
        start_n, stop_n = first_N[np.append(0, broken_n + 1)], after_N[np.append(broken_n, -1)]
        length_n = stop_n - start_n
        before_n = np.cumsum(length_n) - length_n
        chunk_N: Ints = np.repeat(start_n - before_n, length_n) + np.arange(length_n.sum())
        gone_n = np.array([chunk for chunk in self._gone if chunk in allowed], np.int64)
        return np.delete(chunk_N, np.searchsorted(chunk_N, gone_n)) if len(gone_n) else chunk_N

    def mean_pose(self, chunk: int) -> Floats:
        """From where chunk `chunk` saw on average, [4, 4]. Raises ChunkNotFound if it is not in the index."""
        block, row = self._find(chunk)
        pose_44: Floats = self._blocks[block].pose_R44[row].copy()
        return pose_44

    def mean_poses(self, chunk_N: Sequence[int]) -> Floats:
        """From where chunks saw on average, [N, 4, 4]. Raises ChunkNotFound if one is not in the index."""
        chunk_n = np.asarray(chunk_N, np.int64)
        pose_n44, known_n = np.empty((len(chunk_n), 4, 4)), np.zeros(len(chunk_n), bool)
        for rows in self._blocks:
            row_n = np.searchsorted(rows.first_R[: rows.count], chunk_n, side="right") - 1
            here_n = (row_n >= 0) & (chunk_n <= rows.last_R[row_n])
            pose_n44[here_n] = rows.pose_R44[row_n[here_n]]
            known_n |= here_n
        for chunk in (*chunk_n[~known_n].tolist(), *self._gone.intersection(chunk_n.tolist())):
            self._find(chunk)  # raises
        return pose_n44

    def nearest(
        self, allowed: range, query_c2w_F44: NDArray[np.float32], count: int, turn: Turn = retrieval.angle
    ) -> list[int]:
        """The `count` stored chunks within `allowed` seen from nearest to the query's poses, nearest first.

        Of equally near chunks the newer comes first. `turn` is a key of `screening.TURN_BOUNDS`; the published angle
        where the index has `parity`.
        """
        parts = self._parts(allowed)
        if not parts:
            return []
        query_44 = retrieval.mean_pose(query_c2w_F44, parity=self.parity)
        retrieval.checked(count)
        screened = None if self.parity else screening.screen(parts, query_44, count, self._scratch(), turn)
        if screened is None:
            row_N = np.arange(sum(part.stop - part.start for part in parts))
            pose_N44 = screening.poses(parts, row_N)
            distance_N = retrieval.mean_pose_distance(
                pose_N44, query_44, parity=self.parity, turn=None if self.parity else turn
            )
        else:
            row_N = screened.row_N
            pose_N44 = screening.poses(parts, row_N)
            length_sq_N, turn_N = retrieval.length_sq(pose_N44, query_44), turn(pose_N44, query_44)
            distance_N = retrieval.combined(length_sq_N, turn_N, screened.maxima)
        return self._select(parts, row_N, distance_N, allowed, count)

    def nearest_views(
        self, allowed: range, query_c2w_F44: NDArray[np.float32], count: int, *, depth: float
    ) -> list[int]:
        """The `count` stored chunks within `allowed` that looked at a point nearest to the query's, nearest first.

        The points lie `depth` before the cameras. Of equally near chunks the newer comes first. Not with `parity`.
        """
        parts = self._parts(allowed)
        if not parts:
            return []
        query_44 = retrieval.mean_pose(query_c2w_F44)
        row_N = screening.screen_views(parts, query_44, depth, retrieval.checked(count), self._scratch())
        apart_sq_N = retrieval.views_apart_sq(screening.poses(parts, row_N), query_44, depth)
        return self._select(parts, row_N, apart_sq_N, allowed, count)

    def copy(self) -> PoseIndex:
        """An index of its own with the same entries (a fork); rows are shared until one of the two writes."""
        twin = PoseIndex(parity=self.parity)
        for rows in self._blocks:
            rows.frozen = True
        twin._blocks, twin._gone, twin._count = list(self._blocks), set(self._gone), self._count
        return twin

    def _scratch(self) -> screening.Singles:
        room = len(self._blocks) * BLOCK_ROWS
        if self._scratch_3N.shape[1] < room:
            self._scratch_3N = np.empty((3, room), np.float32)
        return self._scratch_3N

    def _select(self, parts: list[Part], row_N: Ints, distance_N: Floats, allowed: range, count: int) -> list[int]:
        """The best chunks of the rows, each of which holds at least one."""
        # A chunk behind `count` rows is behind a chunk of each of them.
        best_n = retrieval.select(distance_N, np.arange(len(row_N)), count)
        kept_n = np.sort(best_n)
        first_n = np.maximum(screening.picked(parts, row_N[kept_n], lambda rows: rows.first_R), allowed.start)
        last_n = np.minimum(screening.picked(parts, row_N[kept_n], lambda rows: rows.last_R), allowed.stop - 1)
        # So many of a row's newest hold `count` that are not gone, if it has them.
        length_n = np.minimum(last_n - first_n + 1, count + len(self._gone))
        start_n = np.cumsum(length_n) - length_n
        chunk_n = np.repeat(last_n + start_n, length_n) - np.arange(length_n.sum())
        distance_n = np.repeat(distance_N[kept_n], length_n)
        if self._gone:
            here_n = np.array([chunk not in self._gone for chunk in chunk_n.tolist()], bool)
            chunk_n, distance_n = chunk_n[here_n], distance_n[here_n]
        nearest: list[int] = retrieval.select(distance_n, chunk_n, count).tolist()
        return nearest

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
