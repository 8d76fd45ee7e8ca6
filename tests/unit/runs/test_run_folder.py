"""Which folders a run may take, and that a refusal leaves them as they were."""

import errno
import os
import re
from pathlib import Path

import pytest

from worldkv.errors import OutputError
from worldkv.runs import folder as run_folder


def refuse(code: int):
    def step(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return step


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_folder_is_made_with_its_parents_and_marked(config, tmp_path, tree, resume):
    wanted = config("deep/er/run")
    assert run_folder.claim(wanted, resume=resume) == tmp_path / "deep/er/run"
    assert tree(tmp_path / "deep/er/run") == {"run.yaml": wanted.to_yaml().encode()}


def test_an_empty_folder_is_taken(config, tmp_path):
    (tmp_path / "run").mkdir()
    run_folder.claim(config(), resume=False)
    assert (tmp_path / "run/run.yaml").is_file()


def test_the_rest_of_a_claim_that_was_killed_is_no_content(config, tmp_path, tree):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.run.yaml.partial").write_text("model:")
    run_folder.claim(config(), resume=False)
    assert set(tree(tmp_path / "run")) == {"run.yaml"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_foreign_content_is_refused_and_left_alone(config, tmp_path, tree, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"run: holds thesis\.tex, which is no run's.*output\.folder"):
        run_folder.claim(config(), resume=resume)
    assert tree(tmp_path) == {"run/thesis.tex": b"years of work"}


def test_a_file_where_the_folder_should_be_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("a note")
    with pytest.raises(OutputError, match=r"run: cannot be used as output folder: .*run is a file; choose another"):
        run_folder.claim(config(), resume=False)


def test_a_file_among_the_parents_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("a note")
    with pytest.raises(OutputError, match=r"run/sub: cannot be used as output folder: .*run is a file"):
        run_folder.claim(config("run/sub"), resume=False)


def test_the_same_run_is_taken_up_only_with_resume(config):
    run_folder.claim(config(), resume=False)
    with pytest.raises(OutputError, match=r"already holds a run; go on with it by --resume"):
        run_folder.claim(config(), resume=False)
    run_folder.claim(config(), resume=True)


def test_another_run_is_refused_naming_the_first_difference(config, tmp_path, tree):
    run_folder.claim(config(), resume=False)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"another run \(worlds\.count is 3 there, 4 here\), which is left as it is"):
        run_folder.claim(config("run", "worlds.count=4"), resume=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("policies=[full, sliding]", 'policies.0 is "worldkv" there, "full" here'),
        ("policies=[worldkv]", 'policies.1 is "sliding" there, not set here'),
    ],
)
def test_of_lists_that_differ_the_first_entry_is_named(config, change, said):
    run_folder.claim(config("run", "policies=[worldkv, sliding]"), resume=False)
    with pytest.raises(OutputError, match=re.escape(f"another run ({said})")):
        run_folder.claim(config("run", change), resume=True)


def test_a_run_goes_by_what_it_does_and_not_by_how_its_folder_is_spelled(config, tmp_path, monkeypatch):
    run_folder.claim(config(), resume=False)
    monkeypatch.chdir(tmp_path)
    assert run_folder.claim(config("x", "output.folder=run"), resume=True) == Path("run")


@pytest.mark.parametrize("content", ["{", "3", ""])
def test_a_damaged_mark_is_another_run(config, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.yaml").write_text(content)
    with pytest.raises(OutputError, match=r"run\.yaml is damaged"):
        run_folder.claim(config(), resume=True)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_made_is_named_with_the_reason(config, monkeypatch, code):
    monkeypatch.setattr(os, "mkdir", refuse(code))
    with pytest.raises(OutputError, match=f"run: cannot be used as output folder: {os.strerror(code)}"):
        run_folder.claim(config(), resume=False)


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_a_claim_that_cannot_be_written_leaves_no_file(config, tmp_path, tree, monkeypatch, step, code):
    monkeypatch.setattr(os, step, refuse(code))
    with pytest.raises(OutputError, match=rf"run\.yaml: cannot be written: {os.strerror(code)}"):
        run_folder.claim(config(), resume=False)
    assert tree(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        run_folder.claim(config(), resume=False)


def test_text_is_replaced_whole_or_not_at_all(tmp_path, tree, monkeypatch):
    path = tmp_path / "summary.json"
    run_folder.write_text(path, "first")
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OutputError, match=r"summary\.json: cannot be written: No space left"):
        run_folder.write_text(path, "second")
    assert tree(tmp_path) == {"summary.json": b"first"}


def test_timings_are_empty_before_anything_ran_and_damaged_ones_are_named(tmp_path):
    assert run_folder.read_timings(tmp_path) == {}
    (tmp_path / "timings.json").write_text("{")
    with pytest.raises(OutputError, match=r"timings\.json: damaged .*remove it"):
        run_folder.read_timings(tmp_path)
