"""Bring a folder back to exactly what its info.json counts, after a kill or a failure at any moment.

Safe to interrupt and to repeat: each step either does nothing or removes what no committed episode needs.
Only the one episode that was being committed can have left anything.
"""

from collections.abc import Callable
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

from worldkv.dataset.durable import (
    cut_file,
    make_folder,
    publish,
    remove_file,
    remove_folder,
    sync,
    write_file,
)
from worldkv.dataset.layout import LEDGER, STAGING, STATS, TASKS, episode_files, row_path, row_position
from worldkv.dataset.ledger import Entry, checksum, json_bytes, read_ledger, row_file_sums, task_texts
from worldkv.dataset.rows import read_rows, row_stats, rows_bytes, tasks_bytes
from worldkv.dataset.schema import DatasetSchema
from worldkv.dataset.stats import Stats, merge, to_json
from worldkv.errors import OutputError

WORK = STAGING / "work"
"""Where files are written before they are published; the lock lies beside it."""


def recover(root: Path, schema: DatasetSchema) -> tuple[list[Entry], int]:
    """Remove all traces of an uncommitted episode; return the committed entries and the ledger's length."""
    remove_folder(root / WORK)
    entries, offset = read_ledger(root)
    for path in episode_files(schema.videos, len(entries)):
        remove_file(root / path)
    if row_position(len(entries)) == 0:
        remove_file(root / row_path(len(entries)))
    if entries:
        cut_file(root / LEDGER, offset)
        _restore(root, row_path(len(entries) - 1), entries, lambda: rows_bytes(newest_rows(root, schema, entries)))
        _restore(root, TASKS, entries, lambda: tasks_bytes(task_texts(entries)))
        _restore(root, STATS, entries, lambda: json_bytes(to_json(folded_stats(root, schema, entries))))
    else:
        for path in (LEDGER, TASKS, STATS):
            remove_file(root / path)
    return entries, offset


def folded_stats(root: Path, schema: DatasetSchema, entries: list[Entry]) -> Stats:
    """Return the statistics of the whole dataset from those of its episodes, merged in their order."""
    paths = row_file_sums(entries)
    return reduce(merge, chain.from_iterable(row_stats(read_rows(root / path, schema), schema) for path in paths))


def newest_rows(root: Path, schema: DatasetSchema, entries: list[Entry]) -> Any:
    """Return the committed rows in the newest file of rows."""
    rows = read_rows(root / row_path(len(entries) - 1), schema)
    return rows.slice(0, row_position(len(entries) - 1) + 1)


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
