"""A job from its first batch to its last commit: the driver's loop.

    pending batches -> admission -> workers -> finished batches on storage -> committed in order -> dataset

- The driver alone writes the dataset, in the order of the batches, so that its bytes are those of one process whoever
  made what when. Whatever is finished ahead of its turn waits on storage, where it survives the driver.
- A batch whose worker dies is given to another, from its checkpoint where that is exact. One that fails `tries` times
  is set aside and told of; the job goes on without its episodes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from cluster.assigning import Assigner, Gate, OpenGate
from cluster.book import Book
from cluster.ledger import JobRecord, JobState, Ledger, Standing, Tries
from cluster.parcel import Finished
from cluster.places import absolute
from cluster.planning import Planner
from cluster.pool import Done, Event, Failed, Lost, Pool, Ready, Wanted
from cluster.recording import Recorder, TraceLog
from cluster.storage import patiently
from cluster.worker import Opened, Order, Rolled, Worker, versions
from worldkv.config import RunConfig
from worldkv.dataset import DatasetWriter
from worldkv.errors import ClusterError, JobError, OutputError
from worldkv.runs import folder as run_folder
from worldkv.runs.batch import Batch, batches
from worldkv.runs.generate import Generated, Progress, Warn, add_timings, open_dataset
from worldkv.stats import MemoryStats, WorkerStats

Result = TypeVar("Result")
POLL_SECONDS = 0.2
# Workers that die before they are ready say that no worker can be had, not that one was unlucky.
MOST_FALSE_STARTS = 3
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Settings:
    """How a job is carried out; what it makes does not depend on it."""

    jobs_url: str
    workers: int
    cpus_per_worker: int = 1
    """Also the threads of each."""
    gpus_per_worker: int = 0
    checkpoint_chunks: int = 16
    tries: int = 3
    """A batch is set aside when it failed so often."""
    hang_seconds: float = 20.0
    patience_seconds: float = 120.0
    """For how long storage may refuse."""
    tell_seconds: float = 3.0
    """So often the driver tells how it stands, and asks whether it was cancelled."""
    trace: Path | None = None
    """File of a scheduler's trace of what the sessions do; None: none is recorded."""


@dataclass(frozen=True)
class Outcome:
    """What a job came to."""

    generated: Generated
    set_aside: dict[int, Tries]
    """By number of the batch."""
    cancelled: bool
    moved: int = 0
    """Batches that went on at another worker because that paid."""
    gave_way: int = 0
    """Batches that ended early for other tenants, and went on later."""


@dataclass(frozen=True)
class Job:
    """A job as it is to be carried out."""

    record: JobRecord
    settings: Settings
    progress: Progress
    warn: Warn
    gate: Gate = field(default_factory=OpenGate)
    worker_class: type[Worker] = Worker
    watch: Callable[[Sequence[WorkerStats], JobState], None] = lambda workers, state: None
    """Told how the workers stand, and how far the job is, every now and then."""

    def carry_out(self, *, resume: bool) -> Outcome:
        """To the end, or until it is cancelled. Blocks.

        Raises what `generate` does, ClusterError where workers cannot be had, and OutputError where storage refuses for
        longer than the settings allow. Whatever happens, committed and finished batches stay.
        """
        settings, record = self.settings, self.record
        config, ledger = absolute(record.run_config(), Path(record.base)), Ledger(settings.jobs_url, record.id)
        run_folder.check(self._claimed(config), resume=resume)
        ledger.check()
        order = Order(
            config=config,
            ledger_url=settings.jobs_url,
            job=record.id,
            threads=settings.cpus_per_worker,
            checkpoint_chunks=settings.checkpoint_chunks,
            patience_seconds=settings.patience_seconds,
            trace=None if settings.trace is None else Recorder(record.id, record.priority, record.created),
        )
        wanted = Wanted(settings.workers, settings.cpus_per_worker, settings.gpus_per_worker, settings.hang_seconds)
        with closing(Pool(order, wanted, self.worker_class)) as pool:
            pool.start()
            opened = self._first_worker(pool)
            run_folder.claim(self._claimed(config), resume=resume)
            ledger.enter(record, resume=resume)
            with open_dataset(config.output.folder, opened.ahead, resume=resume) as writer, ExitStack() as stack:
                log = None if settings.trace is None else TraceLog(settings.trace).open(resume=resume)
                if log is not None:
                    stack.callback(log.close)
                return _Driver(self, config, ledger, pool, opened, writer, log).drive()

    def _claimed(self, config: RunConfig) -> RunConfig:
        """The configuration as it was given, in the folder where it is: run.yaml is the same wherever one stands."""
        given = self.record.run_config()
        if given.output.folder.absolute() == config.output.folder:
            return given
        return given.model_copy(update={"output": config.output})

    def _first_worker(self, pool: Pool) -> Opened:
        self.progress("waiting for a worker", 0, 1)
        starts = _Starts()
        while True:
            for event in pool.events(POLL_SECONDS):
                if isinstance(event, Ready):
                    check_versions(event.opened.node, event.opened.versions)
                    return event.opened
                starts.note(event)


class _Starts:
    """Workers that never became ready."""

    def __init__(self) -> None:
        self.false = 0

    def note(self, event: Event) -> None:
        """Raises what kept a worker from opening, or ClusterError where they keep dying."""
        if isinstance(event, Ready):
            self.false = 0
        elif isinstance(event, Failed):
            raise event.fault
        elif isinstance(event, Lost):
            self.false += 1
            if self.false >= MOST_FALSE_STARTS:
                raise ClusterError(f"workers die before they are ready, {self.false} in a row: {event.reason}")


def check_versions(node: str, found: Mapping[str, str]) -> None:
    """Raise ClusterError where a node runs others than this process."""
    here = versions()
    for name, there in found.items():
        if there != here[name]:
            raise ClusterError(
                f"node {node}: runs {name} {there}, this is {here[name]}; they must be the same on all nodes"
            )


@dataclass
class _Driver:
    """The loop, once a worker is ready and the dataset is open."""

    job: Job
    config: RunConfig
    ledger: Ledger
    pool: Pool
    first: Opened
    """What the first worker found."""
    writer: DatasetWriter
    log: TraceLog | None
    aside: dict[int, Tries] = field(default_factory=dict)
    figures: dict[tuple[int, int], Rolled] = field(default_factory=dict)
    """The newest of each worker that was."""
    starts: _Starts = field(default_factory=_Starts)
    told: set[str] = field(default_factory=set)
    told_at: float = 0.0
    committed_at: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    """Somebody asked for the end."""

    def drive(self) -> Outcome:
        """See `Job.carry_out`."""
        self.kept = len(self.writer.committed_keys)
        self.aside = self._patiently(self.ledger.set_aside)
        finished = self._patiently(self.ledger.finished_numbers)
        all_of_them = batches(self.config)
        self.book = Book(all_of_them, committed=self.writer.committed_keys, finished=finished, aside=self.aside)
        planner = Planner(self.first.facts)
        self.assigner = Assigner(self.book, self.pool, self.job.gate, planner, self.job.settings.workers)
        standing: Standing = "failed"
        try:
            self._tell("running", at_once=True)
            standing = self._loop()
            return self._outcome(cancelled=standing == "cancelled")
        except KeyboardInterrupt:
            standing = "stopped"
            self._progress("writing down what is under way")
            self.pool.stop(STOP_SECONDS)
            raise
        finally:
            self.assigner.close()
            self._tell(standing, at_once=True)

    def _loop(self) -> Standing:
        while not self.book.complete:
            if self.cancelled:
                self.pool.stop(STOP_SECONDS)
                return "cancelled"
            for event in self.pool.events(POLL_SECONDS):
                self._take(event)
            # First, so that no worker waits for a commit.
            self.assigner.step()
            self._commit_finished()
            self._tell("running")
        return "finished"

    def _commit_finished(self) -> None:
        while (batch := self.book.turn()) is not None:
            finished = self._patiently(partial(self.ledger.finished, batch.number))
            if finished is None or finished.epoch != self.first.ahead.provenance["model_epoch"]:
                self.book.give_back(batch)
                return
            self._commit(batch, finished)
            self._record(batch, finished)
            self.book.settle(batch)
            self._patiently(partial(self.ledger.clear, batch.number))

    def _commit(self, batch: Batch, finished: Finished) -> None:
        for key, episode in zip(batch.keys, finished.episodes, strict=True):
            # A driver that was killed may have committed some of them.
            if key not in self.writer.committed_keys:
                self._progress(f"saving {key}")
                self.writer.commit(episode, key)
                self.committed_at = time.monotonic()
        add_timings(self.config.output.folder, batch, finished.took)

    def _record(self, batch: Batch, finished: Finished) -> None:
        """A trace that cannot be written, or has a gap, is no reason to end a job."""
        if self.log is None:
            return
        if not finished.trace:
            self._warn_once(f"{batch}: not in the trace, as it was finished when none was recorded")
        try:
            self.log.add(finished.trace)
        except OutputError as fault:
            self._warn_once(f"{fault}; the job goes on")

    def _take(self, event: Event) -> None:
        match event:
            case Done(_, rolled):
                self._done(event.slot, rolled)
            case Failed(_, batch, fault) if batch is not None and not isinstance(fault, OutputError | JobError):
                self._again(batch, f"{type(fault).__name__}: {fault}")
            case Failed(_, _, fault):
                raise fault
            case Lost(slot, batch, reason, blameless) if batch is not None:
                self._again(batch, None if blameless else f"worker {slot}: {reason}")
            case Ready(_, opened):
                check_versions(opened.node, opened.versions)
                self.assigner.forget(event.slot)
                self.starts.note(event)
            case _:
                self.starts.note(event)

    def _done(self, slot: int, rolled: Rolled) -> None:
        batch = self.book.batches[rolled.number]
        self.figures[slot, rolled.restarts] = rolled
        for warning in rolled.warnings:
            self._warn_once(warning)
        if rolled.whole:
            self.assigner.over(batch)
            self.book.finish(batch)
        else:
            self.assigner.came_back(batch)
        if self.pool.leaving(slot):
            self.pool.replace(slot)

    def _again(self, batch: Batch, reason: str | None) -> None:
        """Another try, unless it had too many; without a reason it is not counted."""
        if reason is not None:
            tries = self._patiently(partial(self.ledger.tries, batch.number))
            tries = tries.and_failed(" ".join(reason.split()), most=self.job.settings.tries)
            self._patiently(partial(self.ledger.note_tries, batch.number, tries))
            if tries.set_aside:
                self.aside[batch.number] = tries
                self.assigner.over(batch)
                self.book.settle(batch)
                self._warn_once(f"{batch}: set aside after {tries.failed} tries; the last: {tries.reasons[-1]}")
                return
        self.assigner.came_back(batch)

    def _tell(self, standing: Standing, *, at_once: bool = False) -> None:
        """The bar always, storage and whoever watches now and then; storage is also asked whether to go on."""
        doing = self.assigner.waits_for or self._doing()
        self._progress(doing)
        if not at_once and time.monotonic() - self.told_at < self.job.settings.tell_seconds:
            return
        self.told_at = time.monotonic()
        driver = f"{socket.gethostname()}:{os.getpid()}"
        wanted = sum(len(batch.seeds) for batch in self.book.batches)
        state = JobState(
            *(standing, time.time(), driver, len(self.writer.committed_keys), wanted, doing),
            workers=tuple(map(worker_line, self.pool.stats())),
            aside=sum(len(self.book.batches[number].seeds) for number in self.aside),
            idle_seconds=time.monotonic() - self.committed_at,
            **self.assigner.queue(),
        )
        try:
            self.ledger.tell(state)
            self.cancelled = self.ledger.cancelled
        except OutputError as fault:
            self._warn_once(f"{fault}; the job goes on")
        self.job.watch(self.pool.stats(), state)

    def _doing(self) -> str:
        busy = list(self.pool.busy().values())
        if not busy:
            return "waiting for a worker"
        return str(busy[0]) + (f" and {len(busy) - 1} more" if len(busy) > 1 else "")

    def _progress(self, doing: str) -> None:
        under_way = {batch.number for batch in self.pool.busy().values()}
        chunks = sum(stats.chunk for stats in self.pool.stats() if stats.batch in under_way)
        self.job.progress(
            doing, self.book.over * self.first.ahead.chunks + chunks, self.first.ahead.chunks * len(self.book.batches)
        )

    def _warn_once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.job.warn(text)

    def _patiently(self, work: Callable[[], Result]) -> Result:
        def failed(fault: OutputError) -> None:
            self._warn_once(f"{fault}; waiting")

        return patiently(work, self.job.settings.patience_seconds, failed=failed)

    def _outcome(self, *, cancelled: bool) -> Outcome:
        rolled, empty = list(self.figures.values()), self.first.memory
        memory, left = _sum([one.at_fullest for one in rolled], empty), _sum([one.left for one in rolled], empty)
        made = len(self.writer.committed_keys) - self.kept
        generated = Generated(self.config.output.folder, made, self.kept, memory, left)
        return Outcome(generated, dict(self.aside), cancelled, self.assigner.moved, self.assigner.gave_way)


def worker_line(stats: WorkerStats) -> str:
    """How a worker stands, for people."""
    work = stats.work
    pace = work.video_frames / work.chunks.seconds if work is not None and work.chunks.seconds else 0.0
    return (
        f"worker {stats.worker} on {stats.node} | {stats.doing} | chunk {stats.chunk}/{stats.chunks} | "
        f"{pace:.1f} frames/s | {stats.batches} batches | {stats.restarts} restarts"
    )


def _sum(stats: list[MemoryStats], of_none: MemoryStats) -> MemoryStats:
    total = stats[0] if stats else of_none
    for one in stats[1:]:
        total = total.plus(one)
    return total
