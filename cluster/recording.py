"""What the sessions of a run did, as a trace that `worldkv simulate` replays; recorded while they are rolled out.

- The recorder listens to what the run tells of itself. What it is told between two chunks belongs to the sessions of
  one batch, which retrieve one after the other.
- Chunks that were made before a batch was taken up elsewhere are in the trace without what came of them.
"""

from __future__ import annotations

import errno
import io
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TextIO, cast, get_args

from scheduler.snapshot import Ranking, Recall
from scheduler.trace import Observed, SessionTrace, header_line, write_session
from worldkv.camera.overlaps import centred_frustum
from worldkv.config import RunConfig
from worldkv.durations import Span
from worldkv.errors import ConfigError, OutputError
from worldkv.memory.policy import parse_policy
from worldkv.runs.batch import BatchRollout
from worldkv.runs.memory_check import chunk_bytes
from worldkv.runs.meter import COMPUTE_TRACK
from worldkv.session import Session
from worldkv.writable import check_writable

REPLAYED = get_args(Ranking)


@dataclass
class Recorder:
    """A `worldkv.durations.Listener`: gathers what came of each chunk, and tells of a whole batch in the end."""

    job: str = ""
    priority: int = 0
    started: float = field(default_factory=time.time)
    """Of the job, Unix seconds: sessions arrive after it."""
    _given: list[Span] = field(default_factory=list)
    """By tiers, of chunks, since the last chunk was made."""
    _stall_seconds: float = 0.0
    _observed: defaultdict[str, list[Observed]] = field(default_factory=lambda: defaultdict(list))
    """By session."""
    _took: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _began: dict[str, float] = field(default_factory=dict)
    """Unix seconds."""

    def __call__(self, span: Span) -> None:
        """See `Listener`. What other threads tell of is passed over: they only write."""
        if span.name == "fetch":
            self._given.append(span)
        elif span.track == COMPUTE_TRACK and span.name == "retrieve":
            self._stall_seconds = span.ended - span.started
            # Not what a step gave that came to nothing.
            self._given = [given for given in self._given if given.started >= span.started]
        elif "session" in span.about:
            self._chunk(str(span.about["session"]), span)

    def lines(self, under_way: BatchRollout) -> str:
        """The sessions of a batch that is finished."""
        out = io.StringIO()
        for name, session in zip(under_way.batch.keys, under_way.sessions, strict=True):
            write_session(out, self._trace(name, session))
        return out.getvalue()

    def forget(self, names: Iterable[str]) -> None:
        """Whatever an earlier try at these sessions came to."""
        for name in names:
            self._observed.pop(name, None)
            self._took.pop(name, None)
            self._began.pop(name, None)

    def _chunk(self, name: str, span: Span) -> None:
        self._began.setdefault(name, time.time() - (span.ended - span.started))
        count = int(span.about["retrieved"])
        mine, self._given = self._given[:count], self._given[count:]
        hits, missed = Counter(str(given.about["tier"]) for given in mine), int(span.about["missed"])
        self._observed[name].append(Observed(int(span.about["index"]), hits, missed, self._stall_seconds))
        self._took[name].append(span.ended - span.started)

    def _trace(self, name: str, session: Session) -> SessionTrace:
        policy, frames = session.policy, session.video_frames_per_chunk
        stored = len(session.stored)
        return SessionTrace(
            session=name,
            tenant=session.tenant,
            c2w_F44=session.trajectory.c2w_F44[: session.chunks * frames],
            frames_per_chunk=frames,
            chunk_seconds=median(self._took.pop(name)),
            chunk_bytes=session.stored_bytes // stored if stored else chunk_bytes(session.model.geometry, policy),
            arrives_seconds=max(0.0, self._began.pop(name) - self.started),
            scripted=True,
            latent_stride=session.model.video_frames_per_latent,
            recall=_recall(session),
            priority=self.priority,
            job=self.job,
            observed=tuple(self._observed.pop(name)),
        )


def check_trace(config: RunConfig, file: Path) -> None:
    """Raise ConfigError where a policy retrieves as the simulator cannot, OutputError where the file cannot be made."""
    for text in config.policies:
        policy = parse_policy(text)
        if policy.remembers and policy.ranking not in REPLAYED:
            raise ConfigError(
                f"--trace {file}: policy {policy.name} ranks by {policy.ranking}, the simulator replays "
                f"{', '.join(REPLAYED)}; leave the policy out"
            )
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        check_writable(file.parent)
    except OSError as fault:
        raise OutputError(f"--trace {file}: cannot be written: {fault.strerror or fault}") from fault


@dataclass
class TraceLog:
    """The file; whoever opens it closes it."""

    path: Path
    _file: TextIO | None = None

    def open(self, *, resume: bool) -> TraceLog:
        """A resumed run adds to what is there. Raises OutputError, as `add` does."""
        with self._named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a" if resume else "w")
        if not self._file.tell():
            self.add(header_line())
        return self

    def add(self, lines: str) -> None:
        """Write whole sessions; they are in the file when this returns."""
        assert self._file is not None
        with self._named():
            self._file.write(lines)
            self._file.flush()

    def close(self) -> None:
        """What was added stays."""
        if self._file is not None:
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise OutputError(f"--trace {self.path}: cannot be written: {fault.strerror or fault}") from fault


def _recall(session: Session) -> Recall:
    """Of a policy whose window holds all, all is recent."""
    policy = session.policy
    recent = session.chunks if policy.recent_chunks is None else policy.recent_chunks
    ranking = policy.ranking if policy.ranking in REPLAYED else "pose"
    seen = centred_frustum(session.trajectory.intrinsics_F4[0], policy.sight) if ranking == "overlap" else None
    return Recall(policy.retrieved_chunks, policy.sink_chunks, recent, cast("Ranking", ranking), seen)
