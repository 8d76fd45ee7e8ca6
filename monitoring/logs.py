"""Structured logs: one JSON object a line for each span, with the ids that metrics must not carry.

{"at": "2026-11-25T09:00:00.123Z", "event": "fetch", "track": "tier disk", "seconds": 0.0031,
 "tenant": "lab", "chunk": "8c1f...", "index": 12, "tier": "disk", "bytes": 656192}
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

from worldkv.durations import Span


class JsonLog:
    """A listener that writes each span as a line. Thread-safe; the caller opens and closes the stream."""

    def __init__(
        self, stream: TextIO, about: Mapping[str, str] | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        """`about` stands in every line: job and worker, say."""
        self._stream, self._about, self._wall = stream, dict(about or {}), wall
        self._lock = threading.Lock()

    def __call__(self, span: Span) -> None:
        """Write the span, which has ended now."""
        self.event(span.name, {"track": span.track, "seconds": round(span.ended - span.started, 6), **span.about})

    def event(self, event: str, about: Mapping[str, str | int | float]) -> None:
        """Write one line of something that has no length, such as a warning."""
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"at": at, "event": event, **self._about, **about}, ensure_ascii=False)
        # Whoever read it may be gone: a run does not end for its log.
        with self._lock, suppress(OSError):
            self._stream.write(line + "\n")
            self._stream.flush()


def both(*listeners: Callable[[Span], None]) -> Callable[[Span], None]:
    """A listener that tells all of these."""

    def tell(span: Span) -> None:
        for listener in listeners:
            listener(span)

    return tell
