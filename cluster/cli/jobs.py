"""`worldkv jobs`: what became of jobs, and what shall."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import options, playing
from cluster.cli.options import DEFAULT_JOBS, Place
from worldkv.cli.counting import count

if TYPE_CHECKING:
    from cluster.ledger import JobRecord, JobState, Ledger

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Jobs: list, look at, cancel, resume.")
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="As `worldkv jobs list` names it.")]
WhereOption = Annotated[
    str,
    typer.Option("--jobs", metavar="URL", envvar=options.JOBS_VARIABLE, help="Folder or fsspec URL of jobs."),
]


@app.command("list")
def list_(jobs: WhereOption = DEFAULT_JOBS) -> None:
    """List all jobs and how far they are.

    `worldkv jobs list`
    """
    from rich.console import Console
    from rich.table import Table

    from cluster.ledger import ledgers

    table = Table(title=f"jobs in {jobs}", title_justify="left")
    for name in ("job", "state", "episodes", "tenant", "priority", "output"):
        table.add_column(name, overflow="fold")
    for ledger in ledgers(jobs):
        record = _record(ledger)
        state = _state(ledger)
        table.add_row(record.id, *_standing(state), record.tenant, str(record.priority), str(record.output))
    Console().print(table)


@app.command("status")
def status(job: JobArgument, jobs: WhereOption = DEFAULT_JOBS) -> None:
    """Show how a job stands: its driver, its workers, what was set aside and why.

    `worldkv jobs status demo-1a2b3c`
    """
    ledger = _ledger(jobs, job)
    record, state = _record(ledger), _state(ledger)
    lines = {
        "job": record.id,
        "output": str(record.output),
        "asked": _asked(record),
        "tenant": f"{record.tenant}, priority {record.priority}",
        "state": " ".join(_standing(state)),
    }
    if state is not None:
        lines["driver"] = f"{state.driver}, heard of {max(0.0, time.time() - state.told):.0f} s ago"
        lines["doing"] = state.doing
    for name, text in lines.items():
        typer.echo(f"{name:<9}{text}")
    for line in () if state is None else state.workers:
        typer.echo(f"         {line}")
    for number, tries in sorted(ledger.set_aside().items()):
        typer.echo(f"aside    batch {number} after {tries.failed} tries: {'; '.join(tries.reasons)}")


@app.command("cancel")
def cancel(job: JobArgument, jobs: WhereOption = DEFAULT_JOBS) -> None:
    """End a job; what it committed stays, what is under way is written down.

    `worldkv jobs cancel demo-1a2b3c`
    """
    ledger = _ledger(jobs, job)
    record = _record(ledger)
    ledger.cancel()
    again = options.resume_command(record, ledger.url)
    typer.echo(f"{job}: will end within seconds; go on with: {again}")


@app.command("resume")
def resume(
    job: JobArgument,
    retry: Annotated[bool, typer.Option("--retry", help="Also try again what was set aside.")] = False,
    address: options.AddressOption = None,
    workers: options.WorkersOption = None,
    jobs: WhereOption = DEFAULT_JOBS,
    checkpoint: options.CheckpointOption = 16,
    tries: options.TriesOption = 3,
    wait: options.WaitOption = False,
    per_worker: options.WorkersShown = False,
    exporter: options.ExporterOption = None,
    trace: options.TraceOption = None,
) -> None:
    """Go on with a job whose driver was stopped, cancelled or killed; the dataset gets the bytes of an undisturbed one.

    `worldkv jobs resume demo-1a2b3c`
    """
    from cluster.cli.rolling import carry_out

    ledger = _ledger(jobs, job)
    record = _record(ledger)
    place = Place(address, workers, jobs, checkpoint, tries, wait, per_worker, exporter, trace)
    if record.kind == "play":
        playing.carry_out(record, place, resume=True, again=options.resume_command(record, ledger.url))
        return
    given = record.run_config()
    output = given.output.model_copy(update={"folder": Path(record.base) / given.output.folder})
    if retry:
        for number in ledger.set_aside():
            ledger.clear(number)
    config = given.model_copy(update={"output": output})
    carry_out(record, config, place, resume=True, again=options.resume_command(record, ledger.url))


def _asked(record: JobRecord) -> str:
    if record.kind == "play":
        model = record.play_config().model
        return f"one world of {model.name}" + (f" over {model.ranks} ranks" if model.ranks > 1 else "")
    config = record.run_config()
    return f"{count(config.worlds.count, 'world')} under {', '.join(config.policies)}"


def _ledger(jobs: str, job: str) -> Ledger:
    from cluster.ledger import Ledger

    return Ledger(jobs if "://" in jobs else str(Path(jobs).absolute()), job)


def _record(ledger: Ledger) -> JobRecord:
    from worldkv.errors import JobError

    record = ledger.record()
    if record is None:
        raise JobError(
            f"job {ledger.id}: not in {ledger.url}; `worldkv jobs list` shows what is, --jobs looks elsewhere"
        )
    return record


def _state(ledger: Ledger) -> JobState | None:
    state = ledger.state()
    return None if state is None else state.now(time.time())


def _standing(state: JobState | None) -> tuple[str, str]:
    return ("submitted", "0") if state is None else (state.standing, f"{state.episodes} of {state.wanted}")
