"""The command tree, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from worldkv import __version__
from worldkv.cli import evaluate, inspection, models, rolling, trajectories
from worldkv.cli.stopping import Stopped
from worldkv.errors import WorldKVError
from worldkv.numerics import make_repeatable

HELP = "Persistent worlds: a retrieval memory of KV chunks for autoregressive video world models."


def tree(rollout: Callable[..., None] = rolling.rollout) -> typer.Typer:
    """All commands of the library, `rollout` being the one that is given."""
    app = typer.Typer(
        name="worldkv",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        help=HELP,
    )
    app.callback(help=HELP)(_common)
    app.command("rollout")(rollout)
    app.command("eval")(evaluate.evaluate)
    app.command("inspect")(inspection.inspect)
    app.add_typer(trajectories.app, name="trajectory")
    app.add_typer(models.app, name="models")
    return app


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"worldkv {__version__}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_say_version),
    ] = False,
) -> None:
    """Options that go without a command."""


USER_ERROR, INTERRUPTED = 2, 130
# What the disk and its rights can refuse anywhere; any other OSError is a fault of ours and keeps its traceback.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def main() -> None:
    """Run the library's command line."""
    run(tree())


def run(app: typer.Typer) -> None:
    """Run a command line: 0 when all went well, 2 for a user's mistake, 130 for Ctrl-C."""
    make_repeatable()
    try:
        app(standalone_mode=True)
    except WorldKVError as fault:
        _end("error:", str(fault), USER_ERROR)
    except OSError as fault:
        if fault.errno not in REFUSALS:
            raise
        where = f"{fault.filename}: " if fault.filename else ""
        _end("error:", f"{where}{fault.strerror}", USER_ERROR)
    except Stopped as stop:
        _end("stopped:", str(stop), INTERRUPTED)
    except KeyboardInterrupt:
        _end("stopped:", "by Ctrl-C", INTERRUPTED)
    except SystemExit as end:
        # Typer turns Ctrl-C into this exit code, without a word.
        if end.code != INTERRUPTED:
            raise
        _end("stopped:", "by Ctrl-C", INTERRUPTED)


def _end(kind: str, text: str, code: int) -> None:
    """One line, whatever characters and line ends the message holds."""
    line = Text.assemble((kind, "bold red"), " ", " ".join(text.split()))
    Console(stderr=True).print(line, soft_wrap=True)
    sys.exit(code)
