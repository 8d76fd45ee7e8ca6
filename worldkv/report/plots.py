"""The page's plots as inline SVG. Deterministic: the same run gives the same bytes.

Text and axes take the page's own font and colour, so a plot is readable in a light and in a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldkv.camera.poses import planar_coordinates
from worldkv.report.figures import (
    generated_revisits,
    kv_series,
    policies,
    psnr_band,
    revisit_share,
)
from worldkv.report.labels import REVISIT_COLOUR, binary_size, policy_colours, policy_label

if TYPE_CHECKING:
    from worldkv.results import PolicyRollout, RunResult, WorldRollouts

# Stands for the page's text colour until the SVG is finished; no plot uses it for anything else.
INK = "#010203"
GIVEN_COLOUR = "#8A94A0"
MISSED_COLOUR = "#D55E00"
STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#7A5FB5")
# From this ratio between the policies on, the small ones would be a line on the floor of a linear axis.
LOG_AXIS_RATIO = 40
WORLD_PANELS = 4
"""Worlds drawn one by one, at most."""

STYLE: dict[str, Any] = {
    "svg.hashsalt": "worldkv",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GIVEN_COLOUR,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "font.size": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2,
}


def fidelity_plot(result: RunResult) -> str:
    """PSNR against time: mean over worlds, band from the worst to the best world."""
    with _drawing("fidelity", (9.2, 3.7)) as (figure, svg):
        axes = figure.subplots()
        colours = policy_colours(policies(result))
        for policy in policies(result):
            band = psnr_band(result, policy)
            frames = np.arange(len(band.mean_F))
            axes.plot(frames, band.mean_F, color=colours[policy], label=policy_label(policy), zorder=3)
            axes.fill_between(frames, band.low_F, band.high_F, color=colours[policy], alpha=0.16, linewidth=0)
        _shade(axes, result)
        axes.set(xlabel="time (video frames)", ylabel="PSNR against the truth (dB)")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.13), ncols=6, borderaxespad=0, columnspacing=1.3)
    return svg[0]


def cost_plot(result: RunResult) -> str:
    """KV bytes kept and tokens attended to, against time."""
    with _drawing("cost", (9.2, 3.5)) as (figure, svg):
        bytes_axes, tokens_axes = figure.subplots(1, 2)
        colours, totals = policy_colours(policies(result)), []
        for policy in policies(result):
            series, colour = kv_series(result, policy), colours[policy]
            total_N = series.window_bytes_N + series.memory_bytes_N
            totals.append(total_N[-1])
            bytes_axes.plot(series.frame_N, total_N, color=colour, label=policy_label(policy))
            if series.memory_bytes_N.any():
                bytes_axes.plot(series.frame_N, series.memory_bytes_N, color=colour, linestyle="--", linewidth=1.3)
                bytes_axes.plot([], [], color=colour, linestyle="--", linewidth=1.3, label="of it in memory")
            tokens_axes.plot(series.frame_N, series.window_tokens_N, color=colour)
        for axes in (bytes_axes, tokens_axes):
            _shade(axes, result, revisits=False)
            axes.set_xlabel("time (video frames)")
            axes.set_ylim(bottom=0)
        if max(totals) > LOG_AXIS_RATIO * max(min(totals), 1):
            bytes_axes.set_yscale("log", base=2)
        bytes_axes.yaxis.set_major_formatter(lambda count, _: binary_size(count) if count else "0")
        tokens_axes.yaxis.set_major_formatter("{x:,.0f}")
        bytes_axes.set_title("KV kept per world, window + memory")
        tokens_axes.set_title("Tokens attended to per chunk")
        bytes_axes.legend(loc="upper left")
    return svg[0]


def path_plot(world: WorldRollouts) -> str:
    """The camera's way through one world, seen from above; dots are generated revisits."""
    with _drawing(f"path-{world.seed}-{world.name}", (3.0, 3.0)) as (figure, svg):
        axes = figure.subplots()
        x_F, z_F, yaw_degrees_F = planar_coordinates(world.trajectory.c2w_F44)
        flag_F = generated_revisits(world)
        given = world.given_frames
        axes.plot(x_F[:given], z_F[:given], color=GIVEN_COLOUR, linewidth=3.5, label="shown", solid_capstyle="round")
        axes.plot(x_F[given:], z_F[given:], color="#0072B2", linewidth=1.4, label="made")
        seen = np.flatnonzero(flag_F)
        axes.scatter(x_F[seen], z_F[seen], s=14, color=REVISIT_COLOUR, label="revisit", zorder=3, linewidth=0)
        ahead = np.radians(yaw_degrees_F[:: max(1, len(x_F) // 16)])
        at = slice(None, None, max(1, len(x_F) // 16))
        axes.quiver(
            x_F[at],
            z_F[at],
            np.sin(ahead),
            np.cos(ahead),
            color=INK,
            alpha=0.55,
            width=0.007,
            scale=14,
            zorder=4,
        )
        axes.plot(x_F[0], z_F[0], "^", color=INK, markersize=7, label="start", zorder=5)
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.12)
        axes.set(xlabel="x (world units)", ylabel="z (world units)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=4, handlelength=1, columnspacing=0.8)
    return svg[0]


def retrieval_plot(world: WorldRollouts, rollout: PolicyRollout, frames_per_chunk: int) -> str:
    """Which chunks were brought back for which; a cross marks one that was wanted and not available."""
    with _drawing(f"retrieval-{world.seed}-{world.name}-{rollout.policy}", (3.0, 3.0)) as (figure, svg):
        axes = figure.subplots()
        colour = policy_colours([rollout.policy])[rollout.policy]
        pairs = [(record.chunk, earlier) for record in rollout.records for earlier in record.retrieved]
        chunks = len(rollout.records)
        if pairs:
            axes.scatter(*zip(*pairs, strict=True), s=13, marker="s", color=colour, label="retrieved", zorder=3)
        missed = [record.chunk for record in rollout.records if record.missed]
        if missed:
            axes.scatter(missed, missed, s=26, marker="x", color=MISSED_COLOUR, label="missed", zorder=4)
        axes.axvspan(-0.5, world.given_frames / frames_per_chunk - 0.5, color=GIVEN_COLOUR, alpha=0.18, linewidth=0)
        axes.plot((0, chunks - 1), (0, chunks - 1), color=INK, alpha=0.45, linewidth=0.8)
        axes.set(xlabel="chunk being made", ylabel="chunk brought back")
        axes.set(xlim=(-0.5, chunks - 0.5), ylim=(-0.5, chunks - 0.5))
        if pairs or missed:
            axes.legend(loc="upper left", handletextpad=0.2)
    return svg[0]


def stage_plot(result: RunResult) -> str:
    """Where the wall-clock time of each policy went."""
    names = policies(result)
    with _drawing("stages", (9.2, 0.9 + 0.5 * len(names))) as (figure, svg):
        axes = figure.subplots()
        stages = list(dict.fromkeys(stage for policy in names for stage in result.stage_seconds.get(policy, {})))
        left = np.zeros(len(names))
        for i, stage in enumerate(stages):
            seconds = np.array([result.stage_seconds.get(policy, {}).get(stage, 0.0) for policy in names])
            axes.barh(
                range(len(names)),
                seconds,
                0.62,
                left,
                label=stage,
                color=STAGE_COLOURS[i % len(STAGE_COLOURS)],
            )
            left += seconds
        for i, total in enumerate(left):
            axes.annotate(f"{total:.1f} s", (total, i), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(names)), [policy_label(policy) for policy in names])
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("wall-clock seconds, all worlds together")
        if stages:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=8, borderaxespad=0.3, columnspacing=1.2)
    return svg[0]


def _shade(axes: Axes, result: RunResult, *, revisits: bool = True) -> None:
    """Shade the given part, and the frames that are revisits in at least half of the worlds."""
    given = min(world.given_frames for world in result.worlds)
    share_F = revisit_share(result)
    if given:
        axes.axvspan(0, given - 0.5, color=GIVEN_COLOUR, alpha=0.18, linewidth=0, label="shown, not made")
    edges = np.flatnonzero(np.diff(np.r_[False, share_F >= 0.5, False]))
    for i, (start, stop) in enumerate(edges.reshape(-1, 2) if revisits else ()):
        label = None if i else "revisit"
        axes.axvspan(start - 0.5, stop - 0.5, color=REVISIT_COLOUR, alpha=0.18, linewidth=0, label=label, zorder=0)
    axes.set_xlim(0, len(share_F))


@contextmanager
def _drawing(name: str, size: tuple[float, float]) -> Iterator[tuple[Figure, list[str]]]:
    """A figure to draw on, and a list that holds its SVG afterwards."""
    svg: list[str] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, svg
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    svg.append(_inline(sink.getvalue(), name))


def _inline(document: str, name: str) -> str:
    """The <svg> element alone, its ids made unique within a page, its ink the page's text colour."""
    element = document[document.index("<svg") :].replace(INK, "currentColor")
    prefix = re.sub(r"\W+", "-", name)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{prefix}-", element)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # Plots grow and shrink with the page; the view box keeps their shape.
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
