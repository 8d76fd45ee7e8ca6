"""Spans on a time line and as lines of JSON."""

import io
import json

import pytest

from monitoring.logs import JsonLog, both
from monitoring.trace import TraceFile
from worldkv.durations import Span
from worldkv.errors import OutputError

SPANS = [
    Span("tier host", "fetch", 100.25, 100.5, {"tenant": "lab", "chunk": "abc", "index": 3, "bytes": 7}),
    Span("rollout", "retrieve", 100.0, 100.75),
    Span("rollout", "denoise", 100.75, 102.0),
    Span("session rooms-1/worldkv", "chunk 4", 100.0, 102.5, {"session": "rooms-1/worldkv", "index": 4}),
]


def read(path) -> list[dict]:
    return json.loads(path.read_text())


def test_every_track_is_a_line_and_every_span_stands_where_and_as_long_as_it_was(tmp_path):
    with TraceFile(tmp_path / "deep" / "trace.json") as trace:
        for span in SPANS:
            trace(span)
    events = read(trace.path)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    assert [(names[event["tid"]], event["name"]) for event in spans] == [(span.track, span.name) for span in SPANS]
    assert [event["dur"] for event in spans] == [250_000, 750_000, 1_250_000, 2_500_000]
    # Against each other, whatever the clock begins with.
    assert [event["ts"] for event in spans] == [0, -250_000, 500_000, -250_000]
    assert spans[0]["args"]["chunk"] == "abc"


def test_stages_and_the_fetches_that_they_wait_for_overlap_on_the_time_line(tmp_path):
    with TraceFile(tmp_path / "trace.json") as trace:
        for span in SPANS:
            trace(span)
    spans = {event["name"]: event for event in read(trace.path) if event["ph"] == "X"}
    fetch, retrieve = spans["fetch"], spans["retrieve"]
    assert retrieve["ts"] <= fetch["ts"]
    assert fetch["ts"] + fetch["dur"] <= retrieve["ts"] + retrieve["dur"]


def test_a_trace_that_was_cut_short_lacks_only_its_end(tmp_path):
    trace = TraceFile(tmp_path / "trace.json").open()
    trace(SPANS[1])
    trace._file.flush()
    begun = trace.path.read_text()
    assert json.loads(begun.rstrip(",\n") + "]")[-1]["name"] == "retrieve"
    trace.close()
    trace.close()
    trace(SPANS[2])
    assert "denoise" not in trace.path.read_text()


def test_a_trace_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"trace .*file/trace.json: cannot be written: "):
        TraceFile(tmp_path / "file" / "trace.json").open()


def test_log_lines_are_json_with_time_and_ids():
    stream = io.StringIO()
    log = JsonLog(stream, {"worker": "3"}, wall=lambda: 0.125)
    log(SPANS[0])
    log.event("warning", {"text": "ein Fehler, größer"})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first == {
        "at": "1970-01-01T00:00:00.125Z",
        "event": "fetch",
        "worker": "3",
        "track": "tier host",
        "seconds": 0.25,
        "tenant": "lab",
        "chunk": "abc",
        "index": 3,
        "bytes": 7,
    }
    assert second["text"] == "ein Fehler, größer"


def test_a_span_can_go_to_several(tmp_path):
    heard, stream = [], io.StringIO()
    both(heard.append, JsonLog(stream))(SPANS[1])
    assert heard == [SPANS[1]]
    assert json.loads(stream.getvalue())["event"] == "retrieve"
