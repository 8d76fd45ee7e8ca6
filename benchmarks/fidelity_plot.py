"""The plot of `fidelity_per_byte.py`: PSNR on revisits against the bytes of a stored chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

if TYPE_CHECKING:
    from fidelity_per_byte import Point

    from worldkv.eval.benchmark import Row

# How each way of pruning is drawn: marker and one of Okabe and Ito's colours.
STYLES = {"no pruning": ("o", "#009E73"), "centroid": ("s", "#D55E00"), "nearest": ("^", "#0072B2")}
LINES = ("#009E73", "#D55E00")


def draw(points: Sequence[Point], lines: Mapping[str, Sequence[Point]], without_memory: Row, out: Path) -> None:
    """OUT.png: PSNR with its interval against KiB per stored chunk; lines join the points that they name."""
    figure = Figure(figsize=(9.5, 6), layout="constrained")
    axes = figure.subplots()
    for (label, joined), colour in zip(lines.items(), LINES, strict=True):
        at = [p.kib for p in joined], [p.row.psnr_mean for p in joined]
        axes.plot(*at, color=colour, alpha=0.35, linewidth=5, label=label)
    for pruning, (marker, colour) in STYLES.items():
        _errorbar(axes, [p for p in points if p.pruning == pruning], marker, colour, pruning)
    without = f"sliding window, no memory: {without_memory.psnr_mean:.1f} dB"
    axes.axhline(without_memory.psnr_mean, color="#5d6875", linestyle=":", label=without)
    first = points[0].row
    axes.set(
        title=f"What a stored byte buys: path {first.path}, {first.frames} frames, {first.worlds} worlds",
        xlabel="KiB per stored chunk (log scale)",
        ylabel="PSNR on revisits, dB (mean, 95 % interval over worlds)",
        xscale="log",
    )
    # By the means: the interval of two worlds, and the sliding window, lie far from anything worth seeing.
    means = [p.row.psnr_mean for p in points]
    axes.set_ylim(min(means) - 1, max(means) + 1)
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="best")
    figure.savefig(out.with_suffix(".png"), dpi=150)


def _errorbar(axes: Axes, group: Sequence[Point], marker: str, colour: str, label: str) -> None:
    interval = [p.row.psnr_ci95 for p in group]
    at = [p.kib for p in group], [p.row.psnr_mean for p in group]
    axes.errorbar(*at, interval, color=colour, marker=marker, linestyle="none", ecolor=(colour, 0.3), label=label)
    for point in group:
        axes.annotate(
            point.codec if point.keep is None else f"{point.codec} {point.keep:g}",
            (point.kib, point.row.psnr_mean),
            xytext=(5, 5 if point.keep is None else -9),
            textcoords="offset points",
            fontsize=6.5,
            color=colour,
        )
