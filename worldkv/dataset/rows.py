"""LeRobot's tables about episodes: a row for each, many rows to a file, and the task texts.

One row has some hundred and fifty columns, mostly statistics: with a file for each, headers would take nine
tenths of the bytes and loaders most of their time. So the newest file grows by a row with each commit, as a
new version under the same name. (Our own reader takes its facts from the ledger, so it can read a dataset
that is growing or was interrupted.)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from worldkv.dataset.episode import Episode
from worldkv.dataset.layout import numbers, row_numbers
from worldkv.dataset.parquet import read, to_bytes
from worldkv.dataset.schema import DatasetSchema
from worldkv.dataset.stats import STAT_NAMES, FeatureStats, Stats

NUMBERS = ("chunk_index", "file_index")
METADATA_TYPES = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}


def episode_row(
    schema: DatasetSchema, episode: Episode, stats: Stats, key: str, *, episode_index: int, from_index: int
) -> Any:
    """Return LeRobot's row about an episode, our own facts under `worldkv/`, as an arrow table."""
    chunk_index, file_index = numbers(episode_index)
    row_chunk_index, row_file_index = row_numbers(episode_index)
    row: dict[str, Any] = {
        "episode_index": episode_index,
        "tasks": [episode.task],
        "length": episode.length,
        "dataset_from_index": from_index,
        "dataset_to_index": from_index + episode.length,
        "data/chunk_index": chunk_index,
        "data/file_index": file_index,
        "meta/episodes/chunk_index": row_chunk_index,
        "meta/episodes/file_index": row_file_index,
        "worldkv/key": key,
    }
    for video in schema.videos:
        row |= {f"videos/{video}/chunk_index": chunk_index, f"videos/{video}/file_index": file_index}
        # Every video file holds one episode, from its first frame on.
        row |= {f"videos/{video}/from_timestamp": 0.0}
        row |= {f"videos/{video}/to_timestamp": episode.length / schema.fps}
    row |= {f"worldkv/{name}": value for name, value in episode.metadata.items()}
    for feature, values in stats.items():
        row |= {f"stats/{feature}/{stat}": values[stat].tolist() for stat in STAT_NAMES}
    return pa.Table.from_pylist([row], _row_schema(schema))


def rows_bytes(rows: Any) -> bytes:
    """Return rows as a parquet file without what parquet and arrow would say about each column."""
    return to_bytes(rows, write_statistics=False, store_schema=False)


def read_rows(path: Path, schema: DatasetSchema) -> Any:
    """Return the rows in a file as an arrow table."""
    expected = _row_schema(schema)
    return read(path, expected.names).cast(expected)


def facts(rows: Any) -> list[dict[str, Any]]:
    """Return each row as a dictionary, without its statistics."""
    names = [name for name in rows.column_names if not name.startswith("stats/")]
    found: list[dict[str, Any]] = rows.select(names).to_pylist()
    return found


def row_stats(rows: Any, schema: DatasetSchema) -> list[Stats]:
    """Return the statistics in each row."""
    return [{name: _feature_stats(row, name) for name in schema.features()} for row in rows.to_pylist()]


def tasks_bytes(tasks: list[str]) -> bytes:
    """Return the tasks in the order of their indices, as a table that pandas indexes by text."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    # Without this LeRobot gives 0 for `item["task"]`, not the text.
    description = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            _pandas_column("task_index", "int64", "int64"),
            _pandas_column("task", "unicode", "object"),
        ],
        "pandas_version": "2.2.0",
    }
    return to_bytes(table.replace_schema_metadata({"pandas": json.dumps(description)}))


def _row_schema(schema: DatasetSchema) -> Any:
    integers = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    integers += [f"{table}/{number}" for table in ("data", "meta/episodes") for number in NUMBERS]
    integers += [f"videos/{video}/{number}" for video in schema.videos for number in NUMBERS]
    types = dict.fromkeys(integers, pa.int64()) | {
        "tasks": _lists(pa.string(), 1),
        "worldkv/key": pa.string(),
    }
    for video in schema.videos:
        types |= dict.fromkeys([f"videos/{video}/{end}_timestamp" for end in ("from", "to")], pa.float64())
    types |= {f"worldkv/{name}": METADATA_TYPES[kind] for name, kind in schema.metadata.items()}
    for feature, description in schema.features().items():
        # LeRobot keeps the statistics of pictures as (3, 1, 1), those of a scalar as (1,).
        value = _lists(pa.float64(), len(description["shape"]))
        types |= {f"stats/{feature}/{stat}": value for stat in STAT_NAMES}
        types[f"stats/{feature}/count"] = _lists(pa.int64(), 1)
    return pa.schema(list(types.items()))


def _lists(kind: Any, depth: int) -> Any:
    # "element" is the name that parquet gives back.
    return _lists(pa.list_(pa.field("element", kind)), depth - 1) if depth else kind


def _feature_stats(row: dict[str, Any], feature: str) -> FeatureStats:
    return {
        stat: np.array(row[f"stats/{feature}/{stat}"], dtype=np.int64 if stat == "count" else np.float64)
        for stat in STAT_NAMES
    }


def _pandas_column(name: str, pandas_type: str, numpy_type: str) -> dict[str, Any]:
    return {
        "name": name,
        "field_name": name,
        "pandas_type": pandas_type,
        "numpy_type": numpy_type,
        "metadata": None,
    }
