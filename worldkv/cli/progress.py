"""A progress bar on a terminal, one line now and then elsewhere (CI, log files)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

LOG_EVERY_SECONDS = 15.0
BAR_CELLS = 24
# Bar, share, time passed and time left, a space after each.
FIGURES_CELLS = BAR_CELLS + 1 + 5 + 1 + 7 + 1 + 7 + 1


class Bar:
    """How far a run of `total` parts is, with the part in work shown by name."""

    def __init__(self, total: int, progress: Progress | None, console: Console) -> None:
        self.total, self._progress, self._console = total, progress, console
        self._task = progress.add_task("starting", total=float(total)) if progress else None
        self._done, self._last_line = 0, -LOG_EVERY_SECONDS

    def step(self, name: str, done: int, of: int) -> None:
        """The part in work is called `name` and `done` of `of` steps far."""
        at = self._done + done / max(1, of)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=name, completed=at)
        elif time.monotonic() - self._last_line >= LOG_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"{at / self.total:4.0%}  {name}", highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that stays, told as what it is."""
        line = Text.assemble(("warning:", "bold yellow"), " ", " ".join(text.split()))
        self._console.print(line, soft_wrap=True)

    def advance(self) -> None:
        """One part is finished."""
        self._done += 1
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=float(self._done))


@contextmanager
def bar(total: int) -> Iterator[Bar]:
    """A bar for the time of the context, on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(total, None, console)
        return
    # What is in work may have a long name: it gives way, the figures do not.
    room = Column(no_wrap=True, overflow="ellipsis", max_width=max(10, console.width - FIGURES_CELLS))
    columns = (
        BarColumn(BAR_CELLS),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False, table_column=room),
    )
    # The bar is of the moment: what stays on the screen is what was made.
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(total, progress, console)
