"""Pictures of all dashboards, from their own queries against a real Prometheus that watched a real run.

    python benchmarks/dashboard_pictures.py --folder docs/dashboards

Needs `prometheus` (apt) and about a minute. Grafana draws its own; these show what is in them.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from watched_run import Watched, watched_run

from monitoring.dashboards import DASHBOARDS
from monitoring.grafana import dashboard_json
from monitoring.panels import Dashboard, Panel
from monitoring.view import size

INCHES_PER_COLUMN, INCHES_PER_ROW = 0.62, 0.36
MOST_LEGEND = 8
# The end of the run alone would show nothing running.
AFTER_SECONDS = 5


def main() -> None:
    """Run, and draw."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--folder", type=Path, default=Path("docs/dashboards"))
    options.add_argument("--set", action="append", default=[], help="a key of configs/tiers.yaml")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, watched_run(Path(work), chosen.set) as watched:
        for board in DASHBOARDS:
            path = chosen.folder / f"{board.name}.png"
            draw(board, watched, path)
            print(path)


def draw(board: Dashboard, watched: Watched, path: Path) -> None:
    """One page, laid out as in Grafana."""
    places = [panel["gridPos"] for panel in dashboard_json(board)["panels"]]
    rows = max(place["y"] + place["h"] for place in places)
    figure = plt.figure(figsize=(24 * INCHES_PER_COLUMN, rows * INCHES_PER_ROW + 0.5), layout="constrained")
    figure.suptitle(board.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(rows, 24)
    for panel, place in zip(board.panels, places, strict=True):
        cell = grid[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]]
        _panel(figure.add_subplot(cell), panel, watched)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _panel(axes: Axes, panel: Panel, watched: Watched) -> None:
    lines = [
        (_legend(query.legend, labels), points)
        for query in panel.queries
        for labels, points in watched.server.series(query.expr, watched.started, watched.ended - AFTER_SECONDS)
    ]
    if len(lines) > MOST_LEGEND:  # what never happened needs no line
        lines = [line for line in lines if any(value for _, value in line[1] if math.isfinite(value))]
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    if panel.kind == "number":
        values = [value for _, points in lines for _, value in points if math.isfinite(value)]
        text = _number(values[-1], panel.unit) if values else "no data"
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=20)
        axes.set_axis_off()
        return
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value, panel.unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"))
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
    if panel.kind == "areas":
        _areas(axes, lines)
    else:
        for legend, points in lines:
            axes.plot(
                [at for at, _ in points], [value for _, value in points], label=legend, linewidth=1, clip_on=False
            )
    if panel.unit != "decibels":
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="upper left", ncols=2 if len(lines) > MOST_LEGEND else 1)


def _areas(axes: Axes, lines: list[tuple[str, list[tuple[float, float]]]]) -> None:
    times = sorted({at for _, points in lines for at, _ in points})
    rows = [[dict(points).get(at, 0.0) for at in times] for _, points in lines]
    finite = [[value if math.isfinite(value) else 0.0 for value in row] for row in rows]
    axes.stackplot(times, finite, labels=[legend for legend, _ in lines], alpha=0.6, linewidth=0)


def _legend(template: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def _number(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.0%}"
    if unit.startswith("bytes"):
        return size(value) + ("/s" if unit.endswith("second") else "")
    if unit == "seconds":
        return f"{value:.3g} s" if value >= 1 or not value else f"{1000 * value:.3g} ms"
    return f"{value:.3g}" + {"watts": " W", "celsius": " °C", "decibels": " dB", "per second": "/s"}.get(unit, "")


if __name__ == "__main__":
    main()
