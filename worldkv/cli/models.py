"""`worldkv models`: which published models there are, and whether a folder holds one that is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worldkv.cli import rolling

if TYPE_CHECKING:
    from worldkv.models.published import PartReport

app = typer.Typer(no_args_is_help=True, help="List the published models; check a folder of weights before using it.")

MOST_FAULTS = 20
BF16_BYTES = 2


@app.command("list")
def list_models() -> None:
    """Show the models that can be loaded, the licence of their weights, and their size.

    `worldkv models list`
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from worldkv.models.published import published
    from worldkv.models.wan.network import WanNetwork

    table = Table()
    table.add_column("name", no_wrap=True)
    for heading in ("model", "licence of the weights", "parameters", "in bf16"):
        table.add_column(heading, overflow="fold")
    for model in published().values():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in WanNetwork(model.shape()).parameters())
        table.add_row(
            model.name, model.title, model.licence, f"{count / 1e9:.2f} e9", f"{BF16_BYTES * count / 2**30:.1f} GiB"
        )
    Console().print(table)


@app.command("check")
def check_folder(
    path: Annotated[Path, typer.Argument(help="Folder laid out as its makers publish it.")],
    model: Annotated[str | None, typer.Option(help="Only this one of the models in it.")] = None,
) -> None:
    """Say which model a folder holds and what is wrong with it; reads headers only. Exit code 2 on a fault.

    `worldkv models check weights/lingbot-world-base-cam`
    """
    from worldkv.errors import CheckpointError
    from worldkv.models.published import check, found_in, named

    chosen = [named(model)] if model is not None else found_in(path)
    faults: list[str] = []
    for one in chosen:
        typer.echo(f"{path}: {one.title} ({one.name}), {one.licence}")
        for part in check(path, one):
            faults += _show(part)
    if faults:
        raise CheckpointError(f"{path}: cannot be used ({len(faults)} faults): {faults[0]}")
    typer.echo("whole: every tensor is there, in the right shape")


@app.command("play")
def play_model(
    config: Annotated[Path, typer.Argument(help="YAML file, such as those in configs/play.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as inputs.image=a.png; repeatable."),
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option(metavar="SEED", help="Weights that mean nothing, in the place of a folder's.")
    ] = None,
) -> None:
    """Roll out one world of a published model and write it as a video.

    `worldkv models play configs/play/lingbot-fast_1xh200.yaml --set inputs.image=first.png`
    """
    overrides = list(set_ or [])
    if random_weights is not None:
        overrides += ["model.folder=null", f"model.random_weights={random_weights}"]
    rolling.play_in_process(rolling.resolve_play(config, overrides, dry_run=False)[0])


def _show(part: PartReport) -> list[str]:
    """One line for a part, one for each fault up to MOST_FAULTS; returns the faults that matter."""
    if part.optional and part.faults and not part.tensors:
        typer.echo(f"  {part.part}: not there; it is optional ({part.path.name})")
        return []
    typer.echo(f"  {part.part}: {part.tensors} tensors, {part.nbytes / 2**30:.2f} GiB ({part.path})")
    for fault in part.faults[:MOST_FAULTS]:
        typer.echo(f"    {fault}")
    if len(part.faults) > MOST_FAULTS:
        typer.echo(f"    and {len(part.faults) - MOST_FAULTS} more")
    return list(part.faults)
