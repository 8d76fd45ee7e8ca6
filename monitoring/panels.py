"""What a dashboard is made of, before any program that draws it is named; and the idioms of its queries.

Queries keep to PromQL of Prometheus 2.42: Debian 12 has no later one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "bytes", "bytes per second", "seconds", "per second", "count", "watts", "celsius", "decibels"]


@dataclass(frozen=True)
class Query:
    """One group of lines."""

    expr: str
    legend: str
    """With `{{label}}` where the label's value shall stand."""


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    unit: Unit
    queries: tuple[Query, ...]
    about: str
    """What one sees in it, and when to worry."""
    kind: Literal["lines", "areas", "number"] = "lines"
    """lines; areas: lines upon each other; number: the latest value alone."""


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    name: str
    """Of its file and in its address."""
    title: str
    about: str
    panels: tuple[Panel, ...]


def lines(title: str, unit: Unit, about: str, **queries: str) -> Panel:
    """A panel of lines: name of a line -> its query."""
    return Panel(title, unit, _queries(queries), about)


def by(title: str, unit: Unit, about: str, legend: str, expr: str, *, stacked: bool = False) -> Panel:
    """A panel of the lines of one query; `legend` names them, with `{{label}}`."""
    return Panel(title, unit, (Query(expr, legend),), about, "areas" if stacked else "lines")


def number(title: str, unit: Unit, about: str, expr: str) -> Panel:
    """A panel of one number."""
    return Panel(title, unit, (Query(expr, title),), about, "number")


def _queries(queries: dict[str, str]) -> tuple[Query, ...]:
    return tuple(Query(expr, name.replace("_", " ")) for name, expr in queries.items())


def rate(metric: str, labels: str = "", **where: str) -> str:
    """Its growth per second, added up but for these labels; `where`: label -> value it must have."""
    return f"{_sum(labels)}(rate({metric}{_where(where)}[$__rate_interval]))"


def share(part: str, whole: str, labels: str = "", **where: str) -> str:
    """How much of the growth of one counter is that of another."""
    return f"{rate(part, labels, **where)} / {rate(whole, labels)}"


def quantile(q: float, histogram: str, labels: str = "") -> str:
    """A quantile of how long something took of late."""
    inner = f"sum by ({', '.join(['le', *labels.split()])}) (rate({histogram}_bucket[$__rate_interval]))"
    return f"histogram_quantile({q:g}, {inner})"


def _sum(labels: str) -> str:
    return f"sum by ({', '.join(labels.split())}) " if labels else "sum"


def _where(where: dict[str, str]) -> str:
    return "{" + ", ".join(f'{label}="{value}"' for label, value in where.items()) + "}" if where else ""
