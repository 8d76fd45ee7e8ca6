"""Workers that are slow enough to be caught in the act, or die of one world; and hands that do them harm."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.worker import Worker
from worldkv.results import WorldTruth
from worldkv.rollout import ChunkRecord
from worldkv.runs.batch import Batch, BatchRollout
from worldkv.stats import WorkerStats

STEP_SECONDS = 0.05
POISONED_SEED = 2


class SlowWorker(Worker):
    """Takes its time over each chunk."""

    def _advance(self, under_way: BatchRollout, warnings: list[str]) -> None:
        time.sleep(STEP_SECONDS)
        super()._advance(under_way, warnings)


class LameRollout(BatchRollout):
    """Every chunk takes very long to make."""

    def step(self) -> list[ChunkRecord]:
        time.sleep(10 * STEP_SECONDS)
        return super().step()


class LameWorker(Worker):
    """The first one of a job is lame."""

    def _rollout(self, batch: Batch) -> BatchRollout:
        kind = BatchRollout if self.slot else LameRollout
        return kind(self.config, self.model, batch, self._drawn, self.meter)


class PoisonedWorker(Worker):
    """One world kills whoever draws it."""

    def draw(self, seed: int) -> WorldTruth:
        if seed == POISONED_SEED:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(seed)


class FaultyWorker(Worker):
    """One world is an error, of which the worker does not die."""

    def draw(self, seed: int) -> WorldTruth:
        if seed == POISONED_SEED:
            raise ArithmeticError("this world cannot be drawn")
        return super().draw(seed)


@dataclass
class Saboteur:
    """Watches a job; once some batch is so many chunks far, strikes its worker, once."""

    strike: Callable[[WorkerStats], None]
    chunk: int = 5
    among: Callable[[WorkerStats], bool] = lambda stats: True
    """Which workers may be struck."""
    struck: float | None = None
    """When."""
    victim: WorkerStats | None = None
    resumed: float | None = None
    """When the worker that took the victim's slot was at work."""
    ready_seconds: float | None = None
    """How long the first worker took from nothing to its first batch."""
    made: float = field(default_factory=time.monotonic)
    seen: list[WorkerStats] = field(default_factory=list)

    def __call__(self, stats: list[WorkerStats], state: object) -> None:
        self.seen += stats
        for one in stats:
            at_work = one.batch is not None
            if at_work and self.ready_seconds is None:
                self.ready_seconds = time.monotonic() - self.made
            if self.victim is None:
                if at_work and one.chunk >= self.chunk and self.among(one):
                    self.victim, self.struck = one, time.monotonic()
                    self.strike(one)
            elif self.resumed is None and one.worker == self.victim.worker and one.restarts > self.victim.restarts:
                self.resumed = time.monotonic() if at_work or one.batches else None


def send(kind: signal.Signals) -> Callable[[WorkerStats], None]:
    """Send the worker's process a signal."""
    return lambda stats: os.kill(stats.process, kind)


def parent(process: int) -> int:
    """The process that started it: of a worker, the raylet of its node."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])
