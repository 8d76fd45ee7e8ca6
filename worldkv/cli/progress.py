"""A progress bar on a terminal, one line now and then elsewhere (CI, log files)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 15.0


class Bar:
    """How far a run of `total` parts is, with the part in work shown by name and fraction."""

    def __init__(self, total: int, unit: str, progress: Progress | None, console: Console) -> None:
        self.total, self.unit, self._progress, self._console = total, unit, progress, console
        self._task = progress.add_task(unit, total=float(total)) if progress else None
        self._done, self._last_line = 0, time.monotonic()

    def step(self, name: str, done: int, of: int) -> None:
        """The part in work is called `name` and `done` of `of` steps far."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=name, completed=self._done + done / max(1, of))
        elif time.monotonic() - self._last_line >= LOG_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"{self._done}/{self.total} {self.unit}; {name}: {done}/{of}", highlight=False)

    def advance(self) -> None:
        """One part is finished."""
        self._done += 1
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=float(self._done))


@contextmanager
def bar(total: int, unit: str) -> Iterator[Bar]:
    """A bar for the time of the context."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(total, unit, None, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        yield Bar(total, unit, progress, console)
