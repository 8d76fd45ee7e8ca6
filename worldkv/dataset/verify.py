"""Everything that can be wrong with a dataset, found by reading and decoding all of it.

Checksums say whether a file is what was written; the contents are checked besides, because LeRobot trusts
positions: frame tables in another order than their `index` give it another episode's actions without a word.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from worldkv.dataset.frames import read_frames
from worldkv.dataset.layout import (
    IDENTITY,
    LEDGER,
    LISTED_FOLDERS,
    data_path,
    numbers,
    row_path,
    video_path,
)
from worldkv.dataset.ledger import Entry, Identity, checksum, row_file_sums, task_texts
from worldkv.dataset.rows import facts, read_rows
from worldkv.dataset.schema import DatasetSchema
from worldkv.dataset.video import decode
from worldkv.errors import DatasetError


class Fault(NamedTuple):
    """One thing that is wrong."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def find_faults(root: Path, identity: Identity, entries: Sequence[Entry]) -> list[Fault]:
    """Return all faults of a dataset, [] if there is none."""
    faults = list(_strangers(root, entries))
    row_sums = row_file_sums(entries)
    shared = {**entries[-1].shared, **{path.as_posix(): expected for path, expected in row_sums.items()}}
    faults += (damaged := list(_damaged(root, shared)))
    for path, owners in groupby(entries, lambda entry: row_path(entry.episode_index)):
        # Of a damaged file nothing more needs to be said, and little could be.
        if not any(fault.path == root / path for fault in damaged):
            faults += _row_faults(root / path, identity.schema, list(owners))
    task_indices = {task: index for index, task in enumerate(task_texts(entries))}
    for entry in entries:
        faults += list(_damaged(root, entry.files)) or _contradictions(
            root, identity.schema, entry, task_indices[entry.task]
        )
    return faults


def _strangers(root: Path, entries: Sequence[Entry]) -> Iterator[Fault]:
    known = {path for entry in entries for path in entry.files}
    known |= {path for entry in entries for path in entry.shared}
    known |= {IDENTITY.as_posix(), LEDGER.as_posix()}
    for folder in LISTED_FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.relative_to(root).as_posix() not in known:
                yield Fault(path, "belongs to no committed episode; resuming removes what an interruption left")


def _damaged(root: Path, sums: Mapping[str, str]) -> Iterator[Fault]:
    for path, expected in sums.items():
        target = root / path
        if not target.is_file():
            yield Fault(target, "missing")
        elif (found := checksum(target.read_bytes())) != expected:
            yield Fault(target, f"damaged: expected xxh3 {expected}, found {found}")


def _contradictions(root: Path, schema: DatasetSchema, entry: Entry, task_index: int) -> Iterator[Fault]:
    index = entry.episode_index
    for key in schema.videos:
        yield from _video_faults(root / video_path(key, index), schema, key, entry.length)
    yield from _frame_faults(root / data_path(index), schema, entry, task_index)


def _video_faults(path: Path, schema: DatasetSchema, key: str, length: int) -> Iterator[Fault]:
    expected = (length, *schema.videos[key], 3)
    try:
        found = decode(path, schema.fps).shape
    except DatasetError as error:
        yield Fault(path, str(error).removeprefix(f"{path}: "))
        return
    if found != expected:
        yield Fault(path, f"holds frames {found}, expected {expected}")


def _frame_faults(path: Path, schema: DatasetSchema, entry: Entry, task_index: int) -> Iterator[Fault]:
    try:
        columns = read_frames(path, schema)
    except DatasetError as error:
        yield Fault(path, str(error).removeprefix(f"{path}: "))
        return
    frame_F = np.arange(entry.length)
    expected: dict[str, npt.NDArray[Any]] = {
        "index": frame_F + entry.from_index,
        "frame_index": frame_F,
        "episode_index": np.full_like(frame_F, entry.episode_index),
        "task_index": np.full_like(frame_F, task_index),
        "timestamp": (frame_F / schema.fps).astype(np.float32),
    }
    for name, wanted_F in expected.items():
        found_F = columns[name].reshape(-1)
        if not np.array_equal(found_F, wanted_F):
            yield Fault(path, f"{name} runs {_span(found_F)}, expected {_span(wanted_F)}")


def _row_faults(path: Path, schema: DatasetSchema, owners: Sequence[Entry]) -> Iterator[Fault]:
    try:
        rows = facts(read_rows(path, schema))
    except DatasetError as error:
        yield Fault(path, str(error).removeprefix(f"{path}: "))
        return
    if len(rows) != len(owners):
        yield Fault(path, f"holds {len(rows)} episodes, expected {len(owners)}")
    for row, entry in zip(rows, owners, strict=False):
        for name, wanted in _row_of(entry).items():
            if row[name] != wanted:
                yield Fault(path, f"{name} is {row[name]!r}, expected {wanted!r}")


def _row_of(entry: Entry) -> dict[str, Any]:
    chunk_index, file_index = numbers(entry.episode_index)
    return {
        "episode_index": entry.episode_index,
        "length": entry.length,
        "dataset_from_index": entry.from_index,
        "dataset_to_index": entry.to_index,
        "tasks": [entry.task],
        "worldkv/key": entry.key,
        "data/chunk_index": chunk_index,
        "data/file_index": file_index,
        **{f"worldkv/{name}": value for name, value in entry.metadata.items()},
    }


def _span(values_F: npt.NDArray[np.generic]) -> str:
    return f"{values_F[0]}..{values_F[-1]} ({len(values_F)} frames)" if len(values_F) else "over no frame"
