"""What is written down of a job, and what becomes of it."""

from pathlib import Path

import pytest

from cluster.ledger import SILENT_SECONDS, JobState, Ledger, Tries, job_id, ledgers, new_record
from cluster.parcel import Finished
from cluster.storage import Storage, patiently
from worldkv.config import load
from worldkv.errors import ConfigError, JobError, OutputError
from worldkv.runs.batch import Took


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path) -> str:
    return str(tmp_path / "jobs") if request.param == "folder" else f"memory://{tmp_path}"


def record(*overrides: str):
    return new_record(load(None, ["output.folder=runs/a", *overrides]), base=Path("/w"), command="x", priority=0)


def test_one_folder_is_one_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert job_id(Path("runs/a")) == job_id(tmp_path / "runs/a") != job_id(tmp_path / "runs/b")
    assert job_id(Path("runs/a")).startswith("a-")


def test_objects_are_there_whole_or_not_at_all_and_are_listed_by_name(url):
    storage = Storage(url)
    assert storage.get("a/b") is None
    assert storage.names() == storage.names("a") == []
    storage.put("a/b", b"one")
    storage.put("a/b", b"two")
    storage.put("a/c", b"three")
    assert storage.get("a/b") == b"two"
    assert storage.names("a") == ["b", "c"]
    storage.remove("a/b")
    storage.remove("a/b")
    assert storage.names("a") == ["c"]
    storage.remove("a")
    assert storage.names("a") == []


def test_an_object_half_written_is_not_there(tmp_path):
    (tmp_path / "x.part").write_bytes(b"ha")
    assert Storage(str(tmp_path)).names() == []


def test_a_store_that_refuses_is_an_output_error_that_names_the_object(tmp_path):
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(OutputError, match=r"jobs/x/y: cannot be written: File exists"):
        Storage(str(tmp_path / "jobs")).put("x/y", b"")


def test_a_url_that_means_nothing_is_refused():
    with pytest.raises(ConfigError, match="'warp://x' cannot be opened"):
        Storage("warp://x").check()


def test_patience_outlasts_a_fault_that_passes_and_no_other(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cluster.storage.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("cluster.storage.time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    faults: list[OutputError] = []

    def until_then(seconds: float) -> str:
        if clock[0] < seconds:
            raise OutputError("busy")
        return "done"

    assert patiently(lambda: until_then(7), 10, failed=faults.append) == "done"
    assert faults
    with pytest.raises(OutputError, match="busy"):
        patiently(lambda: until_then(99), 10)


def test_a_job_is_found_again_and_another_request_for_its_folder_starts_afresh(url):
    ledger = Ledger(url, record().id)
    assert ledger.record() is None
    ledger.enter(record(), resume=False)
    ledger.put_finished(3, Finished("e", (), Took()))
    assert ledgers(url) == [ledger]
    ledger.enter(record(), resume=True)
    assert ledger.finished_numbers() == {3}
    ledger.enter(record("worlds.count=9"), resume=True)
    assert ledger.finished_numbers() == set()
    assert ledger.record().run_config().worlds.count == 9


def test_a_resumed_job_is_not_cancelled_any_more(url):
    ledger = Ledger(url, "j")
    ledger.enter(record(), resume=False)
    ledger.cancel()
    assert ledger.cancelled
    ledger.enter(record(), resume=True)
    assert not ledger.cancelled


def test_a_finished_batch_takes_its_checkpoint_away_and_goes_when_it_is_committed(url):
    ledger = Ledger(url, "j")
    ledger.put_checkpoint(1, b"damaged")
    assert ledger.checkpoint(1) is None
    ledger.put_finished(1, Finished("e", (), Took()))
    assert Storage(url).names("j/batches/000001") == ["finished"]
    ledger.clear(1)
    assert ledger.finished_numbers() == set()


def test_tries_are_counted_over_drivers(url):
    for number in range(4):
        tries = Ledger(url, "j").tries(5).and_failed(f"reason {number}", most=4)
        Ledger(url, "j").note_tries(5, tries)
    assert Ledger(url, "j").tries(5) == Tries(4, ("reason 1", "reason 2", "reason 3"), True)
    assert list(Ledger(url, "j").set_aside()) == [5]


def test_a_driver_that_went_without_a_word_has_stopped(url):
    ledger = Ledger(url, "j")
    ledger.tell(JobState("running", 100.0, "host:1", 2, 8, "world 3", ("worker 0",)))
    state = ledger.state()
    assert state.now(100.0 + SILENT_SECONDS).standing == "running"
    assert state.now(101.0 + SILENT_SECONDS).standing == "stopped"


def test_a_damaged_record_is_named(tmp_path):
    ledger = Ledger(str(tmp_path), "j")
    ledger.enter(record(), resume=False)
    (tmp_path / "j" / "job.json").write_text("{")
    with pytest.raises(JobError, match=r"j/job\.json: damaged"):
        ledger.record()
    (tmp_path / "j" / "job.json").write_text('{"id": "j"}')
    with pytest.raises(JobError, match="not a JobRecord of this version"):
        ledger.record()
