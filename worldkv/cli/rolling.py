"""`worldkv rollout`: from a configuration to dataset, video and report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from worldkv.config import RunConfig
    from worldkv.results import RunResult
    from worldkv.runs.generate import Generated


def rollout(
    config: Annotated[Path | None, typer.Argument(help="YAML file; none: the defaults.", show_default=False)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as worlds.count=2; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that the output folder holds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Roll out worlds under several memory policies and compare them.

    Leaves a dataset (LeRobotDataset v3.0), a side-by-side video, a report and a summary in `output.folder`.

    `worldkv rollout configs/demo.yaml --set worlds.count=1 --set output.folder=runs/one`
    """
    from worldkv import config as run_config
    from worldkv.cli.stopping import stoppable

    overrides = set_ or []
    resolved = run_config.load(config, overrides)
    if dry_run:
        typer.echo(resolved.to_yaml(), nl=False)
        return
    changes = [word for override in overrides for word in ("--set", override)]
    command = shlex.join(["worldkv", "rollout", *([str(config)] if config else []), *changes])
    with stoppable(f"what was committed stays; go on with: {command} --resume"):
        _run(resolved, resume, command)


def _run(config: RunConfig, resume: bool, command: str) -> None:
    from worldkv.cli.progress import bar

    with bar(1) as progress:
        progress.step("starting", 0, 1)
        # Loading these takes seconds, which should not pass in silence.
        from worldkv.report import write_report
        from worldkv.runs import folder as run_folder
        from worldkv.runs import generate

        done = generate.generate(config, resume=resume, progress=progress.step)
        progress.step("writing the report", 1, 1)
        result = generate.collect(done.folder, config, command)
        write_report(result, done.folder)
        run_folder.write_text(done.folder / run_folder.SUMMARY, generate.summary(result))
        progress.advance()
    _tell(done, result)


def _tell(done: Generated, result: RunResult) -> None:
    from rich.console import Console
    from rich.table import Table

    from worldkv.report.figures import policy_figures

    table = Table(
        title=f"{_count(len(result.worlds), 'world')}: fidelity where the camera sees a place again",
        title_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for name in ("PSNR dB", "frames/s", "window tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in policy_figures(result):
        table.add_row(
            row.policy,
            "-" if row.psnr_mean_db is None else f"{row.psnr_mean_db:.1f}",
            "-" if row.frames_per_second is None else f"{row.frames_per_second:.1f}",
            f"{row.window_tokens:.0f}",
        )
    console = Console()
    console.print(table)
    for fault in done.faults:
        console.print(f"memory   {fault}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    for line in (
        f"made     {_made(done)}",
        f"watch    {done.folder}/video.mp4",
        f"read     {done.folder}/report.html",
        f"load     LeRobotDataset('worldkv', root='{done.folder}/dataset')",
        f"check    worldkv inspect {shlex.quote(str(done.folder))} --verify",
        "measure  worldkv eval",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _made(done: Generated) -> str:
    if not done.made:
        return f"nothing new: {_count(done.kept, 'episode')} there already, which is all"
    return _count(done.made, "episode") + (f"; {done.kept} more were there already" if done.kept else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("s" if number != 1 else "")
