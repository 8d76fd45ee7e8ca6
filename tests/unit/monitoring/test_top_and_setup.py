"""`worldkv top` and `worldkv cluster monitor up`, as far as nothing has to listen."""

import io
import json
import shlex
from dataclasses import replace

import pytest
import typer
import yaml
from rich.console import Console
from simulated_cluster import Trouble, snapshot
from typer.testing import CliRunner

from monitoring import commands
from monitoring.setup import Wanted, write
from monitoring.snapshot import Snapshot
from monitoring.view import MOST_ROWS, draw, size
from worldkv.errors import ConfigError, OutputError


def shown(now: Snapshot, before: Snapshot | None = None, asked_at: float | None = None) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(draw(now, before, now.taken_at if asked_at is None else asked_at))
    return console.file.getvalue()


def row(text: str, first: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(first))


def test_top_shows_workers_tiers_tenants_and_jobs():
    text = shown(snapshot(11), snapshot(10))
    assert text.startswith("4 of 4 workers ready | 60.0 video frames/s | hit rate 99% | figures 0 s old")
    assert "node-0" in row(text, "worker-0")
    # 75 chunks of 12 frames a minute.
    assert "15.0" in row(text, "worker-0")
    assert "90% 61 °C" in row(text, "worker-0")
    assert "256 GiB" in row(text, "host")
    assert "100%" in row(text, "host")
    assert "5.0 ms" in row(text, "host")
    assert row(text, "lab").split()[1:3] == ["8", "3"]
    assert "22 of 100000" in row(text, "job-0")
    assert "120" in row(text, "job-0")


def test_the_first_look_has_nothing_to_compare_with():
    text = shown(snapshot(10))
    assert "| - video frames/s |" in text.splitlines()[0]
    assert " - " in row(text, "worker-0")


def test_a_worker_that_was_restarted_shows_no_negative_pace():
    before, now = snapshot(10), snapshot(11)
    fresh = replace(now.workers[0], restarts=1, work=snapshot(0).workers[0].work)
    text = shown(replace(now, workers=(fresh, *now.workers[1:])), before)
    assert "-1" not in row(text, "worker-0")
    assert "45.0 video frames/s" in text


def test_a_cluster_of_a_thousand_workers_is_cut_short():
    text = shown(snapshot(1, workers=1000))
    assert f"worker-{MOST_ROWS - 1}" in text
    assert f"worker-{MOST_ROWS} " not in text
    assert f"and {1000 - MOST_ROWS} more" in text


def test_stale_figures_and_faults_are_said_first():
    now = snapshot(10, Trouble(quarantined=0.1))
    text = shown(now, asked_at=now.taken_at + 90)
    assert "figures 90 s old | 4 faults and damaged chunks" in text.splitlines()[0]


def test_an_empty_snapshot_can_be_shown():
    assert "0 of 0 workers ready" in shown(Snapshot(0.0))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 * 2**20, "300 MiB"), (2**42, "4.0 TiB")]
)
def test_sizes_for_people(count, text):
    assert size(count) == text


def cli() -> typer.Typer:
    app = typer.Typer()
    app.command("top")(commands.top)
    app.add_typer(commands.monitor, name="monitor")
    return app


def test_the_top_command_shows_what_an_exporter_answers(monkeypatch):
    monkeypatch.setattr(commands, "ask", lambda exporter, token: snapshot(10))
    result = CliRunner().invoke(cli(), ["top", "--once"])
    assert result.exit_code == 0, result.output
    assert "4 of 4 workers ready" in result.output


def test_top_goes_on_with_the_last_figures_while_its_exporter_is_silent(monkeypatch):
    answers = iter([snapshot(10), ConfigError("exporter http://a:1/snapshot: cannot be asked"), snapshot(11)])
    drawn = []

    def ask(exporter, token):
        answer = next(answers, None)
        if answer is None:
            raise KeyboardInterrupt
        if isinstance(answer, ConfigError):
            raise answer
        return answer

    monkeypatch.setattr(commands, "ask", ask)
    monkeypatch.setattr(commands.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("monitoring.view.draw", lambda *seen: drawn.append(seen) or "")
    result = CliRunner().invoke(cli(), ["top"])
    assert result.exit_code == 0, result.output
    told = [(now.taken_at, before and before.taken_at, rest) for now, before, _, *rest in drawn]
    first, second = snapshot(10).taken_at, snapshot(11).taken_at
    silent = "exporter http://a:1/snapshot: cannot be asked"
    assert told == [(first, None, []), (first, None, [silent]), (second, first, [None])]


def test_figures_of_before_are_shown_with_why_there_are_no_newer_ones():
    console = Console(file=io.StringIO(), width=120)
    console.print(draw(snapshot(10), None, snapshot(10).taken_at + 7, "exporter a:1: cannot be asked"))
    first, second, *_ = console.file.getvalue().splitlines()
    assert first.rstrip().endswith("figures 7 s old")
    assert second.rstrip() == "exporter a:1: cannot be asked"


def test_what_there_is_none_of_has_no_table():
    assert "jobs" in shown(snapshot(10))
    assert "jobs" not in shown(replace(snapshot(10), jobs=()))


def test_monitor_up_writes_a_folder_and_says_two_commands(tmp_path):
    result = CliRunner().invoke(
        cli(), ["monitor", "up", "--folder", str(tmp_path / "m"), "--exporter", "10.0.0.1:9464", "--exporter", "b:1"]
    )
    assert result.exit_code == 0, result.output
    config = yaml.safe_load((tmp_path / "m" / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["10.0.0.1:9464", "b:1"]}]
    lines = result.output.splitlines()
    starts = [line for line in lines if line.startswith(("prometheus ", "env GF_"))]
    assert len(starts) == 2
    assert f"--config.file={tmp_path}/m/prometheus.yml" in shlex.split(starts[0])
    assert len(list((tmp_path / "m" / "dashboards").glob("*.json"))) == 6
    provider = yaml.safe_load((tmp_path / "m" / "grafana" / "dashboards" / "worldkv.yaml").read_text())
    assert provider["providers"][0]["options"]["path"] == str(tmp_path / "m" / "dashboards")


def test_service_discovery_and_token_reach_the_configuration(tmp_path):
    (tmp_path / "token").write_text("secret")
    write(Wanted(tmp_path / "m", discovery="http://head:9464/targets", token_file=tmp_path / "token"))
    text = (tmp_path / "m" / "prometheus.yml").read_text()
    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert job["http_sd_configs"][0]["url"] == "http://head:9464/targets"
    assert job["authorization"] == job["http_sd_configs"][0]["authorization"]
    assert job["authorization"] == {"credentials_file": str(tmp_path / "token")}
    assert "secret" not in text


def test_without_anything_to_scrape_the_usual_address_is_taken(tmp_path):
    result = CliRunner().invoke(cli(), ["monitor", "up", "--folder", str(tmp_path)])
    assert result.exit_code == 0
    assert commands.ADDRESS in (tmp_path / "prometheus.yml").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to scrape"),
        ({"exporters": ("nonsense",)}, "address 'nonsense': not HOST:PORT"),
        ({"exporters": ("a:99999",)}, "address 'a:99999'"),
        ({"exporters": ("a:1",), "prometheus": ":9"}, "address ':9'"),
    ],
)
def test_what_cannot_be_set_up_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        Wanted(tmp_path, **options)


def test_a_token_file_must_be_there_and_hold_a_token(tmp_path):
    with pytest.raises(ConfigError, match="there is none"):
        Wanted(tmp_path, ("a:1",), token_file=tmp_path / "none")
    with pytest.raises(ConfigError, match="No such file"):
        commands.read_token(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        commands.read_token(tmp_path / "empty")
    (tmp_path / "token").write_text("abc\n")
    assert commands.read_token(tmp_path / "token") == "abc"
    assert commands.read_token(None) is None


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"monitoring folder .* cannot be written"):
        write(Wanted(tmp_path / "file", ("a:1",)))


def test_dashboards_in_the_folder_are_those_checked_in(tmp_path):
    write(Wanted(tmp_path, ("a:1",)))
    for path in (tmp_path / "dashboards").iterdir():
        assert json.loads(path.read_text())["uid"] == path.stem
