import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up_runs import flat_world, run_of

from worldkv.report import world_plots
from worldkv.report.page import PAPER, page
from worldkv.report.plots import cost_plot, fidelity_plot
from worldkv.report.svg import INK
from worldkv.report.world_plots import path_plot, retrieval_plot
from worldkv.results import RunResult

VOID = {"meta", "br", "img", "input", "link"}


class Outline(HTMLParser):
    """Every tag with its attributes; fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Outline()
    parser.feed(html)
    assert parser.open == []
    return parser.tags


@pytest.fixture(scope="module")
def html(result: RunResult) -> str:
    return page(result, film=b"film", still=b"still")


def test_the_page_needs_no_other_file_and_no_network(html: str) -> None:
    for tag, attributes in outline(html):
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "poster", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")) or (tag, value) == ("a", PAPER)
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_what_plots_refer_to_is_there(html: str) -> None:
    ids = [attributes["id"] for _, attributes in outline(html) if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used
    assert used <= set(ids)


def test_every_plot_and_the_video_say_in_words_what_they_show(html: str) -> None:
    drawings = [attributes for tag, attributes in outline(html) if tag in ("svg", "video")]
    assert len(drawings) == 1 + 3 + 2 * 3
    assert all(attributes.get("aria-label") for attributes in drawings)


def test_plots_take_the_colour_of_the_page(html: str) -> None:
    assert INK not in html
    assert "currentColor" in html


def test_the_table_has_a_row_per_policy_with_units_in_its_head(html: str) -> None:
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.findall(r"<tr[^>]*><td>([^<]+)", body) == ["full KV", "sliding window", "WorldKV"]
    assert "75.0 MiB" in body
    assert "dB, higher is closer to the truth" in html


def test_what_a_run_says_of_itself_is_shown_and_never_markup(html: str) -> None:
    assert "worldkv rollout configs/demo.yaml" in html
    assert "note: &lt;b&gt;&amp;amp;&lt;/b&gt;" in html


def test_the_same_run_gives_the_same_plots(result: RunResult, html: str) -> None:
    world = result.worlds[0]
    again = [fidelity_plot(result), path_plot(world), retrieval_plot(world, world.rollouts[2], 3)]
    assert all(svg.removeprefix("<svg") in html for svg in again)


def test_many_worlds_are_drawn_in_part_and_nothing_is_said_to_be_shown_when_it_was_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(world_plots, "WORLD_PANELS", 1)
    run = run_of([flat_world({"full": [20.0] * 6}, (4,), given=0, seed=seed) for seed in range(2)])
    html = page(run, film=b"", still=b"")
    assert html.count("<h3>") == 1
    assert "The first 1 of 2 worlds." in html
    assert "shown the first" not in html


def test_a_run_that_only_shows_and_measures_nothing_has_a_page() -> None:
    run = run_of([flat_world({"other": [60, 60, 60, 20, 20, 20]}, (), given=6)])
    html = page(replace(run, stage_seconds={}, frames_per_second={}), film=b"", still=b"")
    outline(html)
    assert "nan" not in html.lower()


def test_bytes_far_apart_share_a_logarithmic_axis() -> None:
    psnr = {"full": [20.0] * 450, "sliding": [20.0] * 450}
    assert ">10<" in cost_plot(run_of([flat_world(psnr, (), given=0)]))
