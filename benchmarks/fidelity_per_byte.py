"""What a stored byte buys: fidelity on revisits per codec and pruning, against the bytes of a stored chunk.

    python benchmarks/fidelity_per_byte.py --worlds 64 --batch 64 --device cuda --out fidelity_per_byte_h200_202611

Policies are the default `worldkv` with another codec and pruning. Writes OUT.md, OUT.json and OUT.png; on the plot the
frontier joins the policies that no other beats in both bytes and PSNR.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from recording import circumstances, markdown_table, save

from worldkv.eval.benchmark import Row, Settings, cases, run
from worldkv.memory.policy import parse_policy
from worldkv.models.rooms.model import RoomsModel

UNPRUNED = "no pruning"
# How each way of pruning is drawn: marker and one of Okabe and Ito's colours.
STYLES = {UNPRUNED: ("o", "#009E73"), "centroid": ("s", "#D55E00"), "nearest": ("^", "#0072B2")}
WITHOUT_MEMORY = "sliding"
# Their neighbours have it on the right: int8 takes nearly the bytes of fp8, and both rules of pruning take the same.
LABEL_ON_THE_LEFT = {"fp8", "centroid"}
# Half of the tokens take 50.4 % of the bytes, int8 codes with their scales 51.7 %: that counts as the same.
SAME_BYTES = 1.05


@dataclass(frozen=True)
class Point:
    """One way of storing, and what it gave."""

    codec: str
    pruning: str
    keep: float | None
    row: Row

    @property
    def label(self) -> str:
        """As on the plot."""
        return self.codec if self.keep is None else f"{self.codec}, keep {self.keep:g}"

    @property
    def kib(self) -> float:
        """KiB of a stored chunk."""
        return self.row.stored_bytes_per_chunk / 1024


def wanted(codecs: Sequence[str], pruned: Sequence[str], keeps: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Policy -> codec, pruning and keep ratio: every codec alone, some with both rules and all ratios."""
    policies = {f"worldkv/codec={codec}": (codec, UNPRUNED, "") for codec in codecs}
    for rule in ("centroid", "nearest"):
        for codec in pruned:
            policies |= {f"worldkv/codec={codec}/keep={keep}/rule={rule}": (codec, rule, keep) for keep in keeps}
    return policies


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both bytes and PSNR, by bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.kib, -p.row.psnr_mean)):
        if not best or point.row.psnr_mean > best[-1].row.psnr_mean:
            best.append(point)
    return best


def draw(points: Sequence[Point], without_memory: Row, path: Path) -> None:
    """PSNR with its interval against KiB per stored chunk."""
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.subplots()
    best = frontier(points)
    axes.plot(
        [p.kib for p in best],
        [p.row.psnr_mean for p in best],
        color="#009E73",
        alpha=0.35,
        linewidth=6,
        label="frontier",
    )
    for pruning, (marker, colour) in STYLES.items():
        group = [p for p in points if p.pruning == pruning]
        _errorbar(axes, group, marker, colour, pruning if pruning == UNPRUNED else f"pruned, {pruning}")
    axes.axhline(without_memory.psnr_mean, color="#5d6875", linestyle=":", label="sliding window, no memory")
    first = points[0].row
    axes.set(
        title=f"What a stored byte buys: path {first.path}, {first.frames} frames, {first.worlds} worlds",
        xlabel="KiB per stored chunk (log scale)",
        ylabel="PSNR on revisits, dB (mean, 95 % interval over worlds)",
        xscale="log",
    )
    # By the means: the interval of two worlds is wider than anything worth seeing, and may leave the plot.
    axes.set_ylim(without_memory.psnr_mean - 1.5, max(p.row.psnr_mean for p in points) + 2.5)
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="best")
    figure.savefig(path, dpi=150)


def _errorbar(axes: Axes, group: Sequence[Point], marker: str, colour: str, label: str) -> None:
    interval = [p.row.psnr_ci95 for p in group]
    at = [p.kib for p in group], [p.row.psnr_mean for p in group]
    axes.errorbar(*at, interval, color=colour, marker=marker, linestyle="none", ecolor=(colour, 0.4), label=label)
    for point in group:
        x, y = (-5 if {point.codec, point.pruning} & LABEL_ON_THE_LEFT else 5), (5 if point.keep is None else -11)
        axes.annotate(
            point.label,
            (point.kib, point.row.psnr_mean),
            xytext=(x, y),
            textcoords="offset points",
            ha="left" if x > 0 else "right",
            fontsize=7.5,
            color=colour,
        )


def table(points: Sequence[Point]) -> str:
    """A line per policy, smallest first."""
    best = frontier(points)
    heads = ["codec", "pruning", "KiB per chunk", "window tokens", "PSNR dB ± 95 %", "SSIM", "frontier"]
    lines = []
    for p in sorted(points, key=lambda p: p.kib):
        psnr = f"{p.row.psnr_mean:.2f}" + ("" if p.row.worlds < 2 else f" ± {p.row.psnr_ci95:.2f}")
        pruning = p.pruning if p.keep is None else f"{p.pruning}, keep {p.keep:g}"
        cells = [p.codec, pruning, f"{p.kib:,.0f}", f"{p.row.window_tokens_mean:,.0f}", psnr, f"{p.row.ssim_mean:.3f}"]
        lines.append([*cells, "yes" if p in best else ""])
    return markdown_table(heads, lines)


def at_equal_bytes(points: Sequence[Point]) -> str:
    """Each pruned policy against the best unpruned one of its size."""
    heads = ["pruned", "its KiB", "its dB", "unpruned codec", "its KiB", "its dB", "gain dB"]
    lines = []
    for p in sorted((p for p in points if p.keep is not None), key=lambda p: -p.kib):
        rivals = [q for q in points if q.keep is None and q.kib <= SAME_BYTES * p.kib]
        if rivals:
            q = max(rivals, key=lambda q: q.row.psnr_mean)
            gain = q.row.psnr_mean - p.row.psnr_mean
            line = [f"{p.label}, {p.pruning}", f"{p.kib:,.0f}", f"{p.row.psnr_mean:.2f}"]
            lines.append([*line, q.codec, f"{q.kib:,.0f}", f"{q.row.psnr_mean:.2f}", f"{gain:+.2f}"])
    return markdown_table(heads, lines)


def report(points: Sequence[Point], without_memory: Row, name: str) -> str:
    """The body of the .md file."""
    worlds, path, frames = without_memory.worlds, without_memory.path, without_memory.frames
    return (
        f"{worlds} worlds, the same for all policies; path {path}, {frames} frames, the first half shown; PSNR where "
        f"the camera sees a place again. Without memory (sliding window): {without_memory.psnr_mean:.2f} dB.\n\n"
        f"![PSNR against bytes]({name}.png)\n\n{table(points)}\n\n## At equal bytes\n\n"
        "Each pruned policy, and the best codec without pruning that takes at most 5 % more bytes.\n\n"
        f"{at_equal_bytes(points)}"
    )


def main() -> None:
    """Measure, print, and write after every policy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="worlds rolled out together")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--codecs", default="bf16,int8,fp8,int4,int3")
    parser.add_argument("--pruned-codecs", default="bf16,int8,int4")
    parser.add_argument("--keeps", default="0.5,0.25", help="shares of each latent frame but the anchor that are kept")
    parser.add_argument("--out", type=Path, required=True, help="write OUT.md, OUT.json and OUT.png")
    given = parser.parse_args()
    model = RoomsModel.load(device=torch.device(given.device))
    ways = wanted(given.codecs.split(","), given.pruned_codecs.split(","), given.keeps.split(","))
    policies = [parse_policy(text) for text in (WITHOUT_MEMORY, *ways)]
    settings = Settings(worlds=given.worlds, batch=min(given.batch, given.worlds))
    rows: list[Row] = []
    for row in run(model, settings, cases(policies, ["back"], [given.frames], ["truth"])):
        print(f"{row.policy:45} {row.stored_bytes_per_chunk / 1024:8.0f} KiB {row.psnr_mean:6.2f} dB", flush=True)
        rows.append(row)
        if len(rows) > 1:
            facts = circumstances(model.device) | {"rooms weights": model.epoch}
            write(given.out, facts | {"policies measured": f"{len(rows)} of {len(policies)}"}, rows, ways)


def write(out: Path, facts: dict[str, str], rows: Sequence[Row], ways: Mapping[str, tuple[str, str, str]]) -> None:
    """Plot, table and rows as far as they are there, so that a run cut short has a result."""
    without_memory, *remembering = rows
    points = []
    for row in remembering:
        codec, pruning, keep = ways[row.policy]
        points.append(Point(codec, pruning, float(keep) if keep else None, row))
    draw(points, without_memory, out.with_suffix(".png"))
    body = report(points, without_memory, out.name)
    save(out, "Fidelity per stored byte", body, {"circumstances": facts, "rows": [row.as_json() for row in rows]})


if __name__ == "__main__":
    main()
