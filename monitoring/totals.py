"""From snapshots to samples: the figures of all workers added up, so that what they counted before a restart stays.

- A counter that is the sum over workers or jobs never goes down, whoever is restarted or no longer told of.
- A counter that carries its worker's name starts at 0 again with it: Prometheus knows how to read that.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence

from monitoring.metrics import TABLE, Metric
from monitoring.snapshot import JobSnapshot, Snapshot, TenantSnapshot, WorkerSnapshot
from worldkv.stats import Durations

Key = tuple[str, tuple[str, ...]]
"""Name of a metric, and the values of its labels."""
Samples = dict[Key, float | Durations]


def let_others_go_first() -> None:
    """For loops over all workers: whoever answers a scrape meanwhile gets Python's lock at once, not 5 ms later."""
    select.select((), (), (), 0)


class Totals:
    """What was counted by whoever is not there any more, or is there again from the beginning."""

    def __init__(self, table: Sequence[Metric] = TABLE) -> None:
        self.table = tuple(table)
        self._past: Samples = {}
        self._latest: dict[tuple[str, str], tuple[int, Samples]] = {}
        """(kind of part, its name) -> which of its lives, and what it counted in that."""

    def take(self, snapshot: Snapshot) -> Samples:
        """All samples as of this snapshot."""
        snapshot = snapshot.told_once()
        samples: Samples = {}
        for per, name, life, part in _parts(snapshot):
            let_others_go_first()
            counted: Samples = {}
            for metric in self.table:
                if metric.per == per:
                    into = counted if self._lasts(metric) else samples
                    _add(into, metric, part)
            self._note((per, name), life, counted)
        for counted in (self._past, *(counted for _, counted in self._latest.values())):
            _add_all(samples, counted)
        return samples

    def _lasts(self, metric: Metric) -> bool:
        return metric.kind != "gauge" and metric.per in ("worker", "job") and "worker" not in metric.labels

    def _note(self, part: tuple[str, str], life: int, counted: Samples) -> None:
        before, earlier = self._latest.get(part, (life, {}))
        # Restarted, whether or not we were told.
        if before != life or any(_count(counted.get(key, 0)) < _count(value) for key, value in earlier.items()):
            _add_all(self._past, earlier)
        self._latest[part] = life, counted


def _parts(
    snapshot: Snapshot,
) -> Iterator[tuple[str, str, int, WorkerSnapshot | TenantSnapshot | JobSnapshot | Snapshot]]:
    """(what it is, its name, which of its lives, itself)."""
    yield from (("worker", worker.worker, worker.restarts, worker) for worker in snapshot.workers)
    yield from (("tenant", tenant.tenant, 0, tenant) for tenant in snapshot.tenants)
    yield from (("job", job.job, 0, job) for job in snapshot.jobs)
    yield "snapshot", "", 0, snapshot


def _add(samples: Samples, metric: Metric, part: WorkerSnapshot | TenantSnapshot | JobSnapshot | Snapshot) -> None:
    for labels, value in metric.read(part):
        key = metric.name, labels
        known = samples.get(key)
        if known is None:
            samples[key] = value
        elif metric.largest:
            samples[key] = max(_number(known), _number(value))
        else:
            samples[key] = _sum(known, value)


def _add_all(samples: Samples, more: Samples) -> None:
    for key, value in more.items():
        known = samples.get(key)
        samples[key] = value if known is None else _sum(known, value)


def _sum(a: float | Durations, b: float | Durations) -> float | Durations:
    if isinstance(a, Durations) and isinstance(b, Durations):
        return a + b
    return _number(a) + _number(b)


def _count(value: float | Durations) -> float:
    return value.count if isinstance(value, Durations) else value


def _number(value: float | Durations) -> float:
    assert not isinstance(value, Durations), "durations where a number belongs"
    return value
