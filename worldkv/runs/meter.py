"""What a run tells of itself while it goes on: figures for whoever watches it, spans for whoever traces it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worldkv.durations import About, DurationBook, Listener, Span, nobody
from worldkv.eval.fidelity import psnr
from worldkv.memory.store import ChunkMemory
from worldkv.rollout import COMPUTE_TRACK, ChunkRecord, StageSeconds
from worldkv.stats import MemoryStats, WorkStats

SESSION_TRACK = "session {}"

Watch = Callable[[WorkStats], None]
"""Told how far the work is after each batch of chunks; must be quick."""


def unwatched(stats: WorkStats) -> None:
    """Nobody watches."""


@dataclass
class Meter:
    """Counts over a whole run, whatever batches and policies it has. One thread."""

    watch: Watch = unwatched
    listener: Listener = nobody
    """Told of every stage, of every chunk that a tier gives or takes, and of every chunk of every session."""
    _stages: defaultdict[str, DurationBook] = field(default_factory=lambda: defaultdict(DurationBook))
    _chunks: DurationBook = field(default_factory=DurationBook)
    _generated: int = 0
    _frames: int = 0
    _retrieved: int = 0
    _missed: int = 0
    _fidelity_db: float | None = None

    def clock(self) -> StageSeconds:
        """For one rollout."""
        return StageSeconds(listener=self._stage)

    def batch(
        self,
        records: Sequence[ChunkRecord],
        names: Sequence[str],
        truths_FHWC: Sequence[NDArray[np.uint8]],
        started: float,
        ended: float,
    ) -> None:
        """One chunk of each session came out; per session its name, and the true pictures of all its chunks."""
        self._retrieved += sum(len(record.retrieved) for record in records)
        self._missed += sum(record.missed for record in records)
        if records[0].generated:
            self._chunks.add(ended - started)
            self._generated += len(records)
            self._frames += sum(len(record.frames_FHWC) for record in records)
            self._judge(records, truths_FHWC)
        if self.listener is not nobody:
            for record, name in zip(records, names, strict=True):
                self.listener(_span(record, name, started, ended))

    def tell(self, memory: ChunkMemory) -> None:
        """Say how far the work is, if anyone watches: to gather the figures costs a look at every chunk."""
        if self.watch is not unwatched:
            self.watch(self.stats(memory.stats()))

    def stats(self, memory: MemoryStats) -> WorkStats:
        """All so far."""
        return WorkStats(
            memory=memory,
            stages={stage: book.frozen() for stage, book in self._stages.items()},
            chunks=self._chunks.frozen(),
            chunks_generated=self._generated,
            video_frames=self._frames,
            chunks_retrieved=self._retrieved,
            chunks_missed=self._missed,
            fidelity_db=self._fidelity_db,
        )

    def _stage(self, span: Span) -> None:
        self._stages[span.name].add(span.ended - span.started)
        self.listener(span)

    def _judge(self, records: Sequence[ChunkRecord], truths_FHWC: Sequence[NDArray[np.uint8]]) -> None:
        found = []
        for record, truth_FHWC in zip(records, truths_FHWC, strict=True):
            first, count = record.chunk * len(record.frames_FHWC), len(record.frames_FHWC)
            if record.retrieved and first + count <= len(truth_FHWC):
                found.append(psnr(record.frames_FHWC, truth_FHWC[first : first + count]).mean())
        if found:
            self._fidelity_db = float(np.mean(found))


def _span(record: ChunkRecord, name: str, started: float, ended: float) -> Span:
    about = About(
        session=name,
        index=record.chunk,
        retrieved=len(record.retrieved),
        missed=record.missed,
        window_tokens=record.window_tokens,
    )
    return Span(SESSION_TRACK.format(name), f"chunk {record.chunk}", started, ended, about)


__all__ = ["COMPUTE_TRACK", "SESSION_TRACK", "Meter", "Watch"]
