"""How long things take: what is counted while they happen, and spans for whoever wants each of them by name.

Figures are bounded however long a process lives; spans are not, and go to a listener or nowhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from worldkv.stats import SECONDS_BOUNDS, Durations

Clock = Callable[[], float]
"""Seconds of a clock that never goes back."""


About = dict[str, str | int | float]


@dataclass(frozen=True)
class Span:
    """One thing that happened, from when to when, in seconds of the clock of whoever tells of it."""

    track: str
    """What it occupies, such as `compute` or `tier host`: spans of one track follow each other or nest."""
    name: str
    started: float
    ended: float
    about: About = field(default_factory=dict)
    """Tenant, session, chunk, bytes: whatever is too many for the labels of a metric."""


Listener = Callable[[Span], None]
"""Told of each span when it has ended, by the thread in which that was; must be quick and must not raise."""


def nobody(span: Span) -> None:
    """The listener that does not care."""


class DurationBook:
    """Counts durations of one kind."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more; it took so long."""
        self._counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self._seconds += seconds

    def frozen(self) -> Durations:
        """All so far."""
        return Durations(tuple(self._counts), self._seconds)
