"""Chunks on their way to the node's server: copied out of the caller's hands at once, written by a thread.

- Bounded in bytes: who brings more waits until there is room.
- What is on its way can be read from here, so that a process finds what it has just put.
- A write that fails is tried again for a while, for a server that died is soon back; then it is given up and counted.
  From then on each chunk has one try, until one succeeds: who brings chunks is held up once by a server that hangs, and
  not for each of them.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.chunks.labels import Label
from cluster.chunks.server import Bytes
from worldkv.errors import TransferError, WorldKVError

LOG = logging.getLogger(__name__)
# More than a server takes to be back.
PATIENCE_SECONDS = 15.0
PAUSE_SECONDS = 0.25


class Clock(Protocol):
    """Time as whoever waits knows it."""

    def now(self) -> float:
        """Seconds of a clock that only goes forward."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait."""
        ...


@dataclass
class _Letter:
    label: Label
    data: Bytes


class Outbox:
    """`write` blocks; where it raises TransferError it is tried again, after anything else it is not."""

    def __init__(
        self,
        write: Callable[[Label, Bytes], None],
        idle: Callable[[], None],
        bound_bytes: int,
        clock: Clock,
    ) -> None:
        """`idle` is called every now and then by the same thread."""
        self._write, self._idle, self._clock = write, idle, clock
        self.bound_bytes = bound_bytes
        self.failures: dict[str, str] = {}
        """Chunk id -> why it could not be written, for good."""
        self._letters: OrderedDict[str, _Letter] = OrderedDict()
        self._bytes = 0
        self._sending: str | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._hopeless = False
        """The last chunk was given up though it was tried for long."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write from a thread of its own from now on; without, `put` writes at once."""
        self._thread = threading.Thread(target=self._work, name="worldkv-outbox", daemon=True)
        self._thread.start()

    def put(self, label: Label, data: Bytes) -> None:
        """Send the chunk off; waits only for room here. A chunk larger than the bound goes alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._letters or self._bytes + data.nbytes <= self.bound_bytes)
            self.failures.pop(label.chunk_id, None)
            if label.chunk_id in self._letters:
                return
            self._letters[label.chunk_id] = _Letter(label, data)
            self._bytes += data.nbytes
            self._changed.notify_all()
        if self._thread is None:
            self._send(self._letters[label.chunk_id])

    def pending(self, chunk_id: str) -> Bytes | None:
        """The bytes of a chunk that is still on its way."""
        with self._changed:
            letter = self._letters.get(chunk_id)
            return None if letter is None else letter.data

    def wait(self, seconds: float) -> bool:
        """Until nothing is on its way; whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._letters, seconds)

    def cancel(self, chunk_id: str) -> bool:
        """Do not write the chunk, or wait until it is written where that has begun; whether it was sent."""
        with self._changed:
            if chunk_id in self._letters and self._sending != chunk_id:
                self._bytes -= self._letters.pop(chunk_id).data.nbytes
                self._changed.notify_all()
                return False
            self._changed.wait_for(lambda: chunk_id not in self._letters)
            return True

    def wait_for(self, chunk_id: str) -> None:
        """Until the chunk is not on its way any more."""
        with self._changed:
            self._changed.wait_for(lambda: chunk_id not in self._letters)

    def close(self) -> None:
        """Write what is on its way and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._letters or self._closing, timeout=1.0)
                letter = next(iter(self._letters.values()), None)
                self._sending = None if letter is None else letter.label.chunk_id
                if letter is None and self._closing:
                    return
            if letter is not None:
                self._send(letter)
            self._idle()

    def _send(self, letter: _Letter) -> None:
        try:
            self._write_persistently(letter)
        except WorldKVError as fault:
            self.failures[letter.label.chunk_id] = str(fault)
        except Exception as fault:  # counted like the others, and told: the chunks behind it are not to wait for ever
            LOG.exception("chunk %s could not be written", letter.label.chunk_id)
            self.failures[letter.label.chunk_id] = repr(fault)
        finally:
            with self._changed:
                del self._letters[letter.label.chunk_id]
                self._bytes -= letter.data.nbytes
                self._changed.notify_all()

    def _write_persistently(self, letter: _Letter) -> None:
        until = self._clock.now() + PATIENCE_SECONDS
        while True:
            try:
                self._write(letter.label, letter.data)
                self._hopeless = False
                return
            except TransferError:
                # Nobody waits for ever: not who brings the next chunk, nor who ends.
                if self._hopeless or self._closing or self._clock.now() >= until:
                    self._hopeless = True
                    raise
            self._clock.pause(PAUSE_SECONDS)
