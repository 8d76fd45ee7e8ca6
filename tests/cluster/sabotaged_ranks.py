"""Ranks that are slow enough to be caught in the act."""

import time

from cluster.gangs.rank import Rank
from worldkv.rollout import ChunkRecord

STEP_SECONDS = 0.15


class SlowRank(Rank):
    """Takes its time over each chunk."""

    def _made(self, record: ChunkRecord, started: float) -> None:
        time.sleep(STEP_SECONDS)
        super()._made(record, started)


class FaultyRank(Rank):
    """Cannot get past the third chunk on rank 1."""

    def _made(self, record: ChunkRecord, started: float) -> None:
        if self.rank == 1 and record.chunk == 2:
            raise ArithmeticError("no way on from here")
        super()._made(record, started)
