"""The command tree, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import errno
import os
import sys

import typer
from rich.console import Console

from worldkv.cli import evaluate, inspection, rolling, trajectories
from worldkv.errors import WorldKVError

app = typer.Typer(
    name="worldkv",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Persistent worlds: a retrieval memory of KV chunks for autoregressive video world models.",
)
app.command("rollout")(rolling.rollout)
app.command("eval")(evaluate.evaluate)
app.command("inspect")(inspection.inspect)
app.add_typer(trajectories.app, name="trajectory")

USER_ERROR, INTERRUPTED = 2, 130


def main() -> None:
    """Run the command line: 0 when all went well, 2 for a user's mistake, 130 for Ctrl-C."""
    console = Console(stderr=True)
    # Spinning OpenMP threads make torch four to nine times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except WorldKVError as fault:
        console.print(f"[bold red]error:[/] {_plain(str(fault))}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR)
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        console.print(f"[bold red]error:[/] {_plain(str(fault))}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        console.print("stopped; what was committed stays, run again with --resume to go on")
        sys.exit(INTERRUPTED)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
