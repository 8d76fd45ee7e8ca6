"""The picture that the video repeats: truth and policies side by side, a row per world, and what to make of it.

Sizes in pixels. Shapes: F video frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from worldkv.report.figures import MOST_WORLDS, frame_count, generated_revisits, policies, policy_figures, psnr_so_far
from worldkv.report.labels import POLICY_HINTS, REVISIT_COLOUR, policy_colours, policy_label
from worldkv.report.timeline import Shot

if TYPE_CHECKING:
    from worldkv.results import RunResult, WorldRollouts

BACKGROUND, TEXT, FAINT, TRACK = "#12161C", "#F3F5F7", "#98A2AE", "#2A323C"
GIVEN_FILL, MADE_FILL = "#5B6775", "#6CA8D9"
BANNER_FILL = {"given": "#3A4552", "turn": "#8A4B08", "generated": "#8A4B08", "end": "#1F5E46"}

TITLE = "Does the world stay the same when the camera comes back?"
GIVEN_BANNER = "1  The camera looks around. Every model is shown the same true pictures."
MADE_BANNER = "2  Now the models make the pictures. They must remember what was there."
LEGEND = ("dB: likeness to the truth, mean over revisits so far (PSNR)", FAINT)
# Below 20 dB two pictures of these rooms share no more than sky and floor; from 25 dB on, the same walls stand
# in the same places with the same colours.
SAME_DB, OTHER_DB = 25.0, 20.0
VERDICTS = (
    ("✓", "#3DDC97", f"same place (≥ {SAME_DB:.0f})"),
    ("~", "#F2C14E", "in between"),
    ("✗", "#FF7A66", f"another place (< {OTHER_DB:.0f})"),
)

MARGIN, GAP, BORDER, FOOT = 20, 14, 4, 34
HEAD, BOTTOM = 138, 62
# A laptop screen shows about 720 pixels of a page, so more rows mean smaller panels.
PANEL_OF_ROWS = {1: 232, 2: 208, 3: 172}
WIDEST, NARROWEST = 960, 560


@dataclass(frozen=True)
class Look:
    """What differs between the video and its smaller preview."""

    worlds: tuple[WorldRollouts, ...]
    panel: int | None = None
    """Width of a panel; None chooses by the number of rows and columns."""
    smooth: bool = True
    """Pixels between pixels; hard edges pack better in a GIF."""


class Canvas:
    """Draws shots of a run. Fonts and the unchanging part are prepared once."""

    def __init__(self, result: RunResult, look: Look) -> None:
        names = policies(result)
        rows, columns = len(look.worlds), len(names) + 1
        self.result, self.look, self.policies = result, look, names
        self.panel = look.panel or min(max(PANEL_OF_ROWS.get(rows, 172), NARROWEST // columns), WIDEST // columns)
        height, width = look.worlds[0].truth_FHWC.shape[1:3]
        self.panel_height = round(self.panel * height / width)
        self.size = (
            _even(2 * MARGIN + columns * self.panel + (columns - 1) * GAP),
            _even(HEAD + rows * (self.panel_height + FOOT) + BOTTOM),
        )
        self._fonts: dict[tuple[int, bool], ImageFont.FreeTypeFont] = {}
        self._videos = [[w.truth_FHWC, *(r.frames_FHWC for r in w.rollouts)] for w in look.worlds]
        self._scores = [[psnr_so_far(world, rollout) for rollout in world.rollouts] for world in look.worlds]
        self._revisits = [generated_revisits(world) for world in look.worlds]
        self._frames = min(frame_count(world) for world in look.worlds)
        self._still = self._unchanging()

    @property
    def colours(self) -> list[str]:
        """What everything but the panels is drawn in."""
        marks = [colour for _, colour, _ in VERDICTS]
        flat = [BACKGROUND, TEXT, FAINT, TRACK, GIVEN_FILL, MADE_FILL, REVISIT_COLOUR, *marks]
        return [*flat, *policy_colours(self.policies).values(), *dict.fromkeys(BANNER_FILL.values())]

    def draw(self, shot: Shot) -> Image.Image:
        """The picture of one shot."""
        picture = self._still.copy()
        pen = ImageDraw.Draw(picture)
        self._banner(pen, shot)
        for row in range(len(self.look.worlds)):
            for column in range(len(self.policies) + 1):
                self._cell(picture, pen, (row, column), shot)
        self._progress(pen, shot)
        return picture

    def _unchanging(self) -> Image.Image:
        picture = Image.new("RGB", self.size, BACKGROUND)
        pen = ImageDraw.Draw(picture)
        self._write(pen, (MARGIN, 14), TITLE, 21, bold=True, width=self.size[0] - 2 * MARGIN)
        colours = policy_colours(self.policies)
        heads = [("truth", "what is really there", TEXT)]
        heads += [(policy_label(p), POLICY_HINTS.get(p, ""), colours[p]) for p in self.policies]
        for column, (head, hint, colour) in enumerate(heads):
            x, _ = self._corner(0, column)
            pen.rectangle((x, HEAD - 48, x + 4, HEAD - 14), fill=colour)
            self._write(pen, (x + 11, HEAD - 51), head, 16, bold=True, width=self.panel - 11)
            self._write(pen, (x + 11, HEAD - 30), hint, 12, fill=FAINT, width=self.panel - 11)
        self._legend(pen)
        return picture

    def _legend(self, pen: ImageDraw.ImageDraw) -> None:
        marks = [(f"{mark} {words}", colour) for mark, colour, words in VERDICTS]

        def fits(parts: Sequence[tuple[str, str]], size: int) -> bool:
            room = self.size[0] - 2 * MARGIN - 14 * (len(parts) - 1)
            return sum(self._width(words, size) for words, _ in parts) <= room

        # In a narrow picture the marks go before what explains them.
        wanted = [([LEGEND, *marks], size) for size in (12, 11, 10, 9)] + [(marks, size) for size in (12, 10)]
        parts, size = next((one for one in wanted if fits(*one)), (marks, 8))
        x = MARGIN
        for words, colour in parts:
            x += self._write(pen, (x, self.size[1] - 25), words, size, fill=colour) + 14

    def _banner(self, pen: ImageDraw.ImageDraw, shot: Shot) -> None:
        words = {"given": GIVEN_BANNER, "end": self._verdict()}.get(shot.phase, MADE_BANNER)
        box = (MARGIN, 48, self.size[0] - MARGIN, 78)
        pen.rounded_rectangle(box, 6, fill=BANNER_FILL[shot.phase])
        speed = f"▶▶ ×{shot.speed}" if shot.speed > 1 else ""
        room = self.size[0] - 2 * MARGIN - 24 - (70 if speed else 0)
        self._write(pen, (MARGIN + 12, 53), words, 15, bold=True, width=room)
        self._write(pen, (self.size[0] - MARGIN - 66, 55), speed, 13)

    def _verdict(self) -> str:
        rows = policy_figures(self.result)
        parts = [f"{policy_label(r.policy)} {r.psnr_mean_db:.1f} dB" for r in rows if r.psnr_mean_db is not None]
        return f"On revisits: {'  ·  '.join(parts)}" if parts else "Nothing was revisited on this trajectory."

    def _cell(self, picture: Image.Image, pen: ImageDraw.ImageDraw, cell: tuple[int, int], shot: Shot) -> None:
        row, column = cell
        x, y = self._corner(row, column)
        revisit = bool(self._revisits[row][shot.frame])
        if revisit:
            box = (x - BORDER, y - BORDER, x + self.panel + BORDER - 1, y + self.panel_height + BORDER - 1)
            pen.rectangle(box, fill=REVISIT_COLOUR)
        pixels = Image.fromarray(np.ascontiguousarray(self._videos[row][column][shot.frame]))
        method = Image.Resampling.BICUBIC if self.look.smooth else Image.Resampling.NEAREST
        picture.paste(pixels.resize((self.panel, self.panel_height), method), (x, y))
        below = (x, y + self.panel_height + 6)
        if column:
            self._score(pen, below, self._scores[row][column - 1][shot.frame], self._is_given(row, shot))
        else:
            x += self._write(pen, below, self.look.worlds[row].name, 13, fill=FAINT, width=self.panel - 84)
            if revisit:
                right = below[0] + self.panel - self._width("REVISIT", 14, bold=True)
                self._write(pen, (right, below[1] - 1), "REVISIT", 14, bold=True, fill=REVISIT_COLOUR)

    def _is_given(self, row: int, shot: Shot) -> bool:
        return shot.frame < self.look.worlds[row].given_frames

    def _score(self, pen: ImageDraw.ImageDraw, at: tuple[int, int], score_db: float, given: bool) -> None:
        if given or np.isnan(score_db):
            self._write(pen, at, "shown the truth" if given else "makes it itself", 13, fill=FAINT)
            return
        mark, colour, _ = VERDICTS[0 if score_db >= SAME_DB else 1 if score_db >= OTHER_DB else 2]
        self._write(pen, (at[0], at[1] - 2), f"{mark} {score_db:.1f} dB", 16, bold=True, fill=colour)

    def _progress(self, pen: ImageDraw.ImageDraw, shot: Shot) -> None:
        left, right, top = MARGIN, self.size[0] - MARGIN, self.size[1] - 50
        given = min(self.look.worlds[0].given_frames, self._frames)

        def at(frame: float) -> int:
            return round(left + (right - left) * frame / self._frames)

        pen.rectangle((left, top, right, top + 12), fill=TRACK)
        pen.rectangle((left, top, at(min(shot.frame + 1, given)), top + 12), fill=GIVEN_FILL)
        if shot.frame >= given:
            pen.rectangle((at(given), top, at(shot.frame + 1), top + 12), fill=MADE_FILL)
        share_F = np.mean([flag_F[: self._frames] for flag_F in self._revisits], axis=0)
        for frame in np.flatnonzero(share_F >= MOST_WORLDS).tolist():
            pen.rectangle((at(frame), top + 13, at(frame + 1), top + 16), fill=REVISIT_COLOUR)
        pen.line((at(given), top - 3, at(given), top + 16), fill=TEXT, width=2)
        for start, stop, word in ((0, given, "shown"), (given, self._frames, "made from memory")):
            if self._width(word, 10) + 8 < at(stop) - at(start):
                self._write(pen, (at(start) + 6, top), word, 10)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        return MARGIN + column * (self.panel + GAP), HEAD + row * (self.panel_height + FOOT)

    def _write(
        self,
        pen: ImageDraw.ImageDraw,
        at: tuple[int, int],
        words: str,
        size: int,
        *,
        bold: bool = False,
        fill: str = TEXT,
        width: int | None = None,
    ) -> int:
        """Write one line, smaller where it would be wider than `width`; returns its width."""
        while width is not None and size > 8 and self._width(words, size, bold=bold) > width:
            size -= 1
        pen.text(at, words, font=self._font(size, bold=bold), fill=fill)
        return self._width(words, size, bold=bold)

    def _width(self, words: str, size: int, *, bold: bool = False) -> int:
        return round(self._font(size, bold=bold).getlength(words))

    def _font(self, size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
        key = (size, bold)
        if key not in self._fonts:
            name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
            self._fonts[key] = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf", name)), size)
        return self._fonts[key]


def pictures(canvas: Canvas, shots: Sequence[Shot]) -> NDArray[np.uint8]:
    """All shots [F, H, W, 3]; a shot that is held is drawn once."""
    drawn: dict[Shot, NDArray[np.uint8]] = {}
    for shot in shots:
        if shot not in drawn:
            drawn[shot] = np.asarray(canvas.draw(shot))
    return np.stack([drawn[shot] for shot in shots])


def _even(size: int) -> int:
    # Videos store colour at half the size.
    return size + size % 2
