"""The folder of a run: claimed for one configuration, holding what the run leaves behind.

run.yaml        the resolved configuration; its presence marks the folder as a run's
dataset/        every rollout, LeRobotDataset v3.0
timings.json    wall-clock figures, which the dataset must not hold to be the same each time
summary.json, report.html, video.mp4, poster.png, preview.gif
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from worldkv.dataset.durable import publish, remove_file, write_file
from worldkv.errors import OutputError
from worldkv.writable import check_writable

if TYPE_CHECKING:
    from worldkv.config import RunConfig

CONFIG = "run.yaml"
DATASET = "dataset"
TIMINGS = "timings.json"
SUMMARY = "summary.json"


def check(config: RunConfig, *, resume: bool) -> None:
    """Raise what `claim` would, as far as that can be known without writing."""
    folder = config.output.folder
    try:
        check_writable(folder)
    except OSError as fault:
        raise _unusable(folder, fault) from fault
    held = _held(folder)
    if held is not None and not resume:
        raise OutputError(
            f"{folder}: already holds a run; go on with it by --resume, or choose another with --set output.folder=..."
        )
    if held is not None and (difference := _difference(held, config)):
        raise OutputError(
            f"{folder}: holds another run ({difference}), which is left as it is; "
            "remove it, or choose another with --set output.folder=..."
        )


def claim(config: RunConfig, *, resume: bool) -> Path:
    """Make the run's folder, or with `resume` take up the one that holds this very run.

    Raises OutputError when it cannot be written, or holds another run or anything else; it is then as before.
    """
    check(config, resume=resume)
    folder = config.output.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise _unusable(folder, fault) from fault
    write_text(folder / CONFIG, config.to_yaml())
    return folder


def _held(folder: Path) -> str | None:
    """The configuration that the folder was claimed for; None when it is empty or not there."""
    if not folder.exists():
        return None
    try:
        # What a kill leaves while the very first file is written counts as nothing.
        there = sorted(path.name for path in folder.iterdir() if path.name != _partial(folder / CONFIG).name)
        held = (folder / CONFIG).read_text() if CONFIG in there else None
    except (OSError, UnicodeDecodeError) as fault:
        raise _unusable(folder, fault) from fault
    if held is None and there:
        raise OutputError(
            f"{folder}: holds {there[0]}, which is no run's; choose an empty or new one with --set output.folder=..."
        )
    return held


def _unusable(folder: Path, fault: OSError | UnicodeDecodeError) -> OutputError:
    reason = getattr(fault, "strerror", None) or fault
    return OutputError(
        f"{folder}: cannot be used as output folder: {reason}; choose another with --set output.folder=..."
    )


def _difference(held: str, config: RunConfig) -> str:
    """The first key in which the two configurations differ, '' when none does; where they lie does not matter."""
    try:
        there = dict(_leaves(yaml.safe_load(held)))
    except (yaml.YAMLError, AttributeError):
        return f"{CONFIG} is damaged"
    wanted = dict(_leaves(yaml.safe_load(config.to_yaml())))
    for key in sorted((there.keys() | wanted.keys()) - {"output.folder"}):
        if there.get(key) != wanted.get(key):
            return f"{key} is {_said(there, key)} there, {_said(wanted, key)} here"
    return ""


def _said(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "not set"


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys as --set spells them, entries of lists by their number."""
    for key, value in section.items():
        part = {str(place): entry for place, entry in enumerate(value)} if isinstance(value, list) else value
        if isinstance(part, Mapping) and part:
            yield from _leaves(part, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def write_text(path: Path, text: str) -> None:
    """As `write_whole`."""
    write_whole(path, text.encode())


def write_whole(path: Path, contents: bytes) -> None:
    """Replace the file's content at once or not at all; on the disk on return. Raises OutputError."""
    partial = _partial(path)
    try:
        write_file(partial, contents)
        publish(partial, path)
    except OSError as fault:
        raise OutputError(f"{path}: cannot be written: {fault.strerror or fault}") from fault
    finally:
        _discard(partial)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _discard(partial: Path) -> None:
    try:
        remove_file(partial)
    except OSError:
        return  # in a folder that cannot be written there is nothing to discard, and the fault is being told


def read_timings(folder: Path) -> dict[str, Any]:
    """What earlier pieces of the run measured, {} when there are none. Raises OutputError on a damaged file."""
    path = folder / TIMINGS
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as fault:
        raise OutputError(f"{path}: damaged ({fault}); remove it: it only holds how fast the run was") from fault
