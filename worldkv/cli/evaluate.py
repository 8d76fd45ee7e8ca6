"""`worldkv eval`: the memory benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: full, sliding, worldkv, or changed: worldkv/codec=int8/positions=original."
        ),
    ] = "full,sliding,worldkv",
    paths: Annotated[str, typer.Option(help="back (out and exactly back), roam (back from elsewhere).")] = "back,roam",
    frames: Annotated[str, typer.Option(help="Video frames per path; multiples of 6.")] = "96",
    history: Annotated[
        str, typer.Option(help="truth (first half shown), own (all generated but the first chunk).")
    ] = "truth",
    worlds: Annotated[int, typer.Option(min=1, help="How many worlds each figure is a mean of.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="First world.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Worlds rolled out together.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Denoise steps.")] = 4,
    weights: Annotated[Path | None, typer.Option(help="Folder of rooms weights; default: the shipped ones.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here as they come.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot of PSNR against length here (.png or .svg).")] = None,
) -> None:
    """Measure how faithfully each memory policy shows again what the camera saw before.

    Every policy runs on the same weights and the same worlds, which training never saw. The defaults end within
    5 minutes on 2 CPU cores; the full table wants a GPU:

    `worldkv eval --frames 96,288,576 --history truth,own --worlds 64 --batch 64 --json FILE`
    """
    from worldkv.cli.progress import bar
    from worldkv.eval import benchmark, table
    from worldkv.memory.policy import parse_policy
    from worldkv.models.rooms.model import SHIPPED_WEIGHTS, RoomsModel

    wanted = benchmark.cases(
        policies=[parse_policy(text) for text in policies.split(",")],
        paths=_choices("--paths", paths, ("back", "roam", "wander")),
        frames=_numbers("--frames", frames),
        histories=_choices("--history", history, ("truth", "own")),
    )
    model = RoomsModel.load(weights or SHIPPED_WEIGHTS, _device(device))
    settings = benchmark.Settings(worlds=worlds, seed=seed, batch=min(batch, worlds), denoise_steps=steps)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
    rows: list[benchmark.Row] = []
    with bar(len(wanted), "cases") as progress:
        for row in benchmark.run(model, settings, wanted, progress.step):
            rows.append(row)
            progress.advance()
            if json_file is not None:
                _write(json_file, rows)
    table.show(rows)
    if plot is not None:
        table.plot(rows, plot)


def _write(path: Path, rows: list) -> None:  # type: ignore[type-arg]
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    partial.replace(path)


def _choices(option: str, text: str, allowed: tuple[str, ...]) -> list:  # type: ignore[type-arg]
    from worldkv.errors import ConfigError

    names = text.split(",")
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{option} {text}: {name!r} is not one of {', '.join(allowed)}")
    return names


def _numbers(option: str, text: str) -> list[int]:
    from worldkv.errors import ConfigError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: expected whole numbers separated by commas") from None
    if min(numbers) < 1:
        raise ConfigError(f"{option} {text}: must be 1 or more")
    return numbers


def _device(name: str):  # type: ignore[no-untyped-def]
    import torch

    from worldkv.errors import ConfigError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: must be one of auto, cpu, cuda")
    return torch.device(name)
