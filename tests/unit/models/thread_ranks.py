"""Ranks that are threads of one process: the collective operations without a socket."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from worldkv.models.ranks import Ranks

Result = TypeVar("Result")
PATIENCE_SECONDS = 30
"""A rank that raises leaves the others waiting: they give up then."""


class Meeting:
    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=PATIENCE_SECONDS)
        self._brought: list[Tensor] = [torch.empty(0)] * size

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        self._brought[rank] = x
        self._barrier.wait()
        brought = list(self._brought)
        self._barrier.wait()
        return brought

    def broken(self) -> None:
        self._barrier.abort()


class ThreadRanks:
    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting

    def gather(self, x: Tensor, dim: int) -> Tensor:
        return torch.cat(self._meeting.exchange(self.rank, x), dim)

    def scatter_sum(self, x: Tensor, dim: int) -> Tensor:
        assert x.shape[dim] % self.size == 0
        return torch.stack(self._meeting.exchange(self.rank, x)).sum(0).chunk(self.size, dim)[self.rank]


def on_ranks(size: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """What `work` returns on each rank, in order."""
    meeting = Meeting(size)

    def one(rank: int) -> Result:
        try:
            return work(ThreadRanks(rank, meeting))
        except BaseException:
            meeting.broken()
            raise

    with ThreadPoolExecutor(size) as threads:
        return [future.result() for future in [threads.submit(one, rank) for rank in range(size)]]
