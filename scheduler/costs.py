"""What a transfer and a chunk cost on this machine: calibrated at the start, corrected by every measurement.

Pure: a measurement makes a new model. Rates are those of the machine they were measured on, busy or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scheduler.snapshot import LinkView
from worldkv.errors import ConfigError

MEMORY = 0.98
"""What a measurement counts for after another one came: half after 35. A disk that slows down is noticed within a
minute of rollout, one hiccup changes little."""
CALIBRATED_WEIGHT = 10.0
"""Calibration counts like so many measurements, however many samples it took."""
SAME_SIZE = 1e-6
"""Relative variance of sizes below which a latency cannot be told from a rate: the calibrated latency stays."""
SLOWEST_BYTES_PER_SECOND = 1.0
"""Of a link that carries anything."""


class Measured(NamedTuple):
    """One copy that was timed."""

    nbytes: int
    seconds: float


@dataclass(frozen=True)
class LinkCost:
    """Latency and rate of one link: a line through (bytes, seconds), older measurements counting less."""

    latency_seconds: float
    bytes_per_second: float
    spread_ratio: float = 0.0
    """Mean deviation of measurements from the line, as a share of it."""
    weight: float = CALIBRATED_WEIGHT
    mean_bytes: float = 0.0
    mean_seconds: float = 0.0
    variance: float = 0.0
    """Of bytes, times weight."""
    covariance: float = 0.0
    """Of bytes and seconds, times weight."""

    def seconds(self, nbytes: int) -> float:
        """For a copy of so many bytes over the idle link."""
        return self.latency_seconds + nbytes / self.bytes_per_second

    def after(self, measured: Measured) -> LinkCost:
        """The cost once one more copy was timed. Raises ConfigError for what no copy can be."""
        nbytes, seconds = measured
        if not (nbytes > 0 and 0 < seconds < math.inf):
            raise ConfigError(f"a copy of {nbytes} bytes in {seconds} s: both must be above 0 and finite")
        expected = self.seconds(nbytes)
        off = abs(seconds - expected) / expected
        weight = self.weight * MEMORY + 1
        ahead_bytes, ahead_seconds = nbytes - self.mean_bytes, seconds - self.mean_seconds
        mean_bytes = self.mean_bytes + ahead_bytes / weight
        mean_seconds = self.mean_seconds + ahead_seconds / weight
        variance = self.variance * MEMORY + ahead_bytes * (nbytes - mean_bytes)
        covariance = self.covariance * MEMORY + ahead_bytes * (seconds - mean_seconds)
        latency = self.latency_seconds
        if variance > SAME_SIZE * weight * mean_bytes**2 and covariance > 0:
            latency = min(max(0.0, mean_seconds - covariance / variance * mean_bytes), 0.9 * mean_seconds)
        rate = max(SLOWEST_BYTES_PER_SECOND, mean_bytes / max(mean_seconds - latency, 0.1 * mean_seconds))
        spread = self.spread_ratio + (off - self.spread_ratio) / weight
        return LinkCost(latency, rate, spread, weight, mean_bytes, mean_seconds, variance, covariance)


@dataclass(frozen=True)
class CostModel:
    """Costs of one worker."""

    links: tuple[LinkCost, ...]
    chunk_seconds: float
    """To make one chunk, without waiting for memory."""

    def after_transfer(self, link: int, measured: Measured) -> CostModel:
        """Once a copy over a link was timed."""
        links = (*self.links[:link], self.links[link].after(measured), *self.links[link + 1 :])
        return replace(self, links=links)

    def after_chunk(self, seconds: float) -> CostModel:
        """Once a chunk was made. Raises ConfigError where that took no time."""
        if not 0 < seconds < math.inf:
            raise ConfigError(f"a chunk in {seconds} s: must be above 0 and finite")
        return replace(self, chunk_seconds=self.chunk_seconds + (seconds - self.chunk_seconds) * (1 - MEMORY))

    def views(self, free_seconds: Sequence[float]) -> tuple[LinkView, ...]:
        """The links as a plan reads them, with the time when each will be free."""
        return tuple(
            LinkView(link.bytes_per_second, link.latency_seconds, free)
            for link, free in zip(self.links, free_seconds, strict=True)
        )


def calibrated(samples: Iterable[Measured]) -> LinkCost:
    """The cost of a link from copies timed at the start, best of different sizes. Raises ConfigError without any."""
    samples = list(samples)
    if not samples:
        raise ConfigError("a link is calibrated by timing copies over it: none was given")
    first, *rest = samples
    cost = LinkCost(0.0, first.nbytes / first.seconds, weight=1.0, mean_bytes=first.nbytes, mean_seconds=first.seconds)
    for sample in rest:
        cost = cost.after(sample)
    share = CALIBRATED_WEIGHT / cost.weight
    return replace(
        cost,
        weight=CALIBRATED_WEIGHT,
        variance=cost.variance * share,
        covariance=cost.covariance * share,
        spread_ratio=0.0,
    )
