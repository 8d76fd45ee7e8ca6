"""`worldkv simulate`: the scheduler on a simulated cluster, a typer command for whoever builds the command tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    trace: Annotated[
        Path | None, typer.Option(help="Recorded trace to replay; without it sessions are made up.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Made-up sessions.")] = 8,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks per made-up session.")] = 200,
    kind: Annotated[str, typer.Option(help="What made-up cameras do: keys, back or look.")] = "keys",
    scripted_share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the made-up sessions whose way is known ahead.")
    ] = 0.0,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the simulated cluster.")] = 1,
    workers_per_node: Annotated[int, typer.Option(min=1, help="GPUs per node.")] = 8,
    device_chunks: Annotated[int, typer.Option(min=1, help="Stored chunks that a GPU's memory holds.")] = 12,
    host_chunks: Annotated[int, typer.Option(min=1, help="Stored chunks that host memory holds, per GPU.")] = 48,
    disk_bytes_per_second: Annotated[float, typer.Option(help="Rate of the local disk, per GPU.")] = 2e9,
    strategies: Annotated[
        str, typer.Option(help="Comma-separated: none, lru, next, planned, clairvoyant.")
    ] = "lru,planned,clairvoyant",
    seed: Annotated[int, typer.Option(min=0, help="Of made-up cameras.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Replay or make up sessions on a simulated cluster, with the scheduler's own code, beside its baselines.

    `planned` is the scheduler; `lru` fetches what a window waits for; `clairvoyant` knows the future.
    """
    from typing import cast

    from scheduler.simulate import Simulation, run_simulation
    from scheduler.simulation.hardware import Rates, Sizes, h200_cluster
    from scheduler.synthetic import Load, PathKind

    hardware = h200_cluster(
        nodes,
        workers_per_node,
        sizes=Sizes(device_chunks, host_chunks),
        rates=Rates(disk=disk_bytes_per_second),
    )
    load = Load(sessions, chunks, kind=cast("PathKind", kind), scripted_share=scripted_share, seed=seed)
    simulation = Simulation(hardware, tuple(strategies.split(",")))
    run_simulation(simulation, load, trace=trace, json_file=json_file)
