"""A world of a published model as a job: gangs that play it, one life after the other, until its video is there.

    room -> a gang -> pictures and checkpoints on storage -> ... -> all pictures -> video

A gang that dies is followed by another, which goes on from the newest checkpoint where that is exact, else from the
first chunk; either way the video has the bytes of an undisturbed one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from cluster.admission import Asked
from cluster.assigning import Gate, OpenGate
from cluster.gangs.gang import Failed, Gang, Lost, Played, Seats
from cluster.gangs.keeping import Keeping, Shown
from cluster.gangs.rank import PlayOrder, Rank
from cluster.jobs import check_versions
from cluster.ledger import JobRecord, JobState, Ledger, Standing
from cluster.places import absolute_play
from cluster.sharding import check_details
from cluster.storage import patiently
from worldkv.dataset.durable import FolderLock
from worldkv.errors import JobError, OutputError, WorldKVError
from worldkv.models.published import named
from worldkv.runs import play
from worldkv.runs.generate import Progress, Warn
from worldkv.runs.play_config import PlayConfig
from worldkv.stats import WorkerStats

Result = TypeVar("Result")
ASK_SECONDS = 0.2


@dataclass(frozen=True)
class PlaySettings:
    """How a world is played; what comes of it does not depend on it."""

    jobs_url: str
    checkpoint_chunks: int = 16
    tries: int = 3
    """The job is given up when so many gangs in a row, or in all, ended before their world did."""
    patience_seconds: float = 120.0
    """For how long storage may refuse."""
    tell_seconds: float = 3.0
    """So often the driver tells how it stands, and asks whether it was cancelled."""


@dataclass(frozen=True)
class PlayOutcome:
    """What a job came to."""

    video: Path
    chunks: int
    retrieved: int
    """Chunks brought back from memory, over the whole world."""
    seconds: float
    """Of this driver, from the first room asked for."""
    lives: int
    """Gangs that it took."""
    cancelled: bool = False


@dataclass
class PlayJob:
    """See the module; `carry_out` once."""

    record: JobRecord
    seats: Seats
    settings: PlaySettings
    progress: Progress
    warn: Warn
    gate: Gate = field(default_factory=OpenGate)
    watch: Callable[[Sequence[WorkerStats], JobState], None] = lambda workers, state: None
    rank_class: type[Rank] = Rank
    _told: set[str] = field(default_factory=set)
    _told_at: float = 0.0
    _stats: Sequence[WorkerStats] = ()
    _cancelled: bool = False
    _leaving: set[str] = field(default_factory=set)

    def carry_out(self, *, resume: bool) -> PlayOutcome:
        """To the video, or until it is cancelled. Blocks.

        Raises what `play.play` does for a configuration that is wrong, JobError where gangs keep ending, and
        OutputError where storage refuses for longer than the settings allow. Whatever happens, what is kept stays.
        """
        config, settings = absolute_play(self.record.play_config(), Path(self.record.base)), self.settings
        check(config)
        self.ledger, self.keeping = (
            Ledger(settings.jobs_url, self.record.id),
            Keeping(settings.jobs_url, self.record.id),
        )
        self.ledger.check()
        self.chunks = play.prepare(config).chunks
        with _alone(config.video):
            self.ledger.enter(self.record, resume=resume)
            order = PlayOrder(
                config=config,
                ledger_url=settings.jobs_url,
                job=self.record.id,
                threads=self.seats.threads,
                checkpoint_chunks=settings.checkpoint_chunks,
                patience_seconds=settings.patience_seconds,
            )
            standing: Standing = "failed"
            try:
                outcome = self._until_played(order)
                standing = "cancelled" if outcome.cancelled else "finished"
                return outcome
            except KeyboardInterrupt:
                standing = "stopped"
                raise
            finally:
                self._tell(standing, "", at_once=True)

    def _until_played(self, order: PlayOrder) -> PlayOutcome:
        started, reasons, lives = time.perf_counter(), list[str](), 0
        while True:
            how = self._one_life(order, lives)
            lives += 1
            if isinstance(how, Played):
                for warning in how.warnings:
                    self._warn_once(warning)
                if self._cancelled:
                    return PlayOutcome(order.config.video, how.chunks, 0, time.perf_counter() - started, lives, True)
                if not how.whole:
                    continue  # it left its node
                shown = self._all_shown(how.chunks)
                if shown is not None:
                    self._commit(order.config, shown)
                    retrieved = sum(one.retrieved for one in shown)
                    return PlayOutcome(order.config.video, how.chunks, retrieved, time.perf_counter() - started, lives)
                reasons.append("pictures are missing or damaged on storage")
                self._patiently(self.keeping.unsettle)
            elif isinstance(how, Failed):
                if how.opening or isinstance(how.fault, OutputError | JobError):
                    raise how.fault
                reasons.append(f"{type(how.fault).__name__}: {how.fault}")
            elif not how.blameless:
                reasons.append(how.reason)
            if len(reasons) >= self.settings.tries:
                raise JobError(f"job {self.record.id}: given up after {len(reasons)} tries; the last: {reasons[-1]}")

    def _one_life(self, order: PlayOrder, before: int) -> Played | Lost | Failed:
        gang = Gang(order, self.seats, before, frozenset(self._leaving), self.rank_class)
        if not self._admitted():
            return Played(0, False, ())
        checked = False

        def tick(doing: str, stats: Sequence[WorkerStats]) -> bool:
            nonlocal checked
            if gang.opened and not checked:
                checked = True
                for one in gang.opened:
                    check_versions(one.node, one.versions)
            self._stats = stats
            self._tell("running", doing)
            self._leaving |= self.gate.wishes().nodes
            return self._cancelled or any(one.node_id in self._leaving for one in gang.opened)

        try:
            return gang.run(tick)
        finally:
            self.gate.release(0)

    def _admitted(self) -> bool:
        """Wait for the gate; False where the job is cancelled first."""
        while waits_for := self.gate.ask({0: Asked(sessions=1)})[0]:
            self._tell("running", waits_for)
            self.gate.wishes()  # this is how it knows that the driver lives
            if self._cancelled:
                return False
            time.sleep(ASK_SECONDS)
        return not self._cancelled

    def _all_shown(self, chunks: int) -> list[Shown] | None:
        shown = [self._patiently(partial(self.keeping.shown, chunk)) for chunk in range(chunks)]
        return [one for one in shown if one is not None] if all(shown) else None

    def _commit(self, config: PlayConfig, shown: Sequence[Shown]) -> None:
        self.progress("writing the video", self.chunks, self.chunks)
        play.write_video(config.video, [one.frames_FHWC for one in shown], named(config.model.name))
        self._patiently(self.keeping.clear)

    def _tell(self, standing: Standing, doing: str, *, at_once: bool = False) -> None:
        """The bar always, storage and whoever watches now and then; storage is also asked whether to go on."""
        chunk = max((one.chunk for one in self._stats), default=0)
        if doing:
            self.progress(doing, min(chunk, self.chunks), self.chunks)
        if not at_once and time.monotonic() - self._told_at < self.settings.tell_seconds:
            return
        self._told_at = time.monotonic()
        driver = f"{socket.gethostname()}:{os.getpid()}"
        state = JobState(standing, time.time(), driver, int(standing == "finished"), 1, doing, self._lines())
        try:
            self.ledger.tell(state)
            self._cancelled = self.ledger.cancelled
        except OutputError as fault:
            self._warn_once(f"{fault}; the job goes on")
        self.watch(self._stats, state)

    def _lines(self) -> tuple[str, ...]:
        return tuple(map(rank_line, self._stats))

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.warn(text)

    def _patiently(self, work: Callable[[], Result]) -> Result:
        def failed(fault: OutputError) -> None:
            self._warn_once(f"{fault}; waiting")

        return patiently(work, self.settings.patience_seconds, failed=failed)


def check(config: PlayConfig) -> None:
    """Raise ConfigError or OutputError for what can be known to be wrong before anything is started."""
    play.check_video(config.video)
    if config.model.ranks > 1:
        check_details(detail for tier in config.memory.tiers for detail in tier.detail)


def rank_line(stats: WorkerStats) -> str:
    """How a rank stands, for people."""
    return (
        f"rank {stats.worker} on {stats.node} | {stats.doing} | chunk {stats.chunk}/{stats.chunks} | "
        f"{stats.chunk_seconds:.2f} s per chunk | {stats.restarts} restarts"
    )


@contextmanager
def _alone(video: Path) -> Iterator[None]:
    """Keep other drivers from the video meanwhile. Raises OutputError."""
    lock_file = video.with_name(f".{video.name}.lock")
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock.take(lock_file)
    except WorldKVError as fault:
        raise OutputError(f"{video}: another rollout is making it") from fault
    except OSError as fault:
        raise OutputError(f"{video}: cannot be written: {fault.strerror or fault}") from fault
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()
