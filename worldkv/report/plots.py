"""The page's plots over all worlds of a run, as inline SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from worldkv.report.figures import MOST_WORLDS, kv_series, policies, psnr_band, revisit_share
from worldkv.report.labels import REVISIT_COLOUR, binary_unit, policy_colours, policy_label
from worldkv.report.svg import GIVEN_COLOUR, drawing

if TYPE_CHECKING:
    from worldkv.results import RunResult

# Paul Tol's light colours: none of them a policy's.
STAGE_COLOURS = ("#EEDD88", "#AAAA00", "#77AADD", "#99DDFF", "#EE8866", "#FFAABB", "#BBCC33", "#AAAAAA")
GIVEN_SHARE = 0.12
"""How much of the given part stays in sight, as a share of the generated part."""
# From this ratio between the policies on, the small ones would be a line on the floor of a linear axis.
LOG_AXIS_RATIO = 40


def fidelity_plot(result: RunResult) -> str:
    """PSNR against time: mean over worlds, band from the worst to the best world."""
    with drawing("fidelity", (9.2, 3.7)) as sheet:
        axes = sheet.figure.subplots()
        colours = policy_colours(policies(result))
        for policy in policies(result):
            band = psnr_band(result, policy)
            frames = np.arange(len(band.mean_F))
            axes.plot(frames, band.mean_F, color=colours[policy], label=policy_label(policy), zorder=3)
            axes.fill_between(frames, band.low_F, band.high_F, color=colours[policy], alpha=0.16, linewidth=0)
        _shade(axes, result)
        given, last = _given(result), axes.get_xlim()[1]
        if given < last:
            # Nothing is drawn over the given part: a little of it is enough to show where making starts.
            axes.set_xlim(max(0, given - GIVEN_SHARE * (last - given)), last)
        axes.set(xlabel="time (video frames)", ylabel="PSNR against the truth (dB)")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.13), ncols=6, borderaxespad=0, columnspacing=1.3)
    return sheet.svg


def cost_plot(result: RunResult) -> str:
    """KV bytes kept and tokens attended to, against time."""
    with drawing("cost", (9.2, 3.5)) as sheet:
        bytes_axes, tokens_axes = sheet.figure.subplots(1, 2)
        all_series = {policy: kv_series(result, policy) for policy in policies(result)}
        totals = [float((series.window_bytes_N + series.memory_bytes_N)[-1]) for series in all_series.values()]
        unit, unit_bytes = binary_unit(max(totals))
        for policy, colour in policy_colours(policies(result)).items():
            series = all_series[policy]
            window_N, memory_N = series.window_bytes_N / unit_bytes, series.memory_bytes_N / unit_bytes
            bytes_axes.plot(series.frame_N, window_N + memory_N, color=colour, label=policy_label(policy))
            if memory_N.any():
                bytes_axes.plot(series.frame_N, memory_N, "--", color=colour, linewidth=1.3, label="of it in memory")
            tokens_axes.plot(series.frame_N, series.window_tokens_N, color=colour)
        for axes in (bytes_axes, tokens_axes):
            _shade(axes, result, revisits=False)
            axes.set_xlabel("time (video frames)")
            axes.set_ylim(bottom=0)
        if max(totals) > LOG_AXIS_RATIO * max(min(totals), 1):
            bytes_axes.set_ylim(auto=True)
            bytes_axes.set_yscale("log")
        bytes_axes.yaxis.set_major_formatter("{x:,g}")
        bytes_axes.set_ylabel(unit)
        tokens_axes.yaxis.set_major_formatter("{x:,.0f}")
        bytes_axes.set_title("KV kept per world, window + memory")
        tokens_axes.set_title("Tokens attended to per chunk")
        bytes_axes.legend(loc="upper left")
    return sheet.svg


def stage_plot(result: RunResult) -> str:
    """Where the wall-clock time of each policy went."""
    names = policies(result)
    with drawing("stages", (9.2, 0.9 + 0.5 * len(names))) as sheet:
        axes = sheet.figure.subplots()
        stages = list(dict.fromkeys(stage for policy in names for stage in result.stage_seconds.get(policy, {})))
        left = np.zeros(len(names))
        for i, stage in enumerate(stages):
            seconds = np.array([result.stage_seconds.get(policy, {}).get(stage, 0.0) for policy in names])
            colour = STAGE_COLOURS[i % len(STAGE_COLOURS)]
            axes.barh(range(len(names)), seconds, 0.62, left, label=stage, color=colour)
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
    return sheet.svg


def _shade(axes: Axes, result: RunResult, *, revisits: bool = True) -> None:
    """Shade the given part, and the frames that are revisits in at least half of the worlds."""
    given, share_F = _given(result), revisit_share(result)
    if given:
        axes.axvspan(0, given - 0.5, color=GIVEN_COLOUR, alpha=0.18, linewidth=0, label="shown, not made")
    edges = np.flatnonzero(np.diff(np.r_[False, share_F >= MOST_WORLDS, False]))
    for i, (start, stop) in enumerate(edges.reshape(-1, 2) if revisits else ()):
        span = (start - 0.5, stop - 0.5)
        axes.axvspan(*span, color=REVISIT_COLOUR, alpha=0.08, linewidth=0, zorder=0)
        axes.axvspan(*span, ymax=0.025, color=REVISIT_COLOUR, linewidth=0, label=None if i else "revisit", zorder=2)
    axes.set_xlim(0, len(share_F))


def _given(result: RunResult) -> int:
    return min(world.given_frames for world in result.worlds)
