"""`worldkv rollout`: from a configuration to dataset, video and report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


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

    overrides = set_ or []
    resolved = run_config.load(config, overrides)
    if dry_run:
        typer.echo(resolved.to_yaml(), nl=False)
        return
    words = [
        "worldkv",
        "rollout",
        *([str(config)] if config else []),
        *(w for o in overrides for w in ("--set", o)),
    ]
    _run(resolved, resume, shlex.join(words))


def _run(config, resume: bool, command: str) -> None:  # type: ignore[no-untyped-def]
    from worldkv.cli.progress import bar
    from worldkv.report import write_report
    from worldkv.runs import folder as run_folder
    from worldkv.runs import generate

    with bar(1, "run") as progress:
        folder = generate.generate(config, resume=resume, progress=progress.step)
        progress.step("writing the report", 1, 1)
        result = generate.collect(folder, config, command)
        write_report(result, folder)
        run_folder.write_text(folder / run_folder.SUMMARY, generate.summary(result))
        progress.advance()
    _tell(folder, result)


def _tell(folder: Path, result) -> None:  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.table import Table

    from worldkv.report.figures import policy_figures

    table = Table(title=f"{len(result.worlds)} worlds, fidelity where the camera sees again what it saw before")
    for name, justify in (
        ("policy", "left"),
        ("PSNR dB", "right"),
        ("frames/s", "right"),
        ("window tokens", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in policy_figures(result):
        table.add_row(
            row.policy,
            "-" if row.psnr_mean_db is None else f"{row.psnr_mean_db:.1f}",
            "-" if row.frames_per_second is None else f"{row.frames_per_second:.1f}",
            f"{row.window_tokens:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(f"watch    {folder}/video.mp4", highlight=False)
    console.print(f"read     {folder}/report.html", highlight=False)
    console.print(f"load     LeRobotDataset('worldkv', root='{folder}/dataset')", highlight=False)
    console.print(f"check    worldkv inspect {folder}", highlight=False)
    console.print("measure  worldkv eval", highlight=False)
