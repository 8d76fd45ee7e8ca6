"""A published model's world as a job, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cluster.cli import options
from cluster.cli.options import Place
from worldkv.cli import rolling
from worldkv.errors import ConfigError

if TYPE_CHECKING:
    from cluster.gangs.job import PlayOutcome
    from cluster.ledger import JobRecord, JobState
    from worldkv.cli.progress import Bar
    from worldkv.runs.play_config import PlayConfig
    from worldkv.stats import WorkerStats


def submit(config: PlayConfig, command: str, place: Place, *, resume: bool, priority: int) -> None:
    """Play the world as a new job, or go on with the one that makes this video. Raises a WorldKVError."""
    from cluster.ledger import new_play_record

    record = new_play_record(config, base=Path.cwd(), command=command, priority=priority)
    carry_out(record, place, resume=resume, again=f"{command} --resume")


def check(place: Place) -> None:
    """Raise ConfigError for an option that goes with rollouts of many worlds alone."""
    if place.workers is not None:
        raise ConfigError(f"--workers {place.workers}: a world is played by as many as model.ranks says; leave it out")
    if place.trace is not None:
        raise ConfigError(f"--trace {place.trace}: the world of a published model leaves none; leave it out")


def carry_out(record: JobRecord, place: Place, *, resume: bool, again: str) -> None:
    """Carry a job out under a progress bar, and tell of it; `again` is the command that goes on with it."""
    from cluster.places import absolute_play
    from worldkv.cli.progress import bar
    from worldkv.cli.stopping import stoppable
    from worldkv.runs import play

    check(place)
    config = absolute_play(record.play_config(), Path(record.base))
    play.check_video(config.video)
    play.prepare(config)
    kept = f"what is made so far is kept; go on with: {again}"
    with stoppable(kept if place.checkpoint else "no video was written"), bar(1) as progress:
        outcome = _under(progress, record, place, resume=resume)
        progress.advance()
    if outcome.cancelled:
        typer.echo(f"cancelled; go on with: {again}")
        return
    rolling.tell_played(outcome.chunks, outcome.retrieved, outcome.seconds, outcome.video)


def _under(progress: Bar, record: JobRecord, place: Place, *, resume: bool) -> PlayOutcome:
    progress.step("starting Ray" if place.address is None else f"joining {place.address}", 0, 1)
    config = record.play_config()
    with ExitStack() as stack:
        stack.enter_context(options.ray_of(place, gpus=None))
        from cluster.connection import resources
        from cluster.gangs.gang import Seats
        from cluster.gangs.job import PlayJob, PlaySettings, rank_line
        from cluster.watching import exported

        publish = stack.enter_context(exported(place.exporter, record, progress.note))

        def watch(ranks: Sequence[WorkerStats], state: JobState) -> None:
            for line in map(rank_line, ranks) if place.per_worker else ():
                progress.note(line)
            publish(ranks, state)

        output = Path(record.base) / config.video
        job = PlayJob(
            record,
            Seats.of(config.model, resources(), wait=place.wait),
            PlaySettings(options.jobs_url(place.jobs, output), place.checkpoint, place.tries),
            progress.step,
            progress.warn,
            gate=options.gate(place, record, 1),
            watch=watch,
        )
        return job.carry_out(resume=resume)
