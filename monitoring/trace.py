"""A run on a time line: spans as a file of the Chrome trace format, which Perfetto (ui.perfetto.dev) and Chrome open.

One line of the picture for each track: the rollout's stages, every tier's fetches and writes, every session's chunks,
what is brought near early. A stall shows as a long `retrieve` above the fetches that it waits for, a transfer that cost
nothing as a `prefetch` beneath `denoise`: from when it was started until it was taken in or given up.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TextIO

from worldkv.durations import Span
from worldkv.errors import OutputError

MICROSECONDS = 1e6
PROCESS = 1


class TraceFile:
    """A listener that writes each span as it ends. Thread-safe; a file that was cut short is readable all the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault: str | None = None
        """Why it could not go on; a run does not end for its trace."""
        self._lock = threading.Lock()
        self._tracks: dict[str, int] = {}
        self._file: TextIO | None = None
        self._started = 0.0

    def open(self) -> TraceFile:
        """Begin the file. Raises OutputError where it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        except OSError as fault:
            raise OutputError(f"trace {self.path}: cannot be written: {fault.strerror}") from fault
        self._file.write("[\n")
        return self

    def __call__(self, span: Span) -> None:
        """Write the span; nothing once the file is closed."""
        with self._lock:
            if self._file is None:
                return
            if not self._tracks:
                # The clock has no beginning that means anything: the picture's is the first span's.
                self._started = span.started
            try:
                self._file.write("".join(json.dumps(event) + ",\n" for event in self._events(span)))
            except OSError as fault:
                self._give_up(fault)

    def close(self) -> None:
        """End the file."""
        with self._lock:
            if self._file is not None:
                # Last, so that no comma stands before the end of the list: only in files cut short may it.
                try:
                    self._file.write(json.dumps(_NAMED) + "\n]\n")
                    self._file.close()
                except OSError as fault:
                    self._give_up(fault)
                self._file = None

    def __enter__(self) -> TraceFile:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_up(self, fault: OSError) -> None:
        self.fault = f"trace {self.path}: cut short: {fault.strerror}"
        self._file = None

    def _events(self, span: Span) -> list[dict[str, object]]:
        events: list[dict[str, object]] = []
        thread = self._tracks.get(span.track)
        if thread is None:
            thread = self._tracks[span.track] = len(self._tracks) + 1
            where = {"pid": PROCESS, "tid": thread}
            events.append({"ph": "M", **where, "name": "thread_name", "args": {"name": span.track}})
            events.append({"ph": "M", **where, "name": "thread_sort_index", "args": {"sort_index": thread}})
        begin, took = span.started - self._started, span.ended - span.started
        events.append(
            {
                "ph": "X",
                "pid": PROCESS,
                "tid": thread,
                "name": span.name,
                "cat": span.track.partition(" ")[0],
                "ts": round(begin * MICROSECONDS, 3),
                "dur": round(took * MICROSECONDS, 3),
                "args": span.about,
            }
        )
        return events


_NAMED = {"ph": "M", "pid": PROCESS, "name": "process_name", "args": {"name": "WorldKV"}}
