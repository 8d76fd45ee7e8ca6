"""A run recorded as a trace: what each session asked for, what came of it, and that the simulator takes it."""

from collections import Counter

import numpy as np
import pytest

from cluster.recording import Recorder, TraceLog, check_trace
from scheduler.simulate import Simulation, simulate
from scheduler.trace import read_trace
from worldkv.config import load
from worldkv.durations import Span
from worldkv.errors import ConfigError, OutputError
from worldkv.runs import generate
from worldkv.runs.meter import Meter

SETTINGS = (
    "worlds.count=3",
    "batch_sessions=2",
    "trajectory.video_frames=60",
    "policies=[sliding, worldkv]",
    "sampling.denoise_steps=1",
    "memory.tenant=lab",
    "memory.tiers=[{name: device, capacity_mib: 1}, {name: host, capacity_mib: 64}]",
)


@pytest.fixture
def record(tiny, monkeypatch, tmp_path):
    """Roll out a small run; its trace, and what the run came to."""
    monkeypatch.setattr(generate, "load_model", lambda config: tiny.model)

    def make(*changes):
        recorder, log = Recorder(job="night", priority=3), TraceLog(tmp_path / "a" / "run.trace").open(resume=False)
        config = load(None, [*SETTINGS, f"output.folder={tmp_path / 'run'}", *changes])
        done = generate.generate(
            config, meter=Meter(listener=recorder), rolled=lambda under_way: log.add(recorder.lines(under_way))
        )
        log.close()
        return read_trace(log.path), done

    return make


@pytest.fixture
def recorded(record):
    return record()


def test_every_session_is_there_with_its_way_and_how_it_retrieves(recorded, tiny):
    sessions, _ = recorded
    assert [one.session for one in sessions] == [
        f"rooms-{world}/{policy}" for worlds in ((0, 1), (2,)) for policy in ("sliding", "worldkv") for world in worlds
    ]
    for one in sessions:
        assert (one.tenant, one.job, one.priority, one.scripted) == ("lab", "night", 3, True)
        assert one.chunks * one.frames_per_chunk == len(one.c2w_F44) == 60
        assert one.chunk_seconds > 0
        assert one.chunk_bytes > 0
    arrivals = [one.arrives_seconds for one in sessions]
    assert 0 < arrivals[0] < arrivals[-1]
    np.testing.assert_array_equal(sessions[0].c2w_F44, sessions[2].c2w_F44)
    assert [one.recall.retrieved_chunks for one in sessions[:3]] == [0, 0, 4]


def test_what_came_of_the_chunks_is_what_the_memory_counted(recorded):
    sessions, done = recorded
    hits = Counter()
    for one in sessions:
        assert [seen.chunk for seen in one.observed] == list(range(one.chunks))
        for seen in one.observed:
            hits.update(seen.hits)
    assert hits.total() == done.memory.hits > 0
    assert dict(hits) == {tier.name: tier.hits for tier in done.memory.tiers if tier.hits}
    assert sum(seen.missed for one in sessions for seen in one.observed) == done.memory.lookups - done.memory.hits
    assert all(seen.stall_seconds > 0 for one in sessions for seen in one.observed)


def test_the_simulator_replays_it(recorded):
    sessions, _ = recorded
    result = simulate(Simulation(strategies=("planned",)), sessions)["planned"]
    assert result["chunks"] == sum(one.chunks for one in sessions)


def test_a_run_that_retrieves_by_overlap_is_replayed_with_what_its_camera_sees(record):
    sessions, _ = record("policies=[worldkv/ranking=overlap]", "worlds.count=1")
    assert [one.recall.ranking for one in sessions] == ["overlap"]
    assert sessions[0].recall.frustum.far > 0
    assert simulate(Simulation(strategies=("planned",)), sessions)["planned"]["chunks"] == sessions[0].chunks


def test_what_a_step_gave_that_came_to_nothing_is_not_counted():
    recorder = Recorder()

    def fetch(at):
        recorder(Span("tier host", "fetch", at, at, {"tier": "host"}))

    fetch(0.5)
    fetch(1.5)
    recorder(Span("rollout", "retrieve", 1.0, 2.0))
    recorder(Span("session a", "chunk 0", 1.0, 3.0, {"session": "a", "index": 0, "retrieved": 1, "missed": 2}))
    (seen,) = recorder._observed["a"]
    assert (dict(seen.hits), seen.missed, seen.stall_seconds) == ({"host": 1}, 2, 1.0)
    assert recorder._given == []
    recorder.forget(["a", "b"])
    assert recorder._observed == {}


def test_a_resumed_run_adds_to_its_trace(tmp_path):
    path = tmp_path / "run.trace"
    for resume in (False, True):
        log = TraceLog(path).open(resume=resume)
        log.add(f'{{"kind": "session", "session": "{resume}"}}\n')
        log.close()
    assert [line.split('"')[1] for line in path.read_text().splitlines()] == ["format", "kind", "kind"]
    TraceLog(path).close()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"--trace .*file/run.trace: cannot be written: "):
        TraceLog(tmp_path / "file" / "run.trace").open(resume=False)


def test_a_policy_that_the_simulator_cannot_replay_is_named(tmp_path):
    config = load(None, ["policies=[worldkv/ranking=random, sliding]"])
    with pytest.raises(ConfigError, match="ranks by random, the simulator replays pose, yaw, overlap; leave"):
        check_trace(config, tmp_path / "run.trace")
    check_trace(load(None, ["policies=[full, sliding, worldkv]"]), tmp_path / "new" / "run.trace")


def test_a_trace_that_cannot_be_made_is_refused_before_anything_is_rolled_out(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "run.trace"):
        with pytest.raises(OutputError, match=f"--trace {place}: cannot be written: "):
            check_trace(load(None), place)
