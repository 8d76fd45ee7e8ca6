"""Ctrl-C as the user should see it: what is kept, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The user pressed Ctrl-C; the message says what stays."""


@contextmanager
def stoppable(what_stays: str) -> Iterator[None]:
    """Turn Ctrl-C within the context into Stopped with this message."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(what_stays) from None
