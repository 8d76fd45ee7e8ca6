"""The benchmark's rows as a terminal table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from worldkv.eval.benchmark import Row


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(title="Revisit fidelity", title_justify="left")
    for name in ("path", "frames", "history", "policy"):
        table.add_column(name)
    for name in (
        "PSNR dB",
        "SSIM",
        "window tokens",
        "KiB/chunk",
        "frames/s",
        "retrieved",
        "worlds",
        "revisits",
    ):
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        case = (row.path, row.frames, row.history)
        if previous not in (None, case):
            table.add_section()
        previous = case
        table.add_row(
            row.path,
            str(row.frames),
            row.history,
            row.policy,
            f"{row.psnr_mean:.2f} ± {row.psnr_ci95:.2f}",
            f"{row.ssim_mean:.3f}",
            f"{row.window_tokens_mean:.0f}",
            f"{row.stored_bytes_per_chunk / 1024:.0f}",
            f"{row.frames_per_second:.1f}",
            f"{row.retrieved_mean:.1f}",
            str(row.worlds),
            f"{row.scored_frames_mean:.0f}",
        )
    Console().print(table)


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
