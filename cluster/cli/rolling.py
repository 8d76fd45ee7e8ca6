"""`worldkv rollout` as a job on workers, and how a job is carried out from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import options, playing
from cluster.cli.options import Place
from worldkv.cli import rolling
from worldkv.errors import ConfigError

if TYPE_CHECKING:
    from cluster.jobs import Outcome
    from cluster.ledger import JobRecord, JobState
    from worldkv.cli.progress import Bar
    from worldkv.config import RunConfig
    from worldkv.runs.batch import BatchRollout
    from worldkv.runs.generate import Generated
    from worldkv.stats import WorkerStats

SET_ASIDE = 1
"""Exit code of a job that left batches out: that is no mistake of whoever asked."""


def rollout(
    config: rolling.ConfigArgument = None,
    set_: rolling.SetOption = None,
    resume: rolling.ResumeOption = False,
    dry_run: rolling.DryRunOption = False,
    in_process: Annotated[bool, typer.Option("--in-process", help="In this process alone, without Ray.")] = False,
    address: options.AddressOption = None,
    workers: options.WorkersOption = None,
    jobs: options.JobsOption = None,
    priority: Annotated[int, typer.Option(help="Of a tenant's jobs, the higher go first.")] = 0,
    checkpoint: options.CheckpointOption = 16,
    tries: options.TriesOption = 3,
    wait: options.WaitOption = False,
    per_worker: options.WorkersShown = False,
    exporter: options.ExporterOption = None,
    trace: options.TraceOption = None,
) -> None:
    """Roll out worlds under several memory policies and compare them.

    Leaves a dataset (LeRobotDataset v3.0), a side-by-side video, a report and a summary in `output.folder`. Workers
    roll out, on this machine or, with --address, on a cluster; whoever is killed, the dataset gets the same bytes. A
    published model's world, as in configs/play, becomes one video, over as many GPUs as `model.ranks` says.

    `worldkv rollout configs/demo.yaml --set worlds.count=1 --set output.folder=runs/one`
    """
    place = Place(address, workers, jobs, checkpoint, tries, wait, per_worker, exporter, trace)
    if rolling.of_published_model(config, set_ or []):
        played, command = rolling.resolve_play(config, set_ or [], dry_run=dry_run)
        playing.check(place)
        if in_process:
            rolling.play_in_process(played, resume=resume)
        else:
            playing.submit(played, command, place, resume=resume, priority=priority)
        return
    resolved, command = rolling.resolve(config, set_ or [], dry_run=dry_run)
    if in_process and exporter is not None:
        raise ConfigError(f"--exporter {exporter}: metrics are served for a job on workers; leave out --in-process")
    if trace is not None:
        from cluster.recording import check_trace

        check_trace(resolved, trace)
    if in_process:
        _in_process(resolved, command, trace, resume=resume)
        return
    from cluster.ledger import new_record
    from worldkv.runs import folder as run_folder

    run_folder.check(resolved, resume=resume)
    record = new_record(resolved, base=Path.cwd(), command=command, priority=priority)
    carry_out(record, resolved, place, resume=resume, again=f"{command} --resume")


def carry_out(record: JobRecord, config: RunConfig, place: Place, *, resume: bool, again: str) -> None:
    """Carry a job out under a progress bar, and tell of it; `again` is the command that goes on with it."""
    from worldkv.cli.stopping import stoppable

    outcomes: list[Outcome] = []

    def make(progress: Bar) -> Generated | None:
        progress.step("starting Ray" if place.address is None else f"joining {place.address}", 0, 1)
        with ExitStack() as stack:
            settings = stack.enter_context(options.cluster(place, config))
            from cluster.jobs import Job
            from cluster.watching import exported

            publish = stack.enter_context(exported(place.exporter, record, progress.note))
            show = _shown(progress) if place.per_worker else lambda workers: None

            def watch(workers: Sequence[WorkerStats], state: JobState) -> None:
                show(workers)
                publish(workers, state)

            job = Job(
                record,
                settings,
                progress.step,
                progress.warn,
                gate=options.gate(place, record, min(config.batch_sessions, config.worlds.count)),
                watch=watch,
            )
            outcomes.append(job.carry_out(resume=resume))
        return None if outcomes[0].cancelled else outcomes[0].generated

    with stoppable(f"what was committed stays; go on with: {again}"):
        rolling.report(config, record.command, make)
    _tell(outcomes[0], options.resume_command(record, options.jobs_url(place.jobs, config.output.folder)))


def _in_process(config: RunConfig, command: str, trace: Path | None, *, resume: bool) -> None:
    if trace is None:
        rolling.in_process(config, command, resume=resume)
        return
    from contextlib import closing

    from cluster.recording import Recorder, TraceLog
    from worldkv.runs import folder as run_folder
    from worldkv.runs.meter import Meter

    run_folder.check(config, resume=resume)
    recorder = Recorder()
    with closing(TraceLog(trace).open(resume=resume)) as log:

        def rolled(under_way: BatchRollout) -> None:
            log.add(recorder.lines(under_way))

        rolling.in_process(config, command, resume=resume, meter=Meter(listener=recorder), rolled=rolled)


def _tell(outcome: Outcome, again: str) -> None:
    if outcome.cancelled:
        typer.echo(f"cancelled; go on with: {again}")
    for number, tries in sorted(outcome.set_aside.items()):
        typer.echo(f"missing  batch {number}, set aside after {tries.failed} tries: {tries.reasons[-1]}")
    if outcome.set_aside:
        typer.echo(f"again    {again} --retry")
        raise typer.Exit(SET_ASIDE)


def _shown(progress: Bar) -> Callable[[Sequence[WorkerStats]], None]:
    from cluster.jobs import worker_line

    def show(stats: Sequence[WorkerStats]) -> None:
        for one in stats:
            progress.note(worker_line(one))

    return show
