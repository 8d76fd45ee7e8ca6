"""What a stored byte buys: fidelity on revisits per codec and pruning, against the bytes of a stored chunk.

    python benchmarks/fidelity_per_byte.py --worlds 32 --device cuda --out fidelity_per_byte_h200_202611

Policies are the default `worldkv` with another codec and pruning. Writes OUT.md and OUT.json after every policy, the
most telling first, and OUT.png; where matplotlib is missing, `--redraw --out OUT` makes that from OUT.json elsewhere.
Needs torch, numpy, scipy, safetensors, msgpack and xxhash.
"""

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recording import circumstances, markdown_table, save
from scipy.special import stdtrit

from worldkv.eval.benchmark import Row, Settings, cases, run
from worldkv.memory.policy import PRESETS, parse_policy
from worldkv.models.rooms.model import SHIPPED_WEIGHTS, RoomsModel

Way = tuple[str, str, str]
"""codec, pruning, keep ratio"""
UNPRUNED = "no pruning"
WITHOUT_MEMORY = "sliding"
CODECS = ("bf16", "int8", "fp8", "int4", "int3")
KEEPS = {"centroid": ("0.25", "0.33", "0.5", "0.75"), "nearest": ("0.5",)}
# One token of each latent frame but the anchor: less than this the published pruning cannot store.
LEAST_KEEP = "0.015"
# Its curve of fidelity against bytes.
PUBLISHED: list[Way] = [("bf16", "centroid", keep) for keep in (LEAST_KEEP, *KEEPS["centroid"])] + [
    ("bf16", UNPRUNED, "")
]
DEFAULT: Way = (PRESETS["worldkv"].codec, UNPRUNED, "")
ASKED_GAIN_DB = 3.0


@dataclass(frozen=True)
class Point:
    """One way of storing, and what it gave."""

    way: Way
    row: Row

    @property
    def codec(self) -> str:
        """Its name."""
        return self.way[0]

    @property
    def pruning(self) -> str:
        """UNPRUNED, or the rule."""
        return self.way[1]

    @property
    def keep(self) -> float | None:
        """Share of tokens kept of each latent frame but the anchor."""
        return float(self.way[2]) if self.way[2] else None

    @property
    def label(self) -> str:
        """Codec and pruning."""
        return f"{self.codec}, {self.pruning}" + ("" if self.keep is None else f", keep {self.keep:g}")

    @property
    def kib(self) -> float:
        """KiB of a stored chunk."""
        return self.row.stored_bytes_per_chunk / 1024


def wanted(codecs: Sequence[str]) -> dict[str, Way]:
    """Policy -> way of storing: the default, the published curve, all codecs alone, then pruned."""
    ways = [DEFAULT, *PUBLISHED, *((codec, UNPRUNED, "") for codec in codecs)]
    ways += [(codec, rule, keep) for rule, keeps in KEEPS.items() for keep in keeps for codec in codecs]
    return {_policy(way): way for way in ways}


def _policy(way: Way) -> str:
    codec, pruning, keep = way
    return f"worldkv/codec={codec}" + (f"/keep={keep}/rule={pruning}" if keep else "")


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both bytes and PSNR, by bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.kib, -p.row.psnr_mean)):
        if not best or point.row.psnr_mean > best[-1].row.psnr_mean:
            best.append(point)
    return best


def table(points: Sequence[Point]) -> str:
    """A line per policy, smallest first."""
    best = frontier(points)
    unpruned = max(p.kib for p in points)
    heads = ["codec and pruning", "KiB per chunk", "% of the largest", "window tokens", "PSNR dB", "95 %", "SSIM"]
    lines = []
    for p in sorted(points, key=lambda p: p.kib):
        sizes = [f"{p.kib:,.0f}", f"{100 * p.kib / unpruned:.1f}", f"{p.row.window_tokens_mean:,.0f}"]
        psnr = [f"{p.row.psnr_mean:.2f}", f"± {p.row.psnr_ci95:.2f}" if p.row.worlds > 1 else "-"]
        lines.append([p.label, *sizes, *psnr, f"{p.row.ssim_mean:.3f}", "yes" if p in best else ""])
    return markdown_table([*heads, "frontier"], lines)


@dataclass(frozen=True)
class Gain:
    """A policy against the published pruning at as many bytes."""

    point: Point
    published_kib: float
    published_db: float
    db: float
    ci95: float
    """Half width of the 95 % interval of the mean difference over worlds; NaN for a single world."""


def gain(point: Point, published: Sequence[Point]) -> Gain:
    """By linear interpolation over the logarithm of bytes, world by world.

    A point smaller than anything the published pruning can store is compared with the smallest that it can, which takes
    more bytes; so the gain at equal bytes is at least what is told.
    """
    curve = sorted(published, key=lambda p: p.kib)
    sizes = [math.log(p.kib) for p in curve]
    at = min(max(math.log(point.kib), sizes[0]), sizes[-1])
    rival_W = np.array(
        [np.interp(at, sizes, psnr) for psnr in zip(*(p.row.psnr_per_world for p in curve), strict=True)]
    )
    gain_W = np.array(point.row.psnr_per_world) - rival_W
    n = len(gain_W)
    ci95 = float(stdtrit(n - 1, 0.975) * gain_W.std(ddof=1) / n**0.5) if n > 1 else math.nan
    return Gain(point, math.exp(at), float(rival_W.mean()), float(gain_W.mean()), ci95)


def gains(points: Sequence[Point]) -> list[Gain]:
    """Of all that is not on the published curve itself, smallest first; none before that curve is there."""
    published = [p for p in points if p.way in PUBLISHED]
    if len(published) < len(PUBLISHED):
        return []
    return [gain(p, published) for p in sorted(points, key=lambda p: p.kib) if p.way not in PUBLISHED]


def equal_bytes(found: Sequence[Gain]) -> str:
    """The gains as a table."""
    heads = ["codec and pruning", "KiB", "dB", "published at KiB", "dB", "gain dB", "95 %"]
    lines = [
        [
            *(g.point.label, f"{g.point.kib:,.0f}", f"{g.point.row.psnr_mean:.2f}"),
            *(f"{g.published_kib:,.0f}", f"{g.published_db:.2f}", f"{g.db:+.2f}"),
            f"± {g.ci95:.2f}" if g.ci95 == g.ci95 else "-",
        ]
        for g in found
    ]
    return markdown_table(heads, lines)


def verdict(points: Sequence[Point]) -> str:
    """Whether the default lies on the frontier, and by how much it beats the published pruning."""
    default = next((p for p in points if p.way == DEFAULT), None)
    own = next((g for g in gains(points) if g.point is default), None)
    if default is None or own is None:
        return "The default or the published curve is not measured."
    lies = "lies" if default in frontier(points) else "does not lie"
    smaller = default.kib < own.published_kib * 0.999
    least = f" (which never takes less than {own.published_kib:,.0f} KiB, so at equal bytes it is at least that)"
    return (
        f"The default, {default.label}, {default.kib:,.0f} KiB, {lies} on the frontier. Against the published pruning"
        f"{least if smaller else ' at equal bytes'} it gains {own.db:+.2f} dB"
        f"{f' ± {own.ci95:.2f}' if own.ci95 == own.ci95 else ''}; asked: {ASKED_GAIN_DB:g} or more."
    )


def report(points: Sequence[Point], without_memory: Row, name: str) -> str:
    """The body of the .md file."""
    worlds, path, frames = without_memory.worlds, without_memory.path, without_memory.frames
    return (
        f"{verdict(points)}\n\n"
        f"{worlds} worlds, the same for all policies; path {path}, {frames} frames, the first half shown; PSNR where "
        f"the camera sees a place again. Without memory (sliding window): {without_memory.psnr_mean:.2f} dB.\n\n"
        f"![PSNR against bytes]({name}.png)\n\n{table(points)}\n\n## At equal bytes\n\n"
        "Against bf16 pruned by centroid, interpolated in the logarithm of bytes, world by world; its ends are one "
        "token of each latent frame but the anchor, and no pruning. Below its smallest size that one is the rival, "
        f"with more bytes. Intervals are of the paired difference.\n\n{equal_bytes(gains(points))}"
    )


def write(out: Path, facts: dict[str, str], rows: Sequence[Row], ways: dict[str, Way]) -> list[Point]:
    """Table and rows as far as they are there, so that a run cut short has a result."""
    without_memory, *remembering = rows
    points = [Point(ways[row.policy], row) for row in remembering]
    body = report(points, without_memory, out.name)
    save(out, "Fidelity per stored byte", body, {"circumstances": facts, "rows": [row.as_json() for row in rows]})
    return points


def plot(out: Path, points: Sequence[Point], without_memory: Row) -> None:
    """OUT.png, or a word about why not."""
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no plot: matplotlib is missing; python benchmarks/fidelity_per_byte.py --redraw --out {out} elsewhere")
        return
    from fidelity_plot import draw

    published = sorted((p for p in points if p.way in PUBLISHED), key=lambda p: p.kib)
    draw(points, {"frontier": frontier(points), "published: bf16, centroid": published}, without_memory, out)


def redraw(out: Path) -> None:
    """Table and plot from the rows of OUT.json."""
    content = json.loads(out.with_suffix(".json").read_text())
    rows = [
        Row(**{name: math.nan if value is None else value for name, value in stored.items()})
        for stored in content["rows"]
    ]
    points = write(out, content["circumstances"], rows, wanted(CODECS))
    plot(out, points, rows[0])


def measure(given: argparse.Namespace) -> None:
    """Roll out, print, and write after every policy."""
    device = torch.device(given.device)
    model = RoomsModel.load(given.weights, device)
    ways = wanted(given.codecs.split(","))
    policies = [parse_policy(text) for text in (WITHOUT_MEMORY, *ways)][: given.first]
    batch = given.batch or (given.worlds if device.type == "cuda" else 8)
    settings = Settings(worlds=given.worlds, batch=min(batch, given.worlds))
    rows: list[Row] = []
    points: list[Point] = []
    started = time.perf_counter()
    for row in run(model, settings, cases(policies, ["back"], [given.frames], ["truth"])):
        now = time.perf_counter()
        kib = row.stored_bytes_per_chunk / 1024
        print(f"{row.policy:45} {kib:8.0f} KiB {row.psnr_mean:6.2f} dB {now - started:6.1f} s", flush=True)
        started = now
        rows.append(row)
        if len(rows) > 1:
            facts = circumstances(model.device) | {"rooms weights": model.epoch}
            points = write(given.out, facts | {"policies measured": f"{len(rows)} of {len(policies)}"}, rows, ways)
    print(verdict(points))
    plot(given.out, points, rows[0])


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=32)
    parser.add_argument("--batch", type=int, help="worlds rolled out together; default: all on a GPU, 8 on a CPU")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS, help="folder of rooms weights")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--first", type=int, help="stop after so many policies; 12: no more than a verdict needs")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: OUT.md and OUT.png from OUT.json")
    parser.add_argument("--out", type=Path, required=True, help="write OUT.md, OUT.json and OUT.png")
    given = parser.parse_args()
    if given.redraw:
        redraw(given.out)
    else:
        measure(given)


if __name__ == "__main__":
    main()
