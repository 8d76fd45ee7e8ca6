"""The run as one page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from worldkv.report import plots, world_plots
from worldkv.report.figures import PolicyFigures, frame_count, policies, policy_figures, rollouts_of
from worldkv.report.labels import (
    NOT_MEASURED,
    POLICY_HINTS,
    binary_size,
    counted,
    policy_colours,
    policy_label,
    spread,
)
from worldkv.report.style import CSS

if TYPE_CHECKING:
    from worldkv.results import RunResult

HEADINGS = (
    ("memory policy", ""),
    ("PSNR on revisits", "dB, higher is closer to the truth"),
    ("SSIM on revisits", "1 is the truth"),
    ("speed", "video frames/s, all worlds"),
    ("attended to", "tokens, last chunk"),
    ("KV in the window", "per world, at the end"),
    ("KV in memory", "per world, at the end"),
    ("chunks retrieved / missed", "all worlds"),
)
PAPER = "https://arxiv.org/abs/2605.22718"


def page(result: RunResult, *, film: bytes, still: bytes) -> str:
    """The whole HTML document, with the video (mp4) and its still (png) inside."""
    figures = policy_figures(result)
    parts = [
        *_opening(result, figures),
        _video(film, still),
        *_table(figures),
        *_charts(result),
        *_worlds(result),
        *_origin(result),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>WorldKV report</title><style>{CSS}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _opening(result: RunResult, figures: list[PolicyFigures]) -> Iterator[str]:
    worlds, first = len(result.worlds), result.worlds[0]
    yield '<p class="brand">WorldKV</p><h1>What the model remembers when the camera comes back</h1>'
    given = first.given_frames
    shown = f"It was shown the first {given} and made the rest itself; where" if given else "Where"
    yield (
        "<p>A video world model makes its world chunk by chunk, and its KV is its memory. Here it made "
        f"{counted(worlds, 'world')} of {frame_count(first)} video frames each, once per memory policy, with the same "
        f"weights and along the same paths. {shown} the camera "
        "comes back to what was seen, the picture can be held against the truth.</p>"
    )
    colours = policy_colours([row.policy for row in figures])
    yield '<p class="soft">Likeness to the truth on revisits: mean PSNR, higher is closer.</p><div class="cards">'
    for row in figures:
        held = binary_size(row.window_bytes + row.memory_bytes)
        number = NOT_MEASURED if row.psnr_mean_db is None else f"{row.psnr_mean_db:.1f} dB"
        yield (
            f'<div class="card" style="--policy: {colours[row.policy]}">{escape(policy_label(row.policy))}'
            f"<b>{number}</b><small>{escape(_hint(row.policy))}{held} of KV per world at the end</small></div>"
        )
    yield "</div>"


def _hint(policy: str) -> str:
    return f"{POLICY_HINTS[policy]}; " if policy in POLICY_HINTS else ""


def _video(film: bytes, still: bytes) -> str:
    return (
        '<figure><video controls autoplay loop muted playsinline aria-label="Side by side: the truth and each memory '
        'policy, one row per world" '
        f'poster="data:image/png;base64,{b64encode(still).decode()}" '
        f'src="data:video/mp4;base64,{b64encode(film).decode()}"></video>'
        "<figcaption>A yellow frame marks a revisit. The number below a picture is its likeness to the truth so far: "
        "the mean PSNR over the revisits up to this moment.</figcaption></figure>"
    )


def _table(figures: list[PolicyFigures]) -> Iterator[str]:
    colours = policy_colours([row.policy for row in figures])
    heads = "".join(f"<th>{head}<small>{note}</small></th>" for head, note in HEADINGS)
    yield f'<h2>The policies compared</h2><div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>'
    for row in figures:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row))
        yield f'<tr style="--policy: {colours[row.policy]}">{cells}</tr>'
    yield "</tbody></table></div>"
    first = figures[0]
    yield (
        f'<p class="soft">Fidelity over {counted(first.revisit_frames, "revisiting frame")} that the model made, in '
        f"{counted(first.worlds, 'world')}: mean ± standard deviation between worlds. KV in the window is what the "
        "window holds of its own; chunks retrieved into it are counted in memory, where they stay.</p>"
    )


def _cells(row: PolicyFigures) -> tuple[str, ...]:
    speed = NOT_MEASURED if row.frames_per_second is None else f"{row.frames_per_second:.1f}"
    chunks = (
        f"{row.retrieved_chunks:,} / {row.missed_chunks:,}" if row.retrieved_chunks or row.missed_chunks else "none"
    )
    return (
        policy_label(row.policy),
        spread(row.psnr_mean_db, row.psnr_deviation_db, 1),
        spread(row.ssim_mean, row.ssim_deviation, 3),
        speed,
        f"{row.window_tokens:,.0f}",
        binary_size(row.window_bytes),
        binary_size(row.memory_bytes) if row.memory_bytes else "none",
        chunks,
    )


def _charts(result: RunResult) -> Iterator[str]:
    yield "<h2>Likeness to the truth over time</h2>"
    yield _figure(
        plots.fidelity_plot(result),
        "PSNR of each policy against time",
        "Mean over worlds; the band spans the worst and the best world. Yellow: at least half of the worlds revisit.",
    )
    yield "<h2>What remembering costs</h2>"
    yield _figure(
        plots.cost_plot(result),
        "KV bytes kept and tokens attended to per chunk, against time, for each policy",
        "Left: what must be kept so that the world persists, dashed the compressed part. Right: what every new chunk "
        "has to look at, which decides how long a step takes.",
    )
    yield "<h2>Where the time goes</h2>"
    yield _figure(plots.stage_plot(result), "Wall-clock seconds per stage for each policy", "")


def _worlds(result: RunResult) -> Iterator[str]:
    shown = result.worlds[: world_plots.WORLD_PANELS]
    yield "<h2>Paths, and what was retrieved when</h2>"
    yield (
        '<p class="soft">Where the camera goes, seen from above; where it looks; and what was retrieved: each square '
        "says that the chunk at the bottom was made with the chunk at the left brought back from memory. On the thin "
        "line the two would be the same: the further below it, the longer ago.</p>"
    )
    yield '<div class="worlds">'
    for number, world in enumerate(shown):
        yield f"<h3>{escape(world.name)}</h3>"
        yield _figure(world_plots.path_plot(world), f"Path of {world.name} from above", "Path")
        yield _figure(world_plots.heading_plot(world), f"Heading of the camera in {world.name} against time", "Heading")
        for policy in policies(result):
            rollout = rollouts_of(result, policy)[number]
            if any(record.retrieved or record.missed for record in rollout.records):
                chart = world_plots.retrieval_plot(world, rollout, result.frames_per_chunk)
                words = f"Chunks that {policy_label(policy)} retrieved"
                yield _figure(chart, f"{words} in {world.name}", words)
    yield "</div>"
    if len(shown) < len(result.worlds):
        yield f'<p class="soft">The first {len(shown)} of {counted(len(result.worlds), "world")}.</p>'


def _origin(result: RunResult) -> Iterator[str]:
    yield f"<h2>Make it again</h2><pre>{escape(result.command)}</pre>"
    yield (
        f'<p class="soft">Model {escape(result.model)}, weights {escape(result.epoch)}, '
        f"{counted(result.frames_per_chunk, 'video frame')} per chunk, video at {result.fps} frames/s.</p>"
    )
    yield f"<details><summary>The resolved configuration</summary><pre>{escape(result.config_yaml)}</pre></details>"
    yield (
        f'<footer>WorldKV is an independent implementation of <a href="{PAPER}">arXiv 2605.22718</a>. PSNR and SSIM '
        "are computed on the raw frames, not on the video above.</footer>"
    )


def _figure(svg: str, alt: str, caption: str) -> str:
    label = escape(alt, quote=True)
    drawing = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure>{drawing}" + (f"<figcaption>{escape(caption)}</figcaption></figure>" if caption else "</figure>")
