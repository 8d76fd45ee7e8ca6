import errno
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_runs import flat_world, run_of

from worldkv.dataset import durable
from worldkv.errors import OutputError
from worldkv.report import write_report
from worldkv.results import RunResult

NAMES = ["poster.png", "preview.gif", "report.html", "video.mp4"]


@pytest.fixture
def small() -> RunResult:
    return run_of([flat_world({"full": [60] * 3 + [20] * 3}, (4,), given=3)])


def test_a_report_is_four_files_and_the_page_holds_the_video(small: RunResult, tmp_path: Path) -> None:
    files = write_report(small, tmp_path / "runs" / "demo")
    assert sorted(path.name for path in files.page.parent.iterdir()) == NAMES
    assert "data:video/mp4;base64," in files.page.read_text()
    assert files.video.read_bytes()[4:8] == b"ftyp"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for what takes seconds and is not about files."""
    for name in ("video", "poster", "preview"):
        monkeypatch.setattr(f"worldkv.report.video.{name}", lambda run: b"a picture or more")
    monkeypatch.setattr("worldkv.report.page.page", lambda run, *, film, still: "a page")


@pytest.mark.usefixtures("quick")
def test_a_report_replaces_an_older_one(small: RunResult, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("older")
    write_report(small, tmp_path)
    assert (tmp_path / "report.html").read_text() == "a page"


def test_a_folder_that_cannot_be_made_is_one_clear_error(small: RunResult, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(OutputError, match=str(tmp_path / "runs")):
        write_report(small, tmp_path / "runs" / "demo")


@pytest.mark.usefixtures("quick")
def test_a_full_disk_names_the_file_and_leaves_nothing_half_written(
    small: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poster.png").write_bytes(b"older")
    write_file = durable.write_file

    def fill_up(path: Path, contents: bytes) -> None:
        if "poster" in path.name:
            write_file(path, contents[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, contents)

    monkeypatch.setattr(durable, "write_file", fill_up)
    with pytest.raises(OutputError, match=r"poster\.png: No space left on device"):
        write_report(small, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poster.png", "video.mp4"]
    assert (tmp_path / "poster.png").read_bytes() == b"older"


def test_importing_the_report_loads_nothing_heavy() -> None:
    heavy = "{'matplotlib', 'PIL', 'av', 'torch', 'pyarrow', 'scipy'}"
    code = f"import sys, worldkv.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
