"""One commit: stage, announce, publish, count. The order is what makes a kill at any moment harmless.

1. Stage: encode the videos below `.staging/work`, flush them, decode them again; write the tables.
2. Announce: append the episode's line to the ledger. Lines beyond info.json's count mean nothing yet.
3. Publish: rename videos, frames, then the shared files, rows first. Loaders that list folders see
   at most one episode beyond the count, and none of its frames is addressed.
4. Count: rename info.json. From here on the episode is committed.

The videos, which are nearly all the work, do not depend on the episode's number: several workers could encode
while one commits.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from worldkv.dataset.durable import make_folder, publish, remove_folder, sync, write_at, write_file
from worldkv.dataset.episode import Episode
from worldkv.dataset.frames import frame_columns, frames_bytes
from worldkv.dataset.layout import INFO, LEDGER, STATS, TASKS, data_path, row_path, row_position, video_path
from worldkv.dataset.ledger import Entry, checksum, info_bytes, json_bytes, load_json
from worldkv.dataset.recovery import WORK, newest_rows, recover
from worldkv.dataset.rows import episode_row, rows_bytes, tasks_bytes
from worldkv.dataset.schema import DatasetSchema
from worldkv.dataset.stats import Stats, column_stats, from_json, merge, to_json, video_stats
from worldkv.dataset.video import check_written, encode


class Commit(NamedTuple):
    """One committed episode, and with it the statistics of the whole dataset and the newest file of rows."""

    entry: Entry
    stats: Stats
    rows: Any


@dataclass
class Books:
    """What a writer remembers of the committed episodes; only `record` changes it."""

    keys: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    stats: Stats | None = None
    rows: Any = None
    """Arrow table of what the newest file of rows holds."""
    ledger_bytes: int = 0

    @classmethod
    def load(cls, root: Path, schema: DatasetSchema) -> "Books":
        """Recover the folder and return its books."""
        entries, ledger_bytes = recover(root, schema)
        if not entries:
            return cls()
        keys = {entry.key: entry.episode_index for entry in entries}
        tasks = {task: index for index, task in enumerate(dict.fromkeys(entry.task for entry in entries))}
        stats, rows = from_json(load_json(root / STATS)), newest_rows(root, schema, entries)
        return cls(keys, tasks, entries[-1].to_index, stats, rows, ledger_bytes)

    def task_index(self, task: str) -> int:
        """Return the index of a task, the next free one if it is new."""
        return self.tasks.get(task, len(self.tasks))

    def record(self, commit: Commit) -> None:
        """Enter an episode whose commit is complete."""
        entry = commit.entry
        self.tasks[entry.task] = self.task_index(entry.task)
        self.keys[entry.key] = entry.episode_index
        self.frames, self.stats, self.rows = entry.to_index, commit.stats, commit.rows
        self.ledger_bytes += len(entry.to_line())


def commit_episode(root: Path, schema: DatasetSchema, books: Books, episode: Episode, key: str) -> Commit:
    """Write an episode that fits the schema as the next one; on failure something may be left to recover."""
    work = root / WORK
    remove_folder(work)
    make_folder(work)
    commit = _stage(work, schema, books, episode, key)
    write_at(root / LEDGER, commit.entry.to_line(), books.ledger_bytes)
    _publish(root, work, [*commit.entry.files, *commit.entry.shared])
    return commit


def _stage(work: Path, schema: DatasetSchema, books: Books, episode: Episode, key: str) -> Commit:
    index, task_index = len(books.keys), books.task_index(episode.task)
    columns = frame_columns(schema, episode, episode_index=index, from_index=books.frames, task_index=task_index)
    episode_stats = {name: video_stats(frames) for name, frames in episode.all_videos().items()}
    episode_stats |= {name: column_stats(values) for name, values in columns.items()}
    row = episode_row(schema, episode, episode_stats, key, episode_index=index, from_index=books.frames)

    files = _stage_videos(work, schema, episode, index)
    files |= _stage_file(work, data_path(index), frames_bytes(schema, columns))

    stats = episode_stats if books.stats is None else merge(books.stats, episode_stats)
    tasks = [*books.tasks] if episode.task in books.tasks else [*books.tasks, episode.task]
    frames = books.frames + episode.length
    rows = pa.concat_tables([books.rows, row]) if row_position(index) else row
    shared = _stage_file(work, row_path(index), rows_bytes(rows))
    shared |= _stage_file(work, TASKS, tasks_bytes(tasks))
    shared |= _stage_file(work, STATS, json_bytes(to_json(stats)))
    shared |= _stage_file(work, INFO, info_bytes(schema, episodes=index + 1, frames=frames, tasks=len(tasks)))
    metadata = dict(sorted(episode.metadata.items()))
    entry = Entry(index, key, episode.task, books.frames, episode.length, metadata, files, shared)
    return Commit(entry, stats, rows)


def _stage_videos(work: Path, schema: DatasetSchema, episode: Episode, index: int) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, frames in episode.all_videos().items():
        path = video_path(name, index)
        files |= _stage_file(work, path, encode(frames, schema.fps, schema.encoder))
        check_written(_staged(work, path), frames, schema.fps, schema.encoder)
    return files


def _stage_file(work: Path, path: Path, contents: bytes) -> dict[str, str]:
    write_file(_staged(work, path), contents)
    return {path.as_posix(): checksum(contents)}


def _staged(work: Path, path: Path | str) -> Path:
    # One flat folder: making and removing the whole tree of folders would double the work of a commit.
    return work / str(path).replace("/", "~")


def _publish(root: Path, work: Path, paths: list[str]) -> None:
    *counted, info = paths
    for path in counted:
        make_folder((root / path).parent)
        publish(_staged(work, path), root / path)
    # The count may not reach the disk before what it counts.
    for folder in sorted({(root / path).parent for path in counted}):
        sync(folder)
    publish(_staged(work, info), root / info)
    sync((root / info).parent)
    remove_folder(work)
