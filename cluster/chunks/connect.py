"""How a worker gets its node tier: the actors that it needs are started where they are missing, by whoever comes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.chunks.client import Client
from cluster.chunks.directory_actor import DirectoryActor
from cluster.chunks.labels import DURABLE
from cluster.chunks.outbox import Outbox
from cluster.chunks.runtime import (
    NAMESPACE,
    RayNetwork,
    directory_name,
    server_name,
    this_process,
)
from cluster.chunks.server_actor import ServerActor
from cluster.chunks.settings import ChunkSettings
from cluster.chunks.tier import NodeTier
from worldkv.errors import TransferError
from worldkv.memory.tiers.durable import check_durable_tier

# A new actor's process starts within seconds; on a busy machine within tens.
START_SECONDS = 60.0
# Of chunks on their way from one worker to its server.
OUTBOX_BYTES = 256 * 2**20
# Threads of a chunk server: puts and copies are few, questions are short.
SERVER_THREADS = 8
# Reports of two servers must not be mixed up, and finding is quick.
DIRECTORY_THREADS = 1


def open_node_tier(settings: ChunkSettings, *, outbox_bytes: int = OUTBOX_BYTES) -> NodeTier:
    """The calling process' part of its node's tier, for `open_memory`. Ray is up; blocks until the actors are.

    Raises ConfigError where the node's object store is too small or the durable store refuses, TransferError where the
    actors do not start.
    """
    node = ray.get_runtime_context().get_node_id()
    # Copies need servers on nodes that no worker has come to yet.
    start_servers(settings, None if settings.copies > 1 else [node])
    network = RayNetwork(node, settings.directories)
    client = Client(this_process(node), network)
    # At most half of what the node may hold is under way to it, or it could never arrive.
    bound = max(1, min(outbox_bytes, settings.capacity_bytes // 2))
    outbox = Outbox(client.store, lambda: tier.give_back(), bound, network)
    tier = NodeTier("node", settings.capacity_bytes, client, outbox)
    outbox.start()
    return tier


@dataclass(frozen=True)
class Overview:
    """The tier at one moment, for whoever watches."""

    nodes: dict[str, dict[str, int]]
    """Of each server that lives, the durable one included: chunks, used_bytes, capacity_bytes, lent_bytes, evicted."""
    pending_bytes: int
    """Of chunks that are to have more copies than they have."""
    lag_seconds: float
    """Since when the oldest of them is."""


def overview(settings: ChunkSettings) -> Overview:
    """Asks a directory and all servers; those that do not answer are left out. Raises TransferError where none can."""
    network = RayNetwork(ray.get_runtime_context().get_node_id(), settings.directories)
    fault: TransferError | None = None
    for directory in network.directories():
        try:
            living, (pending, lag) = directory.nodes(), directory.arrears(0.0)
        except TransferError as error:
            fault = error
            continue
        figures: dict[str, dict[str, int]] = {}
        for node in living:
            with suppress(TransferError):
                figures[node] = network.server(node).figures()
        return Overview(figures, pending, lag)
    raise TransferError("no directory of chunks answers") from fault


def start_servers(settings: ChunkSettings, nodes: list[str] | None = None) -> None:
    """Directories, and the servers of these nodes, or of all, where they are missing. Blocks until they answer."""
    living = sorted(str(node["NodeID"]) for node in _nodes() if node["Alive"])
    handles: list[Any] = []
    for number in range(settings.directories):
        handles.append(_directory(directory_name(number), living[number % len(living)], settings))
    if settings.url is not None:
        _check_url(settings.url)
        handles.append(_actor(ServerActor, server_name(DURABLE), SERVER_THREADS, {}, (DURABLE, settings)))
    for node in living if nodes is None else nodes:
        settings.check_fits(node, _store_bytes(node))
        pinned = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
        handles.append(_actor(ServerActor, server_name(node), SERVER_THREADS, pinned, (node, settings)))
    try:
        ray.get([handle.faults.remote() for handle in handles], timeout=START_SECONDS)
    except RayError as fault:
        raise TransferError(f"the chunk servers do not start: {fault}") from fault


def _check_url(url: str) -> None:
    """Raise what opening the durable tier would, unless a server has it open already."""
    try:
        ray.get_actor(server_name(DURABLE), namespace=NAMESPACE)
    except ValueError:
        check_durable_tier(DURABLE, url)


def _directory(name: str, node: str, settings: ChunkSettings) -> Any:
    """On its node, or on any other when that has died."""
    place = {"label_selector": {"ray.io/node-id": node}, "fallback_strategy": [{"label_selector": {}}]}
    return _actor(DirectoryActor, name, DIRECTORY_THREADS, place, (settings.copies,))


def _actor(kind: type, name: str, threads: int, place: dict[str, Any], args: tuple[Any, ...]) -> Any:
    """The actor of this name. It takes no CPU slot from workers, and outlives whoever started it."""
    options: Any = ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=threads,
        **place,
    )
    return options.remote(*args)


def _store_bytes(node: str) -> int:
    return next(int(one["Resources"].get("object_store_memory", 0)) for one in _nodes() if one["NodeID"] == node)


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]  # Ray's
