"""One run in this process as the snapshot of one worker."""

import json
from dataclasses import replace

import pytest

from monitoring.exporter import Exporter
from monitoring.local import EVERY_SECONDS, LocalRun, Watching, watched
from worldkv.durations import Span, nobody
from worldkv.errors import ConfigError, OutputError
from worldkv.runs.meter import unwatched
from worldkv.stats import MemoryStats, WorkStats

STATS = WorkStats(MemoryStats(3, 3), video_frames=12)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_published_at_most_once_in_a_while_and_at_the_end():
    exporter, clock = Exporter(), Clock()
    run = LocalRun(exporter, "rooms", sessions=2, clock=clock, wall=lambda: 5.0)
    run.finish()
    assert exporter.snapshot is None
    run(STATS)
    clock.now += 0.9 * EVERY_SECONDS
    run(replace(STATS, video_frames=15))
    assert exporter.snapshot.workers[0].work.video_frames == 12
    clock.now += 0.2 * EVERY_SECONDS
    run(replace(STATS, video_frames=18))
    assert exporter.snapshot.workers[0].work.video_frames == 18
    run(replace(STATS, video_frames=21))
    run.finish()
    (worker,) = exporter.snapshot.workers
    assert (worker.work.video_frames, worker.sessions[0].state, exporter.snapshot.taken_at) == (21, "idle", 5.0)


def refuse(text: str) -> None:
    raise AssertionError(text)


def test_a_run_of_which_nothing_is_wanted_is_not_watched():
    with watched(Watching(), "rooms", tenant="lab", sessions=1, warn=refuse) as meter:
        assert meter.watch is unwatched
        assert meter.listener is nobody


def test_spans_go_into_the_files_that_are_wanted(tmp_path):
    wanted = Watching(trace=tmp_path / "a" / "trace.json", log=tmp_path / "b" / "log.jsonl")
    for _ in range(2):
        with watched(wanted, "rooms", tenant="lab", sessions=1, warn=refuse) as meter:
            meter.listener(Span("rollout", "denoise", 1.0, 2.0))
    # A trace is of one run, a log goes on.
    assert [e["name"] for e in json.loads(wanted.trace.read_text()) if e["ph"] == "X"] == ["denoise"]
    assert [json.loads(line)["event"] for line in wanted.log.read_text().splitlines()] == ["denoise", "denoise"]


@pytest.mark.parametrize("listen", ["9464", "nowhere", "127.0.0.1:"])
def test_an_address_without_host_or_port_is_refused(listen):
    with (
        pytest.raises(ConfigError, match="not HOST:PORT"),
        watched(Watching(listen), "rooms", tenant="lab", sessions=1, warn=refuse),
    ):
        pass


def test_a_log_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    wanted = Watching(log=tmp_path / "file" / "log.jsonl")
    with (
        pytest.raises(OutputError, match=r"log .*log.jsonl: cannot be written"),
        watched(wanted, "rooms", tenant="lab", sessions=1, warn=refuse),
    ):
        pass
