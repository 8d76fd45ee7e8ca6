"""What a run tells of itself."""

import numpy as np
import pytest

from worldkv.rollout import ChunkRecord
from worldkv.runs.generate import generate
from worldkv.runs.meter import Meter
from worldkv.stats import MemoryStats


def record(chunk: int, frames_FHWC: np.ndarray, *, retrieved: tuple[int, ...] = (), generated: bool = True):
    return ChunkRecord(chunk, frames_FHWC, generated, retrieved, 1, 12, 0, 0)


def test_a_run_tells_how_far_it_is_after_every_chunk(config):
    told = []
    generate(config("run", "worlds.count=2"), meter=Meter(told.append))
    # Two policies, four chunks each, of which the first half is shown, not made.
    assert [stats.chunks_generated for stats in told] == [0, 0, 2, 4, 4, 4, 6, 8]
    last = told[-1]
    assert (last.video_frames, last.chunks.count) == (24, 4)
    assert last.stages["denoise"].count == 8
    assert last.chunks.seconds >= 0.5 * last.stages["denoise"].seconds
    assert last.memory.lookups == last.memory.hits + sum(last.memory.misses.values())
    assert last.chunks_retrieved == last.memory.hits


def test_a_run_that_nobody_watches_gathers_no_figures(config, monkeypatch):
    asked = []
    monkeypatch.setattr(Meter, "stats", lambda self, memory: asked.append(memory))
    generate(config("run", "worlds.count=1"))
    assert not asked


def test_spans_name_session_and_chunk_and_lie_within_the_run(config):
    heard = []
    generate(config("run", "worlds.count=1", "policies=[worldkv]"), meter=Meter(listener=heard.append))
    sessions = [span for span in heard if span.track.startswith("session ")]
    assert [span.about["index"] for span in sessions] == [0, 1, 2, 3]
    assert {span.about["session"] for span in sessions} == {"rooms-0/worldkv"}
    stages = {span.name for span in heard if span.track == "rollout"}
    assert stages == {"retrieve", "assemble", "look ahead", "denoise", "clean pass", "compress and admit", "decode"}
    writes = [span for span in heard if span.track.startswith("tier ") and span.name == "write"]
    assert all({"tenant", "chunk", "index"} <= set(span.about) for span in writes)
    assert all(span.started <= span.ended for span in heard)


def test_fidelity_is_that_of_generated_chunks_for_which_something_was_brought_back():
    truth = np.zeros((6, 4, 4, 3), np.uint8)
    wrong = np.full((3, 4, 4, 3), 255, np.uint8)
    meter = Meter()
    meter.batch([record(0, wrong, retrieved=(0,), generated=False)], ["a"], [truth], 0.0, 1.0)
    meter.batch([record(1, wrong)], ["a"], [truth], 1.0, 2.0)
    assert meter.stats(MemoryStats(0, 0)).fidelity_db is None
    meter.batch([record(1, wrong, retrieved=(0,))], ["a"], [truth], 2.0, 3.0)
    assert meter.stats(MemoryStats(0, 0)).fidelity_db == pytest.approx(0.0)
    meter.batch([record(1, truth[:3], retrieved=(0,))], ["a"], [truth], 3.0, 4.0)
    assert meter.stats(MemoryStats(0, 0)).fidelity_db == pytest.approx(60.0)
    # Where the truth ends there is nothing to compare with.
    meter.batch([record(2, wrong, retrieved=(0,))], ["a"], [truth], 4.0, 5.0)
    stats = meter.stats(MemoryStats(0, 0))
    assert stats.fidelity_db == pytest.approx(60.0)
    assert (stats.chunks_missed, stats.chunks_generated, stats.chunks.seconds) == (5, 4, 4.0)
