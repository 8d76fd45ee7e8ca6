"""A real Prometheus scrapes a real run: every panel of every dashboard has something to show, and no alert fires."""

import gzip
import itertools
import json
import math
import re
import shlex
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
import typer
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from typer.testing import CliRunner
from watched_run import Watched, free_port, serving, watched_run

from monitoring import commands
from monitoring.alerts import ALERTS
from monitoring.dashboards import DASHBOARDS
from monitoring.exporter import Access, Exporter, Viewer
from monitoring.setup import Wanted, write
from monitoring.snapshot import Snapshot
from worldkv.errors import ConfigError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (apt: prometheus)"),
]
PANELS = [(board, panel, query) for board in DASHBOARDS for panel in board.panels for query in panel.queries]
SHORT = ("worlds.count=3", "trajectory.video_frames=48", "sampling.denoise_steps=2")


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Watched]:
    with watched_run(tmp_path_factory.mktemp("watched"), SHORT) as watched:
        yield watched


@pytest.mark.parametrize(
    ("board", "panel", "query"), PANELS, ids=[f"{b.name}-{p.title}-{q.legend}" for b, p, q in PANELS]
)
def test_every_panel_shows_data_of_the_run(board, panel, query, watched):
    found = watched.server.series(query.expr, watched.started, watched.ended)
    finite = [value for _, points in found for _, value in points if math.isfinite(value)]
    assert finite, f"{board.title}, {panel.title}: nothing finite for {query.expr}"
    if panel.unit == "share":
        assert all(0.0 <= value <= 1.5 for value in finite), (panel.title, max(finite))
    assert panel.unit == "decibels" or min(finite) >= 0.0


def test_the_server_saw_what_the_run_counted(watched):
    worker = watched.exporter.snapshot.workers[0]
    (row,) = watched.server.series("worldkv_video_frames_total", watched.ended - 1, watched.ended)
    assert row[1][-1][1] == worker.work.video_frames > 0
    (hits,) = watched.server.series("worldkv_hits_total", watched.ended - 1, watched.ended)
    assert hits[1][-1][1] == worker.work.memory.hits > 0


def test_lookups_are_hits_and_misses_at_every_moment(watched):
    asked = "sum by (tier, tenant) (worldkv_tier_lookups_total)"
    given = "sum by (tier, tenant) (worldkv_tier_hits_total)"
    rest = f"{asked} - {given} - sum by (tier, tenant) (worldkv_tier_misses_total)"
    whole = "sum(worldkv_lookups_total) - sum(worldkv_hits_total) - sum(worldkv_misses_total)"
    for expr, lines in (rest, 4), (whole, 1):
        found = watched.server.series(expr, watched.started, watched.ended)
        assert len(found) == lines
        assert {value for _, points in found for _, value in points} == {0.0}


def test_the_server_understands_all_rules_and_nothing_fires(watched):
    (group,) = watched.server.get("/api/v1/rules")["groups"]
    assert len(group["rules"]) == len(ALERTS)
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []


PICTURED_SECONDS = 8.0
"""Windows of the alerts are longer than the run; here they are as long as pictures have them."""


def seconds(duration: str) -> float:
    """Of `10m` and the like."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def longest_stretch(points: list[tuple[float, float]]) -> float:
    """Seconds from the first to the last of those that follow each other by the second."""
    longest, since = 0.0, points[0][0]
    for (before, _), (now, _) in itertools.pairwise(points):
        since = since if now - before < 1.5 else now
        longest = max(longest, now - since)
    return longest


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_no_alert_would_have_fired_with_its_times_shortened_to_the_run(alert, watched):
    """A moment in which its expression holds is none: a busy machine may miss a scrape, eight seconds a prefetch."""
    windows = re.findall(r"\[(\d+[mh])\]", alert.expr)
    shorter = PICTURED_SECONDS / max(map(seconds, windows), default=seconds("15m"))
    expr = re.sub(r"\[\d+[mh]\]", f"[{PICTURED_SECONDS:g}s]", alert.expr)
    for labels, points in watched.server.series(expr, watched.started + 10, watched.ended):
        assert longest_stretch(points) < shorter * seconds(alert.lasts), (labels, points)


def test_the_target_is_up_and_its_scrapes_are_fast(watched):
    (target,) = watched.server.get("/api/v1/targets")["activeTargets"]
    assert target["health"] == "up", target["lastError"]
    assert target["scrapePool"] == "worldkv"


def test_the_trace_shows_stages_sessions_and_tiers_side_by_side(watched):
    events = json.loads((watched.folder / "trace.json").read_text())
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    by_track = {name: [e for e in spans if tracks[e["tid"]] == name] for name in tracks.values()}
    assert {"rollout", "tier device", "tier host", "tier disk", "tier durable"} <= set(by_track)
    assert {name for name in by_track if name.startswith("session ")} == {
        "session rooms-1/worldkv",
        "session rooms-2/worldkv",
        "session rooms-3/worldkv",
    }
    # Every fetch of a retrieval lies within it: what a stall waited for can be seen beneath it.
    retrievals = [(e["ts"], e["ts"] + e["dur"]) for e in by_track["rollout"] if e["name"] == "retrieve"]
    fetches = [e for name, row in by_track.items() if name.startswith("tier ") for e in row if e["name"] == "fetch"]
    assert len(fetches) == watched.exporter.snapshot.workers[0].work.memory.hits
    for fetch in fetches:
        middle = fetch["ts"] + fetch["dur"] / 2
        assert any(begin <= middle <= end for begin, end in retrievals)
    # What was brought early: in lanes side by side where several chunks were on their way, all of them told.
    lanes = [sorted(row, key=lambda e: e["ts"]) for name, row in by_track.items() if name.startswith("prefetch ")]
    issued = watched.exporter.snapshot.workers[0].work.memory.prefetch.issued
    assert 0 < sum(map(len, lanes)) == issued
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for row in lanes for a, b in itertools.pairwise(row))
    stages = sorted(by_track["rollout"], key=lambda e: e["ts"])
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for a, b in itertools.pairwise(stages))


def test_the_log_tells_tenant_session_and_chunk_of_what_the_metrics_count(watched):
    lines = [json.loads(line) for line in (watched.folder / "log.jsonl").read_text().splitlines()]
    memory = watched.exporter.snapshot.workers[0].work.memory
    fetches = [line for line in lines if line["event"] == "fetch"]
    assert len(fetches) == memory.hits
    assert {line["tenant"] for line in fetches} == {"default"}
    assert all(line["chunk"] and line["index"] >= 0 for line in fetches)
    assert sum(line.get("retrieved", 0) for line in lines) == memory.hits
    assert {line["session"] for line in lines if "session" in line} == {f"rooms-{world}/worldkv" for world in (1, 2, 3)}
    text = watched.exporter.metrics(Viewer(None)).body.decode()
    assert fetches[0]["chunk"] not in text
    assert "rooms-1" not in text


def top_app() -> typer.Typer:
    app = typer.Typer()
    app.command("top")(commands.top)
    return app


def ask(address: str, path: str, token: str | None = None, **headers: str) -> tuple[int, str, str]:
    """(status, type, body)"""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as fault:
        return fault.code, fault.headers["Content-Type"], fault.read().decode()


def test_an_exporter_with_tokens_shows_each_what_is_theirs(watched):
    access = Access("operator", {"default": "theirs", "other": "others"})
    with Exporter(access) as exporter:
        address = exporter.start()
        assert ask(address, "/healthz")[0] == 503
        exporter.publish(watched.exporter.snapshot)
        assert ask(address, "/healthz")[0] == 200
        for path in ("/metrics", "/targets", "/snapshot"):
            assert ask(address, path)[0] == 401
            assert ask(address, path, "wrong")[0] == 401
            assert ask(address, path, "operator")[0] == 200
        everything, theirs = ask(address, "/metrics", "operator")[2], ask(address, "/metrics", "theirs")[2]
        assert 'worker="local"' in everything
        assert 'tenant="default"' in theirs
        assert 'worker="local"' not in theirs
        assert "tenant" not in ask(address, "/metrics", "others")[2]
        for path in ("/targets", "/snapshot"):
            assert ask(address, path, "theirs")[0] == 403
        assert ask(address, "/nothing", "operator")[0] == 404


def test_the_format_is_what_was_asked_for(watched):
    open_metrics = ask(watched.address, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert open_metrics[1].startswith("application/openmetrics-text; version=1.0.0")
    assert list(text_string_to_metric_families(open_metrics[2]))
    request = urllib.request.Request(f"http://{watched.address}/metrics", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert b"worldkv_lookups_total" in gzip.decompress(answer.read())
    plain = ask(watched.address, "/metrics", Accept="text/plain")
    assert plain[1].startswith("text/plain; version=0.0.4")
    assert "# EOF" not in plain[2]


def test_the_snapshot_can_be_fetched_whole(watched):
    status, kind, body = ask(watched.address, "/snapshot")
    assert (status, kind) == (200, "application/json")
    assert Snapshot.from_json(body, watched.address) == watched.exporter.snapshot


def test_top_shows_the_run(watched):
    result = CliRunner().invoke(top_app(), [watched.address, "--once"], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "1 of 1 workers ready" in result.output
    assert "3 of 3" in result.output


def test_top_without_an_exporter_or_without_the_right_token_is_one_clear_line(watched):
    with pytest.raises(ConfigError, match=r"exporter http://127.0.0.1:1/snapshot: cannot be asked: .*refused"):
        commands.ask("127.0.0.1:1", None)
    with Exporter(Access("operator")) as exporter:
        address = exporter.start()
        with pytest.raises(ConfigError, match="answers 401: a bearer token is needed"):
            commands.ask(address, "wrong")
        with pytest.raises(ConfigError, match="answers 503: no figures yet"):
            commands.ask(address, "operator")
        exporter.publish(watched.exporter.snapshot)
        assert commands.ask(address, "operator") == watched.exporter.snapshot


def test_the_command_that_monitor_up_says_starts_a_server_that_finds_all_exporters_and_may_read_them(watched, tmp_path):
    token = tmp_path / "token"
    token.write_text("operator")
    with Exporter(Access("operator", {"default": "theirs"})) as exporter:
        address = exporter.start()
        exporter.publish(replace(watched.exporter.snapshot, exporters=(address,)))
        port = free_port()
        wanted = Wanted(tmp_path / "up", (), f"http://{address}/targets", token, prometheus=f"127.0.0.1:{port}")
        command = [*shlex.split(write(wanted).prometheus), "--log.level=error"]
        with serving(command, f"http://127.0.0.1:{port}") as server:
            until = time.monotonic() + 60
            targets: list[dict] = []
            while time.monotonic() < until and [target["health"] for target in targets] != ["up"]:
                time.sleep(0.5)
                targets = server.get("/api/v1/targets")["activeTargets"]
            assert [target["health"] for target in targets] == ["up"], targets
            assert targets[0]["scrapeUrl"] == f"http://{address}/metrics"


def test_a_port_that_is_taken_is_one_clear_line(watched):
    host, _, port = watched.address.partition(":")
    with pytest.raises(ConfigError, match=rf"exporter address {watched.address}: .*in use"):
        Exporter().start(host, int(port))
