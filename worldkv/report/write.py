"""The files of a report, written one by one, each complete before its name appears."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worldkv.errors import OutputError

if TYPE_CHECKING:
    from worldkv.results import RunResult


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` left in the run folder."""

    video: Path
    """Truth and policies side by side; h264 mp4."""
    poster: Path
    """The most telling picture of the video; png."""
    preview: Path
    """One world, small, for a README; gif."""
    page: Path
    """Everything about the run; html that needs no other file and no network."""


def write_report(result: RunResult, folder: Path) -> ReportFiles:
    """Make video, poster, preview and page of a run in `folder`, which is made if need be; replaces older ones.

    Takes seconds: it draws and encodes on one core. Raises OutputError naming the path when the folder cannot be
    written or the disk is full; what was there under the four names is then still whole.
    """
    # Imported here because drawing and video libraries take a second to load, which `--help` should not wait for.
    from worldkv.dataset.durable import make_folder, output_faults
    from worldkv.report.page import page
    from worldkv.report.video import poster, preview, video

    files = ReportFiles(folder / "video.mp4", folder / "poster.png", folder / "preview.gif", folder / "report.html")
    with output_faults(folder):
        make_folder(folder)
        film = video(result)  # which needs room for a temporary file
    still = poster(result)
    _publish(files.video, film)
    _publish(files.poster, still)
    _publish(files.preview, preview(result))
    _publish(files.page, page(result, film=film, still=still).encode())
    return files


def _publish(path: Path, contents: bytes) -> None:
    from worldkv.dataset.durable import publish, remove_file, write_file

    staged = path.with_name(f".{path.name}.part")
    try:
        write_file(staged, contents)
        publish(staged, path)
    except OSError as error:
        # Not what the error itself names: nobody knows of the staged file.
        raise OutputError(f"{path}: {error.strerror or error}") from error
    finally:
        remove_file(staged)
