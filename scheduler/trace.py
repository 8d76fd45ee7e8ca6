"""Traces: what sessions did, recorded from a real run or made up, as JSON lines that the simulator replays.

The first line is the header, `{"format": "worldkv-trace", "version": 1}`. Then, in any order:

- `{"kind": "session", "session": ID, "tenant": ID, "arrives_seconds": S, "scripted": true, "chunk_seconds": S,
  "chunk_bytes": B, "frames_per_chunk": F, "latent_stride": K, "retrieved_chunks": N, "sink_chunks": N,
  "recent_chunks": N, "ranking": "pose", "gang": 1, "priority": 0, "job": ""}`: before any of its chunks. With
  `"ranking": "overlap"` also `"frustum": [left, right, top, bottom, near, far]` (`worldkv.camera.Frustum`).
- `{"kind": "chunk", "session": ID, "chunk": I, "c2w": [[12 numbers, the upper rows of a pose], ...]}`: the poses of the
  video frames of one chunk, in the order of chunks. A recorded run adds what came of it: `"hits": {"device": 3, ...}`,
  `"missed": 0`, `"stall_seconds": S`.

A file cut off within its last line is read up to there: a run may be killed while it records.

Shapes: F video frames, C chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO, get_args

import numpy as np

from scheduler.snapshot import Floats, Ranking, Recall
from worldkv.camera import Frustum, check_poses
from worldkv.errors import OutputError, TraceError, TrajectoryError

FORMAT, VERSION = "worldkv-trace", 1


@dataclass(frozen=True)
class Observed:
    """What came of one chunk in a real run."""

    chunk: int
    hits: Mapping[str, int] = field(default_factory=dict)
    """Tier -> retrieved chunks that lay there when the window was assembled."""
    missed: int = 0
    stall_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class SessionTrace:
    """One session, from its arrival to its last chunk."""

    session: str
    tenant: str
    c2w_F44: Floats
    """Whole chunks."""
    frames_per_chunk: int
    chunk_seconds: float
    chunk_bytes: int
    """Of a stored chunk."""
    arrives_seconds: float = 0.0
    scripted: bool = False
    """Whether all poses are known when it starts."""
    latent_stride: int = 1
    recall: Recall = field(default_factory=Recall)
    gang: int = 1
    priority: int = 0
    job: str = ""
    observed: tuple[Observed, ...] = ()

    @property
    def chunks(self) -> int:
        """Whole chunks in it."""
        return len(self.c2w_F44) // self.frames_per_chunk


def write_trace(path: str | Path, sessions: Iterable[SessionTrace]) -> None:
    """Write a whole trace. Raises OutputError where the file cannot be written."""
    try:
        with Path(path).open("w") as file:
            file.write(header_line())
            for session in sessions:
                write_session(file, session)
    except OSError as fault:
        raise OutputError(f"{path}: cannot be written: {fault.strerror or fault}") from fault


def header_line() -> str:
    """The first line of a trace."""
    return json.dumps({"format": FORMAT, "version": VERSION}) + "\n"


def write_session(file: TextIO, trace: SessionTrace) -> None:
    """Append one session and its chunks."""
    file.write(session_line(trace))
    observed = {one.chunk: one for one in trace.observed}
    for chunk in range(trace.chunks):
        frames = trace.c2w_F44[chunk * trace.frames_per_chunk : (chunk + 1) * trace.frames_per_chunk]
        file.write(chunk_line(trace.session, chunk, frames, observed.get(chunk)))


def session_line(trace: SessionTrace) -> str:
    """The line of a session; its poses follow with its chunks."""
    recall = trace.recall
    content = {
        "kind": "session",
        "session": trace.session,
        "tenant": trace.tenant,
        "arrives_seconds": trace.arrives_seconds,
        "scripted": trace.scripted,
        "chunk_seconds": trace.chunk_seconds,
        "chunk_bytes": trace.chunk_bytes,
        "frames_per_chunk": trace.frames_per_chunk,
        "latent_stride": trace.latent_stride,
        "retrieved_chunks": recall.retrieved_chunks,
        "sink_chunks": recall.sink_chunks,
        "recent_chunks": recall.recent_chunks,
        "ranking": recall.ranking,
        "gang": trace.gang,
        "priority": trace.priority,
        "job": trace.job,
    }
    if recall.frustum is not None:
        content["frustum"] = list(astuple(recall.frustum))
    return json.dumps(content) + "\n"


def chunk_line(session: str, chunk: int, c2w_F44: Floats, observed: Observed | None = None) -> str:
    """The line of one chunk; with what came of it, where that is known."""
    rows = np.asarray(c2w_F44, np.float64)[:, :3].reshape(-1, 12).tolist()
    content: dict[str, Any] = {"kind": "chunk", "session": session, "chunk": chunk, "c2w": rows}
    if observed is not None:
        content |= {
            "hits": dict(observed.hits),
            "missed": observed.missed,
            "stall_seconds": observed.stall_seconds,
        }
    return json.dumps(content) + "\n"


def read_trace(path: str | Path) -> list[SessionTrace]:
    """All sessions of a trace that have a chunk, in the order of their lines.

    Raises TraceError with the file, the line and its fault.
    """
    heads: dict[str, dict[str, Any]] = {}
    frames: dict[str, list[Floats]] = {}
    observed: dict[str, list[Observed]] = {}
    for where, line in _lines(Path(path)):
        name = _text(line, "session", where)
        if line.get("kind") == "session":
            if name in heads:
                raise TraceError(f"{where}: session {name} is there twice")
            heads[name] = {"where": where} | line
            frames[name], observed[name] = [], []
        elif line.get("kind") == "chunk":
            if name not in heads:
                raise TraceError(f"{where}: a chunk of session {name}, which no earlier line describes")
            if line.get("chunk") != len(frames[name]):
                raise TraceError(
                    f"{where}: session {name}: chunk {len(frames[name])} expected, got {line.get('chunk')}"
                )
            frames[name].append(_poses(line, heads[name], where))
            if "hits" in line:
                observed[name].append(_observed(line, where))
        else:
            raise TraceError(f"{where}: kind is {line.get('kind')!r}, allowed are session and chunk")
    return [_session(head, frames[name], observed[name]) for name, head in heads.items() if frames[name]]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, content) of every line after the header."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as fault:
        raise TraceError(f"{path}: cannot be read: {getattr(fault, 'strerror', None) or fault}") from fault
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        where = f"{path}:{number}"
        try:
            content = json.loads(line)
        except ValueError as fault:
            if number == len(lines) and number > 1:
                return  # cut off while it was written: the line has no end
            raise TraceError(f"{where}: is no JSON: {fault}") from fault
        if not isinstance(content, dict):
            raise TraceError(f"{where}: is {type(content).__name__}, expected an object")
        if number > 1:
            yield where, content
        elif (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise TraceError(
                f"{where}: format {content.get('format')!r} version {content.get('version')!r}, "
                f"expected {FORMAT!r} version {VERSION}"
            )


def _session(head: Mapping[str, Any], frames: list[Floats], observed: list[Observed]) -> SessionTrace:
    where = head["where"]
    ranking = head.get("ranking", "pose")
    if ranking not in get_args(Ranking):
        raise TraceError(f"{where}: ranking is {ranking!r}, allowed are {', '.join(get_args(Ranking))}")
    return SessionTrace(
        session=_text(head, "session", where),
        tenant=_text(head, "tenant", where),
        c2w_F44=np.concatenate(frames),
        frames_per_chunk=_whole(head, "frames_per_chunk", where, least=1),
        chunk_seconds=_number(head, "chunk_seconds", where),
        chunk_bytes=_whole(head, "chunk_bytes", where, least=1),
        arrives_seconds=_number(head, "arrives_seconds", where, zero=True),
        scripted=bool(head.get("scripted", False)),
        latent_stride=_whole(head, "latent_stride", where, least=1, default=1),
        recall=Recall(
            _whole(head, "retrieved_chunks", where, default=4),
            _whole(head, "sink_chunks", where, default=1),
            _whole(head, "recent_chunks", where, default=2),
            ranking,
            _frustum(head, where) if ranking == "overlap" else None,
        ),
        gang=_whole(head, "gang", where, least=1, default=1),
        priority=_whole(head, "priority", where, default=0),
        job=str(head.get("job", "")),
        observed=tuple(observed),
    )


def _frustum(head: Mapping[str, Any], where: str) -> Frustum:
    sides = head.get("frustum")
    if not isinstance(sides, list) or len(sides) != len(fields(Frustum)):
        raise TraceError(f"{where}: frustum is {sides!r}, expected [left, right, top, bottom, near, far]")
    try:
        return Frustum(*(float(side) for side in sides))
    except (TypeError, ValueError) as fault:
        raise TraceError(f"{where}: frustum is {sides!r}: {fault}") from fault


def _poses(line: Mapping[str, Any], head: Mapping[str, Any], where: str) -> Floats:
    expected = _whole(head, "frames_per_chunk", head["where"], least=1)
    try:
        rows_F12 = np.asarray(line.get("c2w"), dtype=np.float64)
    except (TypeError, ValueError) as fault:
        raise TraceError(f"{where}: c2w is no array of numbers: {fault}") from fault
    if rows_F12.shape != (expected, 12):
        raise TraceError(f"{where}: c2w has shape {list(rows_F12.shape)}, expected [{expected}, 12]")
    c2w_F44 = np.zeros((expected, 4, 4))
    c2w_F44[:, :3], c2w_F44[:, 3, 3] = rows_F12.reshape(-1, 3, 4), 1.0
    try:
        return check_poses(c2w_F44, where)
    except TrajectoryError as fault:
        raise TraceError(str(fault)) from fault


def _observed(line: Mapping[str, Any], where: str) -> Observed:
    hits = line["hits"]
    if not isinstance(hits, dict) or not all(isinstance(count, int) for count in hits.values()):
        raise TraceError(f"{where}: hits is {hits!r}, expected tier -> number of chunks")
    return Observed(
        int(line["chunk"]),
        hits,
        _whole(line, "missed", where, default=0),
        _number(line, "stall_seconds", where, zero=True, default=0.0),
    )


def _text(line: Mapping[str, Any], key: str, where: str) -> str:
    value = line.get(key)
    if not isinstance(value, str) or not value:
        raise TraceError(f"{where}: {key} is {value!r}, expected a name")
    return value


def _whole(line: Mapping[str, Any], key: str, where: str, *, least: int = 0, default: int | None = None) -> int:
    value = line.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TraceError(f"{where}: {key} is {value!r}, expected a whole number from {least} up")
    return value


def _number(
    line: Mapping[str, Any], key: str, where: str, *, zero: bool = False, default: float | None = None
) -> float:
    value = line.get(key, default)
    if not isinstance(value, int | float) or not (0 <= value < np.inf) or (value == 0 and not zero):
        raise TraceError(f"{where}: {key} is {value!r}, expected a finite number {'from 0 up' if zero else 'above 0'}")
    return float(value)
