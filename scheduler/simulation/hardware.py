"""What the simulated cluster is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rates:
    """Bytes per second of the links, per worker.

    The first two were measured on one H200 machine: pinned host memory to the device, and its local disk. The durable
    tier's is taken, not measured.
    """

    host: float = 55e9
    disk: float = 2e9
    durable: float = 1e9

    def __post_init__(self) -> None:
        if not all(0 < rate < math.inf for rate in (self.host, self.disk, self.durable)):
            raise ConfigError(f"{self}: every rate must be finite and above 0")


@dataclass(frozen=True)
class Sizes:
    """How many chunks each tier holds, per worker, and how large they are."""

    device_chunks: int = 12
    host_chunks: int = 48
    disk_chunks: int = 2000
    chunk_bytes: int = 1_020_000_000
    """Of LingBot-World-Fast at 480x832, as int4: 26.7 % of 3.83 GB."""

    def __post_init__(self) -> None:
        if min(self.device_chunks, self.host_chunks, self.disk_chunks, self.chunk_bytes) < 1:
            raise ConfigError(f"{self}: none may be below 1")


def h200_cluster(
    nodes: int = 1,
    workers_per_node: int = 1,
    *,
    sizes: Sizes | None = None,
    rates: Rates | None = None,
    slots: int = 1,
    round_seconds: float = 1.0,
) -> Hardware:
    """Nodes of H200s: device memory of each worker, host memory and disk of each node, one durable store."""
    sizes, rates = sizes or Sizes(), rates or Rates()
    workers, chunk = workers_per_node, sizes.chunk_bytes
    return Hardware(
        tiers=(
            TierSpec("device", sizes.device_chunks * chunk, "worker"),
            TierSpec("host", sizes.host_chunks * chunk * workers, "node"),
            TierSpec("disk", sizes.disk_chunks * chunk * workers, "node"),
            TierSpec("durable", math.inf, "cluster"),
        ),
        links=(
            LinkSpec(rates.host, 20e-6, "worker"),
            LinkSpec(rates.disk * workers, 1e-3, "node"),
            LinkSpec(rates.durable * workers, 50e-3, "node"),
        ),
        nodes=nodes,
        workers_per_node=workers,
        slots=slots,
        round_seconds=round_seconds,
    )
