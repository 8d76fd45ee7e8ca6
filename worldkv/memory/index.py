"""Where stored chunks were seen from: the mean pose of each, kept so that ranking costs no more than a distance.

Shapes: N chunks, F latent frames of a chunk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worldkv.memory import retrieval


class PoseIndex:
    """Chunk index -> mean pose of one session's stored chunks."""

    def __init__(self, *, parity: bool) -> None:
        self.parity = parity
        self._mean: dict[int, NDArray[np.float64]] = {}

    def __len__(self) -> int:
        return len(self._mean)

    def add(self, chunk: int, c2w_F44: NDArray[np.float32]) -> None:
        """Remember from where chunk `chunk` saw."""
        self._mean[chunk] = retrieval.mean_pose(c2w_F44, parity=self.parity)

    def forget(self, chunk: int) -> None:
        """Never offer chunk `chunk` again."""
        del self._mean[chunk]

    def chunks(self) -> list[int]:
        """All chunks in the index, oldest first."""
        return sorted(self._mean)

    def candidates(self, allowed: range) -> list[int]:
        """Stored chunks within `allowed`, oldest first."""
        return sorted(chunk for chunk in self._mean if chunk in allowed)

    def nearest(self, chunk_N: list[int], query_c2w_F44: NDArray[np.float32], count: int) -> list[int]:
        """The `count` of `chunk_N` seen from nearest to the query's poses, nearest first."""
        if not chunk_N:
            return []
        query_44 = retrieval.mean_pose(query_c2w_F44, parity=self.parity)
        pose_N44 = np.stack([self._mean[chunk] for chunk in chunk_N])
        distance_N = retrieval.mean_pose_distance(pose_N44, query_44, parity=self.parity)
        return [int(chunk) for chunk in retrieval.select(distance_N, chunk_N, count)]

    def copy(self) -> PoseIndex:
        """An index of its own with the same entries (a fork)."""
        twin = PoseIndex(parity=self.parity)
        twin._mean = dict(self._mean)
        return twin
