"""`worldkv models`: which published models there are, and whether a folder holds one that is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worldkv.cli import rolling
from worldkv.cli.counting import count
from worldkv.errors import ConfigError

if TYPE_CHECKING:
    from worldkv.models.published import PartReport

app = typer.Typer(no_args_is_help=True, help="The published models: list, fetch, check, encode for, play.")

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
        raise CheckpointError(f"{path}: cannot be used ({count(len(faults), 'fault')}): {faults[0]}")
    typer.echo("whole: every tensor is there, in the right shape")


@app.command("fetch")
def fetch_model(
    model: Annotated[str, typer.Argument(help="As `worldkv models list` names it, or the repository it comes from.")],
    into: Annotated[Path | None, typer.Option(help="Folder to fill. None: weights/ and the usual name.")] = None,
    encoder: Annotated[bool, typer.Option(help="With what encodes prompts or pictures, up to 11 GB.")] = True,
) -> None:
    """Fetch what a model needs from the hub where it is published; goes on where an earlier call was cut off.

    `worldkv models fetch matrix-game-2-universal`
    """
    from worldkv.cli.progress import bar
    from worldkv.cli.stopping import stoppable
    from worldkv.models.fetch import fetch, wanted_files
    from worldkv.models.hub import HuggingFace
    from worldkv.models.published import of_source

    hub = HuggingFace()
    for one in of_source(model):
        root = into or Path("weights") / one.folder
        wanted = wanted_files(one, root, hub, encoder=encoder)
        typer.echo(f"{one.title} ({one.name}), {one.licence}: {len(wanted)} files")
        with stoppable(f"what came lies in {root}; fetch again to go on"), bar(1) as progress:
            nbytes = fetch(wanted, hub, progress=progress.step)
            progress.advance()
        typer.echo(f"whole    {root}: {nbytes / 2**30:.2f} GiB, every file as the hub has it")


@app.command("encode")
def encode_input(
    folder: Annotated[Path, typer.Argument(help="Folder of a model, as its makers publish it.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write, for inputs.embeddings of `play`.")],
    prompt: Annotated[str | None, typer.Option(help="What the world is like, for LingBot.")] = None,
    image: Annotated[Path | None, typer.Option(help="The first picture, for Matrix-Game-2.0.")] = None,
) -> None:
    """Encode a prompt or a picture once, so that worlds start without the encoder.

    `worldkv models encode weights/lingbot-world-base-cam --prompt "a red room" --out prompt.safetensors`
    """
    import torch
    from safetensors.torch import save

    from worldkv.errors import ConfigError, OutputError
    from worldkv.models.published import found_in
    from worldkv.runs.encoding import encoded_image, encoded_prompt
    from worldkv.runs.folder import write_whole
    from worldkv.runs.play import read_image

    if (prompt is None) == (image is None):
        raise ConfigError("give either --prompt or --image")
    if out.exists():
        raise OutputError(f"{out}: already exists")
    fitting = [one for one in found_in(folder) if one.takes_prompts == (prompt is not None)]
    if not fitting:
        held = ", ".join(one.name for one in found_in(folder))
        raise ConfigError(f"{folder}: holds {held}, which takes {'no prompt' if image is None else 'no encoded image'}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if prompt is not None:
        tokens = encoded_prompt(folder, fitting[0], prompt, device)
    else:
        assert image is not None
        tokens = encoded_image(folder, fitting[0], read_image(image), device)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, save({"embeddings": tokens}))
    typer.echo(f"made     {out}: {len(tokens)} tokens of {tokens.shape[1]} numbers")


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
    try:
        resolved, _ = rolling.resolve_play(config, overrides, dry_run=False)
    except ConfigError as fault:
        if _is_for_rollouts(config):
            raise ConfigError(f"{config}: is for rollouts of many worlds; use worldkv rollout") from fault
        raise
    rolling.play_in_process(resolved)


def _is_for_rollouts(path: Path) -> bool:
    from worldkv.config import load

    try:
        load(path)
    except ConfigError:
        return False
    return True


def _show(part: PartReport) -> list[str]:
    """One line for a part, one for each fault up to MOST_FAULTS; returns the faults that matter."""
    if part.optional and part.faults and not part.tensors:
        typer.echo(f"  {part.part}: not there; it is optional ({part.path.name})")
        return []
    typer.echo(f"  {part.part}: {count(part.tensors, 'tensor')}, {part.nbytes / 2**30:.2f} GiB ({part.path})")
    for fault in part.faults[:MOST_FAULTS]:
        typer.echo(f"    {fault}")
    if len(part.faults) > MOST_FAULTS:
        typer.echo(f"    and {len(part.faults) - MOST_FAULTS} more")
    return list(part.faults)
