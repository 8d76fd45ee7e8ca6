import json

import numpy as np
import pytest

from scheduler.snapshot import Recall
from scheduler.synthetic import Load, made_up
from scheduler.trace import Observed, SessionTrace, read_trace, write_trace
from worldkv.camera import Frustum
from worldkv.errors import ConfigError, OutputError, TraceError

HEADER = {"format": "worldkv-trace", "version": 1}
SESSION = {
    "kind": "session",
    "session": "a",
    "tenant": "t",
    "arrives_seconds": 1.5,
    "chunk_seconds": 2.0,
    "chunk_bytes": 10,
    "frames_per_chunk": 2,
}
FRUSTUM = Frustum(-0.5, 0.5, -0.25, 0.25, 0.125, 8.0)
POSE = np.eye(4)[:3].reshape(-1).tolist()
OVERLAP = SESSION | {"ranking": "overlap"}
CHUNK = {"kind": "chunk", "session": "a", "chunk": 0, "c2w": [POSE, POSE]}


def lines(*contents):
    return "".join(json.dumps(one) + "\n" for one in contents)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.trace"


@pytest.mark.parametrize("recall", [Recall(3, 2, 1, "yaw"), Recall(3, 2, 1, "overlap", FRUSTUM)])
def test_a_trace_comes_back_as_it_was_written(file, walk, recall):
    trace = SessionTrace(
        session="a",
        tenant="t",
        c2w_F44=walk("W*4 R*4"),
        frames_per_chunk=4,
        chunk_seconds=2.0,
        chunk_bytes=7,
        arrives_seconds=3.0,
        scripted=True,
        latent_stride=2,
        recall=recall,
        gang=2,
        priority=1,
        job="j",
        observed=(Observed(1, {"device": 2, "host": 1}, 1, 0.25),),
    )
    write_trace(file, [trace])
    (back,) = read_trace(file)
    assert back.c2w_F44.tobytes() == trace.c2w_F44.tobytes()
    assert back.chunks == 2
    for name in ("session", "tenant", "arrives_seconds", "scripted", "latent_stride", "recall", "gang", "priority"):
        assert getattr(back, name) == getattr(trace, name)
    assert (back.job, back.observed) == ("j", trace.observed)


def test_sessions_without_a_chunk_are_left_out(file):
    file.write_text(lines(HEADER, SESSION))
    assert read_trace(file) == []


def test_a_file_cut_off_in_its_last_line_is_read_up_to_there(file):
    text = lines(HEADER, SESSION, CHUNK, CHUNK | {"chunk": 1})
    file.write_text(text[:-20])
    assert read_trace(file)[0].chunks == 1
    file.write_text(text + "\n")  # a blank line is nothing
    assert read_trace(file)[0].chunks == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nonsense", ":1: is no JSON"),
        ("[1]\n", ":1: is list, expected an object"),
        (lines({"format": "other"}), ":1: format 'other' version None"),
        (lines(HEADER | {"version": 2}), ":1: format 'worldkv-trace' version 2"),
        (lines(HEADER, {"kind": "what", "session": "a"}), ":2: kind is 'what'"),
        (lines(HEADER, {"kind": "chunk"}), ":2: session is None, expected a name"),
        (lines(HEADER, CHUNK), ":2: a chunk of session a, which no earlier line describes"),
        (lines(HEADER, SESSION, SESSION), ":3: session a is there twice"),
        (lines(HEADER, SESSION, CHUNK | {"chunk": 1}), ":3: session a: chunk 0 expected, got 1"),
        (lines(HEADER, SESSION, CHUNK | {"c2w": [POSE]}), r":3: c2w has shape \[1, 12\], expected \[2, 12\]"),
        (lines(HEADER, SESSION, CHUNK | {"c2w": "x"}), ":3: c2w is no array of numbers"),
        (lines(HEADER, SESSION, CHUNK | {"c2w": [[0.0] * 12] * 2}), ":3: frame 0 of 2: the rotation is not"),
        (lines(HEADER, SESSION, CHUNK | {"hits": {"device": "x"}}), ":3: hits is"),
        (lines(HEADER, SESSION, CHUNK | {"hits": {}, "missed": -1}), ":3: missed is -1"),
        (lines(HEADER, SESSION | {"chunk_seconds": 0}, CHUNK), ":2: chunk_seconds is 0, .*above 0"),
        (lines(HEADER, SESSION | {"chunk_bytes": True}, CHUNK), ":2: chunk_bytes is True"),
        (lines(HEADER, SESSION | {"arrives_seconds": "soon"}, CHUNK), ":2: arrives_seconds is 'soon', .*from 0 up"),
        (lines(HEADER, SESSION | {"ranking": "random"}, CHUNK), ":2: ranking is 'random', allowed are pose, yaw"),
        (lines(HEADER, SESSION | {"ranking": "overlap"}, CHUNK), ":2: frustum is None, expected"),
        (lines(HEADER, OVERLAP | {"frustum": [1] * 5}, CHUNK), r":2: frustum is \[1, 1, 1, 1, 1\], expected"),
        (lines(HEADER, OVERLAP | {"frustum": [1] * 6}, CHUNK), ":2: frustum is .* is empty"),
        (lines(HEADER, OVERLAP | {"frustum": ["x"] * 6}, CHUNK), ":2: frustum is .* could not convert"),
        (lines(HEADER, SESSION) + "{broken\n" + lines(CHUNK), ":3: is no JSON"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line_and_fault(file, text, fault):
    file.write_text(text)
    with pytest.raises(TraceError, match=fault):
        read_trace(file)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(TraceError, match="nowhere: cannot be read: No such file"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="cannot be written"):
        write_trace(tmp_path / "no" / "folder", [])
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(TraceError, match="binary: cannot be read"):
        read_trace(binary)


@pytest.mark.parametrize("kind", ["keys", "back", "look"])
def test_made_up_loads_repeat_and_are_whole(kind):
    load = Load(5, 6, kind=kind, scripted_share=0.4, tenants=("a", "b"), arrive_within_seconds=10.0)
    one, two = made_up(load), made_up(load)
    assert [trace.c2w_F44.tobytes() for trace in one] == [trace.c2w_F44.tobytes() for trace in two]
    assert [trace.chunks for trace in one] == [6] * 5
    assert sum(trace.scripted for trace in one) == 2
    assert [trace.tenant for trace in one] == ["a", "b", "a", "b", "a"]
    assert [trace.arrives_seconds for trace in one] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert made_up(Load(5, 6, kind=kind, seed=1))[0].c2w_F44.tobytes() != one[0].c2w_F44.tobytes()


def test_a_camera_that_goes_back_comes_back():
    (trace,) = made_up(Load(1, 10, kind="back"))
    # 60 frames out; the last frame back, the first of all, would be the 121st.
    assert np.array_equal(trace.c2w_F44[1:], trace.c2w_F44[:0:-1])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sessions": 0}, "none may be 0"),
        ({"kind": "fly"}, "kind='fly'"),
        ({"scripted_share": 1.5}, "from 0 to 1"),
        ({"tenants": ()}, "empty"),
    ],
)
def test_loads_that_make_no_sense_are_refused(changes, fault):
    with pytest.raises(ConfigError, match=fault):
        Load(**({"sessions": 1, "chunks": 1} | changes))
