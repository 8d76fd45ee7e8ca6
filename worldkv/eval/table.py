"""The benchmark's rows as a terminal table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from worldkv.eval.benchmark import Row

COLUMNS = (
    "PSNR\ndB",
    "SSIM",
    "window\ntokens",
    "KiB per\nchunk",
    "frames\nper s",
    "chunks\nback",
    "revisits\nscored",
)


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the table; it fits into 80 columns."""
    table = Table(
        title="Fidelity where the camera sees a place again",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption="mean and 95 % interval over worlds; KiB per chunk: as kept in memory or, where none is, in the window",
        caption_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        case = f"{row.path} {row.frames} {row.history}"
        if case != previous:
            if previous is not None:
                table.add_section()
            table.add_row(case, style="bold")
        previous = case
        table.add_row(*_cells(row))
    (console or Console()).print(table)


def _cells(row: Row) -> tuple[str, ...]:
    psnr = _number(row.psnr_mean, 2) + ("" if np.isnan(row.psnr_ci95) else f" ± {row.psnr_ci95:.2f}")
    return (
        f" {row.policy}",
        psnr,
        _number(row.ssim_mean, 3),
        f"{row.window_tokens_mean:.0f}",
        f"{row.stored_bytes_per_chunk / 1024:.0f}",
        f"{row.frames_per_second:.1f}",
        f"{row.retrieved_mean:.1f}",
        "none" if np.isnan(row.scored_frames_mean) else f"{row.worlds} x {row.scored_frames_mean:.0f}",
    )


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """PSNR with its interval against length, one panel per path and history."""
    from matplotlib.figure import Figure

    panels = sorted({(row.path, row.history) for row in rows})
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (where, history) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for policy in dict.fromkeys(row.policy for row in rows):
            line = [r for r in rows if (r.path, r.history, r.policy) == (where, history, policy)]
            axes.errorbar(
                [r.frames for r in line],
                [r.psnr_mean for r in line],
                [r.psnr_ci95 for r in line],
                marker="o",
                label=policy,
            )
        axes.set(title=f"{where}, history: {history}", xlabel="video frames", ylabel="PSNR on revisits, dB")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
