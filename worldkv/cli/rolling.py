"""`worldkv rollout`: from a configuration to dataset, video and report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from worldkv.cli.counting import count
from worldkv.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from worldkv.cli.progress import Bar
    from worldkv.config import RunConfig
    from worldkv.results import RunResult
    from worldkv.runs.generate import Generated, Rolled
    from worldkv.runs.meter import Meter
    from worldkv.runs.play_config import PlayConfig
    from worldkv.stats import MemoryStats


ConfigArgument = Annotated[Path | None, typer.Argument(help="YAML file; none: the defaults.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as worlds.count=2; repeatable."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run that the output folder holds.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]


def rollout(
    config: ConfigArgument = None,
    set_: SetOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Roll out worlds under several memory policies and compare them, all in this process.

    Leaves a dataset (LeRobotDataset v3.0), a side-by-side video, a report and a summary in `output.folder`. A published
    model's world, as in configs/play, becomes one video.

    `worldkv rollout configs/demo.yaml --set worlds.count=1 --set output.folder=runs/one`
    """
    if of_published_model(config, set_ or []):
        play_in_process(resolve_play(config, set_ or [], dry_run=dry_run)[0], resume=resume)
        return
    in_process(*resolve(config, set_ or [], dry_run=dry_run), resume=resume)


def resolve(config: Path | None, overrides: Sequence[str], *, dry_run: bool) -> tuple[RunConfig, str]:
    """The configuration, and the command that gives it again; with `dry_run` it is printed, and that is all."""
    from worldkv import config as run_config

    resolved = run_config.load(config, overrides)
    if dry_run:
        _show(resolved.to_yaml())
    return resolved, _command(config, overrides)


def of_published_model(config: Path | None, overrides: Sequence[str]) -> bool:
    """Whether this is a world of a published model, by the model's name and what it starts from. Raises ConfigError."""
    from worldkv.config import read

    content = read(config, overrides)
    model = content.get("model")
    name = model.get("name", "rooms") if isinstance(model, dict) else "rooms"
    if name == "rooms":
        return False
    from worldkv.models.published import published

    return "inputs" in content or name in published()


def resolve_play(config: Path | None, overrides: Sequence[str], *, dry_run: bool) -> tuple[PlayConfig, str]:
    """As `resolve`, of a published model's world."""
    from worldkv.config import load_as
    from worldkv.runs.play_config import PlayConfig

    resolved = load_as(PlayConfig, config, overrides)
    if dry_run:
        _show(resolved.to_yaml())
    return resolved, _command(config, overrides)


def _show(text: str) -> NoReturn:
    typer.echo(text, nl=False)
    raise typer.Exit


def _command(config: Path | None, overrides: Sequence[str]) -> str:
    changes = [word for override in overrides for word in ("--set", override)]
    return shlex.join(["worldkv", "rollout", *([str(config)] if config else []), *changes])


def play_in_process(config: PlayConfig, *, resume: bool = False) -> None:
    """Play a published model's world here and now, and tell of it. Raises ConfigError for what needs workers."""
    from worldkv.cli.progress import bar
    from worldkv.cli.stopping import stoppable
    from worldkv.runs import play

    if resume:
        raise ConfigError("--resume: a world that is played in one process starts at its first chunk; leave it out")
    with stoppable("no video was written"), bar(1) as progress:
        made = play.play(config, progress=progress.step)
        progress.advance()
    tell_played(made.chunks, made.retrieved, made.seconds, config.video)


def tell_played(chunks: int, retrieved: int, seconds: float, video: Path) -> None:
    """What came of a world."""
    typer.echo(f"made     {count(chunks, 'chunk')}, {retrieved} retrieved, {seconds:.1f} s")
    typer.echo(f"watch    {video}")


def in_process(
    config: RunConfig,
    command: str,
    *,
    resume: bool,
    meter: Meter | None = None,
    rolled: Rolled = lambda under_way: None,
) -> None:
    """Roll out here and now, and tell of it; `meter` and `rolled` as `generate` has them."""
    from worldkv.cli.stopping import stoppable

    def make(progress: Bar) -> Generated:
        from worldkv.runs import generate

        return generate.generate(
            config, resume=resume, progress=progress.step, warn=progress.warn, meter=meter, rolled=rolled
        )

    with stoppable(f"what was committed stays; go on with: {command} --resume"):
        report(config, command, make)


def report(config: RunConfig, command: str, make: Callable[[Bar], Generated | None]) -> None:
    """Make a run under a progress bar, then write its report and tell of it; nothing of that where None was made."""
    from worldkv.cli.progress import bar

    with bar(1) as progress:
        progress.step("starting", 0, 1)
        done = make(progress)
        if done is None:
            return
        progress.step("writing the report", 1, 1)
        # Loading these takes seconds, which should not pass in silence.
        from worldkv.report import write_report
        from worldkv.runs import folder as run_folder
        from worldkv.runs import generate

        result = generate.collect(done.folder, config, command)
        write_report(result, done.folder)
        run_folder.write_text(done.folder / run_folder.SUMMARY, generate.summary(result))
        progress.advance()
    _tell(done, result, config)


def _tell(done: Generated, result: RunResult, config: RunConfig) -> None:
    from rich.console import Console
    from rich.table import Table

    from worldkv.report.figures import policy_figures

    table = Table(
        title=f"{count(len(result.worlds), 'world')}: fidelity where the camera sees a place again",
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
    if done.memory.lookups:
        console.print(_memory_table(done.memory))
    for line in (
        *_moved(done),
        *_kept(done.left, config),
        f"made     {_made(done)}",
        f"watch    {done.folder}/video.mp4",
        f"read     {done.folder}/report.html",
        f"load     LeRobotDataset('worldkv', root='{done.folder}/dataset')",
        f"check    worldkv inspect {shlex.quote(str(done.folder))} --verify",
        "measure  worldkv eval",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _memory_table(stats: MemoryStats) -> Table:
    """What each tier held and gave; a miss in one is a lookup of the next."""
    from rich.table import Table

    table = Table(title=f"{count(stats.lookups, 'lookup')} of remembered chunks", title_justify="left")
    table.add_column("tier", no_wrap=True)
    for name in ("held MiB", "of MiB", "chunks", "hits"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("misses", overflow="fold")
    for tier in stats.tiers:
        table.add_row(
            tier.name,
            f"{tier.used_bytes / 2**20:.1f}",
            f"{tier.capacity_bytes / 2**20:.0f}",
            str(tier.chunks),
            str(tier.hits),
            _reasons(tier.misses),
        )
    table.add_section()
    table.add_row("memory", "", "", "", str(stats.hits), _reasons(stats.misses))
    return table


def _reasons(misses: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in misses.items() if number) or "0"


def _moved(done: Generated) -> list[str]:
    down, up, lost = done.memory.demoted, done.memory.promoted, done.memory.dropped
    return [f"moved    {count(down, 'chunk')} down, {up} up, {lost} out"] if down + up + lost else []


def _kept(left: MemoryStats, config: RunConfig) -> list[str]:
    """Where a later run finds chunks again."""
    places = [(tier, held) for tier, held in zip(config.memory.tiers, left.tiers, strict=True) if held.chunks]
    return [f"kept     {count(held.chunks, 'chunk')} in {tier.folder or tier.url}" for tier, held in places]


def _made(done: Generated) -> str:
    if not done.made:
        return f"nothing new: {count(done.kept, 'episode')} there already, which is all"
    return count(done.made, "episode") + (f"; {done.kept} more were there already" if done.kept else "")
