"""Bring a folder back to exactly what its info.json counts, after a kill or a failure at any moment.

Safe to interrupt and to repeat: each step either does nothing or removes what no committed episode needs.
Only the one episode that was being committed can have left anything.
"""

from collections.abc import Callable
from pathlib import Path

from worldkv.dataset.durable import (
    cut_file,
    make_folder,
    publish,
    remove_file,
    remove_folder,
    sync,
    write_file,
)
from worldkv.dataset.layout import LEDGER, STAGING, STATS, TASKS, episode_files, episode_path
from worldkv.dataset.ledger import Entry, checksum, json_bytes, read_ledger, task_texts
from worldkv.dataset.schema import DatasetSchema
from worldkv.dataset.stats import Stats, merge, to_json
from worldkv.dataset.tables import read_row_stats, tasks_bytes
from worldkv.errors import OutputError

WORK = STAGING / "work"
"""Where files are written before they are published; the lock lies beside it."""


def recover(root: Path, schema: DatasetSchema) -> tuple[list[Entry], int]:
    """Remove all traces of an uncommitted episode; return the committed entries and the ledger's length."""
    remove_folder(root / WORK)
    entries, offset = read_ledger(root)
    for path in episode_files(schema.videos, len(entries)):
        remove_file(root / path)
    if entries:
        cut_file(root / LEDGER, offset)
        _restore(root, TASKS, entries, lambda: tasks_bytes(task_texts(entries)))
        _restore(root, STATS, entries, lambda: json_bytes(to_json(folded_stats(root, schema, entries))))
    else:
        for path in (LEDGER, TASKS, STATS):
            remove_file(root / path)
    return entries, offset


def folded_stats(root: Path, schema: DatasetSchema, entries: list[Entry]) -> Stats:
    """Return the statistics of the whole dataset from those of its episodes, merged in their order."""
    stats = read_row_stats(root / episode_path(0), schema)
    for entry in entries[1:]:
        stats = merge(stats, read_row_stats(root / episode_path(entry.episode_index), schema))
    return stats


def _restore(root: Path, path: Path, entries: list[Entry], rebuild: Callable[[], bytes]) -> None:
    expected, target = entries[-1].shared[path.as_posix()], root / path
    if target.exists() and checksum(target.read_bytes()) == expected:
        return
    contents = rebuild()
    found = checksum(contents)
    if found != expected:
        # Another version of the libraries would have to be at work, or an episode file was changed.
        raise OutputError(f"{target}: cannot be rebuilt as it was: expected xxh3 {expected}, found {found}")
    make_folder(root / WORK)
    staged = root / WORK / path.name
    write_file(staged, contents)
    publish(staged, target)
    sync(target.parent)
