"""The options that say where and how a job is carried out, and what they come to on this machine or that cluster."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worldkv.errors import ConfigError

if TYPE_CHECKING:
    from cluster.assigning import Gate
    from cluster.jobs import Settings
    from cluster.ledger import JobRecord
    from worldkv.config import RunConfig

JOBS_VARIABLE, TOKEN_VARIABLE = "WORLDKV_JOBS", "WORLDKV_TENANT_TOKEN"
JOBS_FOLDER = ".jobs"
DEFAULT_JOBS = "runs/.jobs"

AddressOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Join the cluster there; none: an embedded Ray of its own.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="How many; none: one per GPU, or one on all cores. Bytes do not depend on it.")
]
JobsOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar=JOBS_VARIABLE,
        help="Folder or fsspec URL of jobs, seen by all nodes; none: .jobs beside the output folder.",
    ),
]
CheckpointOption = Annotated[
    int, typer.Option(min=0, metavar="CHUNKS", help="Write a batch down after so many chunks each; 0: never.")
]
TriesOption = Annotated[int, typer.Option(min=1, help="A batch that takes its worker with it so often is set aside.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Where there are fewer GPUs or cores, start with those.")]
WorkersShown = Annotated[bool, typer.Option("--per-worker", help="Show how each worker stands, every few seconds.")]

ExporterOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Serve metrics there meanwhile, for Prometheus and `worldkv top`."),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Record what the sessions do there, for `worldkv simulate --trace`."),
]


@dataclass(frozen=True)
class Place:
    """Where and how, as the user said it."""

    address: str | None
    workers: int | None
    jobs: str | None
    checkpoint: int
    tries: int
    wait: bool
    per_worker: bool
    exporter: str | None
    trace: Path | None


def jobs_url(place: str | None, output: Path) -> str:
    """Where the ledger of a job that writes `output` lies, as an absolute path where it is a folder."""
    if place is None:
        return str(output.absolute().parent / JOBS_FOLDER)
    return place if "://" in place else str(Path(place).absolute())


def resume_command(record: JobRecord, url: str) -> str:
    """What goes on with the job."""
    where = "" if url == str(Path(DEFAULT_JOBS).absolute()) else f" --jobs {shlex.quote(url)}"
    return f"worldkv jobs resume {record.id}{where}"


@contextmanager
def cluster(place: Place, config: RunConfig) -> Iterator[Settings]:
    """The cluster for the time of the context, and how a job runs on it. Raises ClusterError and ConfigError."""
    with ray_of(place, gpus=0 if config.model.device == "cpu" else None):
        yield _settings(place, config)


@contextmanager
def ray_of(place: Place, *, gpus: int | None) -> Iterator[None]:
    """The joined cluster, or an embedded Ray with so many GPUs, for the time of the context. Raises ClusterError."""
    from cluster import environment

    cores = len(os.sched_getaffinity(0))
    if place.address is None:
        environment.for_embedded()
        # Ray reads the environment when it is imported.
        from cluster.connection import embedded

        with embedded(cpus=cores, gpus=gpus):
            yield
        return
    environment.for_joining(place.address)
    from cluster.connection import joined

    with joined(place.address):
        yield


def gate(place: Place, record: JobRecord, sessions: int) -> Gate:
    """Of the joined cluster, once it let a job of so many sessions at once in; open where there is none.

    Raises JobError.
    """
    from cluster.admission import Applicant
    from cluster.assigning import OpenGate
    from cluster.gate import ClusterGate, find_gate

    keeper = find_gate() if place.address is not None else None
    if keeper is None:
        return OpenGate()
    token = os.environ.get(TOKEN_VARIABLE, "")
    found = ClusterGate(keeper, Applicant(record.id, record.tenant, record.priority, token))
    found.check(sessions)
    return found


def _settings(place: Place, config: RunConfig) -> Settings:
    from cluster.connection import resources
    from cluster.jobs import Settings

    there = resources()
    on_gpu = config.model.device == "cuda" or (config.model.device == "auto" and there.gpus > 0)
    have, what = (there.gpus, "GPUs") if on_gpu else (there.cpus, "CPU cores")
    workers = place.workers or (there.gpus if on_gpu else there.nodes)
    if on_gpu and not there.gpus:
        raise ConfigError("model.device = 'cuda': no node has a GPU")
    if workers > have and not place.wait:
        raise ConfigError(f"--workers {workers}: there are {have} {what}; ask for fewer, or --wait for more")
    return Settings(
        jobs_url=jobs_url(place.jobs, config.output.folder),
        workers=workers,
        cpus_per_worker=max(1, min(there.cpus // workers, there.most_cpus)),
        gpus_per_worker=1 if on_gpu else 0,
        checkpoint_chunks=place.checkpoint,
        tries=place.tries,
        trace=place.trace,
    )
