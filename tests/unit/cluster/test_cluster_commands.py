"""The commands on jobs, called in this process: none of them needs a cluster."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.cli import main
from cluster.ledger import JobState, Ledger, Tries, new_record
from worldkv.config import load


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def worldkv(monkeypatch, capsys, tmp_path) -> Callable[..., Said]:
    """Run the whole command line with these words, in `tmp_path`."""

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["worldkv", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("WORLDKV_JOBS", raising=False)
    return run


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    """Of a job in runs/.jobs, half done."""
    config = load(None, ["output.folder=runs/a", "worlds.count=4", "policies=worldkv"])
    record = new_record(config, base=tmp_path, command="worldkv rollout", priority=2)
    ledger = Ledger(str(tmp_path / "runs/.jobs"), record.id)
    ledger.enter(record, resume=False)
    ledger.tell(JobState("running", time.time(), "host:1", 2, 4, "world 2", ("worker 0 on host | world 2",)))
    return ledger


def test_jobs_are_listed_with_how_far_they_are(worldkv, ledger, tmp_path):
    said = worldkv("jobs", "list")
    assert said.code == 0
    for text in (ledger.id, "running", "2 of 4", "default", str(tmp_path / "runs/a")):
        assert text in said.out
    assert worldkv("jobs", "list", "--jobs", "elsewhere").code == 0


def test_the_status_of_a_job_tells_of_workers_and_of_what_was_set_aside(worldkv, ledger):
    ledger.note_tries(1, Tries(3, ("worker 0 died",), True))
    said = worldkv("jobs", "status", ledger.id)
    for text in ("4 worlds under worldkv", "priority 2", "host:1", "worker 0 on host", "batch 1 after 3 tries"):
        assert text in said.out


def test_a_cancelled_job_is_told_to_end(worldkv, ledger):
    assert not ledger.cancelled
    assert f"worldkv jobs resume {ledger.id}" in worldkv("jobs", "cancel", ledger.id).out
    assert ledger.cancelled


@pytest.mark.parametrize("verb", ["status", "cancel", "resume"])
def test_a_job_that_is_not_there_is_one_line(worldkv, verb):
    said = worldkv("jobs", verb, "nothing")
    assert (said.code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    assert line.startswith("error: job nothing: not in ")


def test_a_rollout_that_only_resolves_starts_nothing(worldkv, tmp_path):
    said = worldkv("rollout", "--dry-run", "--set", "worlds.count=7")
    assert said.code == 0
    assert "count: 7" in said.out
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_holds_something_else_is_refused_before_anything_starts(worldkv, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    said = worldkv("rollout", "--set", f"output.folder={tmp_path}")
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(f"error: {tmp_path}: holds thesis.tex, which is no run's")
    assert "starting" not in said.err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("cluster", "up", "--tenants", "none.yaml"), "none.yaml: no such configuration file"),
        (("cluster", "up", "--host", "10.255.0.1"), "--host 10.255.0.1: whoever reaches it could run anything here"),
        (("cluster", "up", "--join", "127.0.0.1:6379"), "--join 127.0.0.1:6379: a head on the loopback device stays"),
        (("cluster", "up", "--join", "x:1", "--tenants", "t"), "--tenants t: the head keeps the tenants"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_about_clusters_are_one_line(worldkv, monkeypatch, words, fault):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    said = worldkv(*words)
    assert said.code == 2
    assert said.err.startswith(f"error: {fault}")


def test_the_example_of_tenants_is_one():
    from cluster.admission import TenantsConfig
    from worldkv.config import load_as

    root = Path(__file__).resolve().parents[3]
    names = [tenant.name for tenant in load_as(TenantsConfig, root / "configs/cluster/tenants.yaml").tenants]
    assert names == ["default", "simulation", "interactive", "visitors"]
