"""`worldkv top` and `worldkv cluster monitor up`: for the console script to take up."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from monitoring.snapshot import Snapshot
from worldkv.errors import ConfigError

ADDRESS = "127.0.0.1:9464"
"""Where an exporter listens unless told otherwise."""
ASK_SECONDS = 10.0

monitor = typer.Typer(no_args_is_help=True, help="Prometheus and Grafana for a cluster that runs.")


@monitor.callback()
def _monitor() -> None:
    """Keeps `up` a command of its own, though it is the only one."""


def top(
    exporter: Annotated[str, typer.Argument(help="HOST:PORT of an exporter.")] = ADDRESS,
    token_file: Annotated[Path | None, typer.Option(help="Holds the operator's token, where one is needed.")] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds from one look to the next.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once and stop.")] = False,
) -> None:
    """Watch workers, tiers, tenants and jobs, live. Ctrl-C ends it.

    `worldkv top 127.0.0.1:9464`
    """
    from rich.console import Console
    from rich.live import Live

    from monitoring.view import draw

    token = read_token(token_file)
    now, before = ask(exporter, token), None
    console = Console()
    if once:
        console.print(draw(now, None, time.time()))
        return
    picture = Live(draw(now, None, time.time()), console=console, screen=console.is_terminal, auto_refresh=False)
    with picture, suppress(KeyboardInterrupt):
        while True:
            time.sleep(every)
            silent = None
            try:
                latest = ask(exporter, token)
            except ConfigError as fault:
                # The run may be over, or its exporter on its way back: the last figures are worth more than none.
                latest, silent = now, str(fault)
            if latest.taken_at != now.taken_at:
                now, before = latest, now
            picture.update(draw(now, before, time.time(), silent), refresh=True)
    if console.is_terminal:
        # The screen that was drawn on is gone with its last picture.
        console.print(draw(now, before, time.time()))


@monitor.command("up")
def monitor_up(
    exporter: Annotated[
        list[str] | None, typer.Option("--exporter", metavar="HOST:PORT", help="To be scraped; repeatable.")
    ] = None,
    discovery: Annotated[
        str | None, typer.Option(metavar="URL", help="Lists the exporters: http://HEAD:PORT/targets.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where configuration and Prometheus' data go.")] = Path(
        "runs/monitoring"
    ),
    token_file: Annotated[Path | None, typer.Option(help="Holds the token that exporters ask for.")] = None,
    prometheus: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where it shall listen.")] = "127.0.0.1:9090",
    grafana: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where it shall listen.")] = "127.0.0.1:3000",
) -> None:
    """Write configuration for Prometheus and Grafana, and say the two commands that start them.

    `worldkv cluster monitor up --discovery http://127.0.0.1:9464/targets`
    """
    from monitoring.setup import Wanted, write

    exporters = tuple(exporter or ()) or (() if discovery is not None else (ADDRESS,))
    commands = write(Wanted(folder, exporters, discovery, token_file, prometheus, grafana))
    typer.echo(f"written into {folder}; start them, each in a shell of its own:\n")
    typer.echo(commands.prometheus)
    typer.echo(commands.grafana)
    typer.echo(f"\nthen open http://{grafana}/dashboards")


def read_token(path: Path | None) -> str | None:
    """The token in the file. Raises ConfigError where it cannot be read or is empty."""
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except OSError as fault:
        raise ConfigError(f"token file {path}: {fault.strerror}") from fault
    if not token:
        raise ConfigError(f"token file {path}: empty")
    return token


def ask(exporter: str, token: str | None) -> Snapshot:
    """The latest snapshot. Blocks. Raises ConfigError where there is none to be had."""
    url = f"{exporter if '://' in exporter else f'http://{exporter}'}/snapshot"
    request = urllib.request.Request(url, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
            return Snapshot.from_json(answer.read(), url)
    except urllib.error.HTTPError as fault:
        said = fault.read().decode(errors="replace").strip()
        raise ConfigError(f"exporter {url}: answers {fault.code}: {said}") from fault
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "reason", fault)
        raise ConfigError(f"exporter {url}: cannot be asked: {reason}") from fault
