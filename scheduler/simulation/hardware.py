"""What the simulated cluster is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from worldkv.errors import ConfigError

Scope = Literal["worker", "node", "cluster"]
"""Who shares one tier or link: nobody, the workers of a node, all."""
GB = 10**9


@dataclass(frozen=True)
class TierSpec:
    """One tier; `capacity_bytes` is that of each instance."""

    name: str
    capacity_bytes: float
    """Infinite: never full."""
    scope: Scope


@dataclass(frozen=True)
class LinkSpec:
    """The way from one tier to the next nearer one."""

    bytes_per_second: float
    latency_seconds: float
    scope: Scope


@dataclass(frozen=True)
class Hardware:
    """Nodes of equal workers, and the tiers they see, nearest first."""

    tiers: tuple[TierSpec, ...]
    links: tuple[LinkSpec, ...]
    """Link i leads from tier i + 1 to tier i."""
    nodes: int = 1
    workers_per_node: int = 1
    slots: int = 1
    """Sessions that one worker advances at once."""
    staging_bytes: int = 64 * GB
    round_seconds: float = 1.0
    """Between one round of placement and the next."""

    def __post_init__(self) -> None:
        if len(self.links) != len(self.tiers) - 1:
            raise ConfigError(f"{len(self.tiers)} tiers need {len(self.tiers) - 1} links, got {len(self.links)}")
        if min(self.nodes, self.workers_per_node, self.slots) < 1 or not self.round_seconds > 0:
            raise ConfigError(
                f"nodes={self.nodes}, workers_per_node={self.workers_per_node}, slots={self.slots}, "
                f"round_seconds={self.round_seconds}: all must be above 0"
            )
        if not math.isinf(self.tiers[-1].capacity_bytes):
            raise ConfigError(f"the last tier, {self.tiers[-1].name}, must have infinite capacity: nothing is dropped")

    @property
    def workers(self) -> int:
        """In the whole cluster."""
        return self.nodes * self.workers_per_node

    def instance(self, scope: Scope, worker: int) -> int:
        """Number of the tier or link that a worker sees."""
        return {"worker": worker, "node": worker // self.workers_per_node, "cluster": 0}[scope]

    def instances(self, scope: Scope) -> int:
        """How many there are of a tier or link."""
        return {"worker": self.workers, "node": self.nodes, "cluster": 1}[scope]

    def resized(self, nodes: int, workers_per_node: int) -> Hardware:
        """The same kind of node, another number of them."""
        return replace(self, nodes=nodes, workers_per_node=workers_per_node)


def h200_node(*, device_chunks: int, host_chunks: int, chunk_bytes: int) -> Hardware:
    """One worker with the rates measured on an H200 machine: 55 GB/s from pinned host memory, 2 GB/s from its disk.

    The durable tier is taken to give 1 GB/s after 50 ms, which is not measured. Capacities are in chunks per worker.
    """
    return Hardware(
        tiers=(
            TierSpec("device", device_chunks * chunk_bytes, "worker"),
            TierSpec("host", host_chunks * chunk_bytes, "worker"),
            TierSpec("disk", math.inf, "node"),
        ),
        links=(LinkSpec(55 * GB, 20e-6, "worker"), LinkSpec(2 * GB, 1e-3, "node")),
    )
