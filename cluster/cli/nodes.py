"""`worldkv cluster`."""

import typer

app = typer.Typer(no_args_is_help=True, help="A cluster.")


@app.command("status")
def status() -> None:
    """x"""


@app.command("s2")
def status2() -> None:
    """x"""
