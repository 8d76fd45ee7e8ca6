"""`worldkv eval`: the memory benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    import torch

    from worldkv.eval.benchmark import Case, History, Row
    from worldkv.models.rooms.scene import PathKind

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def evaluate(
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: full, sliding, worldkv, or changed: worldkv/codec=int8/positions=original."
        ),
    ] = "full,sliding,worldkv",
    paths: Annotated[
        str, typer.Option(help="back (out and exactly back), roam (back from elsewhere), wander (anywhere).")
    ] = "back,roam",
    frames: Annotated[str, typer.Option(help="Video frames per path; multiples of 6.")] = "96",
    history: Annotated[
        str, typer.Option(help="truth (first half shown), own (all generated but the first chunk).")
    ] = "truth",
    worlds: Annotated[int, typer.Option(min=1, help="How many worlds each figure is a mean of.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="First world.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Worlds rolled out together.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Denoise steps.")] = 2,
    weights: Annotated[Path | None, typer.Option(help="Folder of rooms weights; default: the shipped ones.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here as they come.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a plot of PSNR against length here: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Measure how faithfully each memory policy shows again what the camera saw before.

    Every policy runs on the same weights and the same worlds, which training never saw. The defaults end within
    5 minutes on 2 CPU cores; the full table wants a GPU:

    `worldkv eval --frames 96,288,576 --history truth,own --worlds 64 --batch 64 --json FILE`
    """
    from worldkv.cli.stopping import stoppable

    _check_target("--json", json_file, ())
    _check_target("--plot", plot, PLOT_SUFFIXES)
    wanted = _wanted(policies, paths, frames, history)
    kept = (
        f"the rows so far are in {json_file}" if json_file else "nothing was kept; --json FILE keeps rows as they come"
    )
    with stoppable(kept):
        rows = _measure(wanted, weights, _device(device), (worlds, seed, batch, steps), json_file)
    _show(rows, plot)


def _wanted(policies: str, paths: str, frames: str, history: str) -> list[Case]:
    from worldkv.eval import benchmark
    from worldkv.memory.policy import parse_policy

    return benchmark.cases(
        policies=[parse_policy(text) for text in _parts(policies)],
        paths=cast("list[PathKind]", _choices("--paths", paths, ("back", "roam", "wander"))),
        frames=_numbers("--frames", frames),
        histories=cast("list[History]", _choices("--history", history, ("truth", "own"))),
    )


def _measure(
    wanted: Sequence[Case],
    weights: Path | None,
    device: torch.device,
    sizes: tuple[int, int, int, int],
    json_file: Path | None,
) -> list[Row]:
    from worldkv.cli.progress import bar
    from worldkv.eval import benchmark
    from worldkv.models.rooms.model import SHIPPED_WEIGHTS, RoomsModel

    worlds, seed, batch, steps = sizes
    settings = benchmark.Settings(worlds=worlds, seed=seed, batch=min(batch, worlds), denoise_steps=steps)
    rows: list[Row] = []
    with bar(len(wanted)) as progress:
        progress.step("loading the model", 0, 1)
        model = RoomsModel.load(weights or SHIPPED_WEIGHTS, device)
        for row in benchmark.run(model, settings, wanted, progress.step):
            rows.append(row)
            progress.advance()
            if json_file is not None:
                _write(json_file, rows)
    return rows


def _show(rows: Sequence[Row], plot: Path | None) -> None:
    from worldkv.errors import OutputError
    from worldkv.eval import table

    table.show(rows)
    if plot is not None:
        try:
            table.plot(rows, plot)
        except OSError as fault:
            raise OutputError(f"{plot}: cannot be written: {fault.strerror or fault}") from fault


def _write(path: Path, rows: Sequence[Row]) -> None:
    # Not by the run folder's writer: that loads PyAV, which a GPU machine that only measures may lack.
    part = path.with_name(f"{path.name}.partial")
    part.write_text(json.dumps([row.as_json() for row in rows], indent=1, allow_nan=False) + "\n")
    part.replace(path)


def _check_target(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Find out before minutes of work whether their result can be written; makes its folder."""
    from worldkv.errors import ConfigError, OutputError

    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(f"{option} {path}: the name must end in one of {', '.join(suffixes)}")
    if path.is_dir():
        raise OutputError(f"{option} {path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as fault:
        raise OutputError(f"{option} {path}: cannot be written: {fault.strerror or fault}") from fault
    if not path.stat().st_size:
        path.unlink()


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _choices(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    from worldkv.errors import ConfigError

    names = _parts(text)
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{option} {text}: {name!r} is not one of {', '.join(allowed)}")
    return names


def _numbers(option: str, text: str) -> list[int]:
    from worldkv.errors import ConfigError

    try:
        numbers = [int(part) for part in _parts(text)]
    except ValueError:
        raise ConfigError(f"{option} {text}: expected whole numbers separated by commas") from None
    if min(numbers) < 1:
        raise ConfigError(f"{option} {text}: must all be 1 or more")
    return numbers


def _device(name: str) -> torch.device:
    import torch

    from worldkv.errors import ConfigError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: must be one of auto, cpu, cuda")
    return torch.device(name)
