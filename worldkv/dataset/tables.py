"""The parquet files, as bytes and back: frames of an episode, its row of metadata, and the task texts.

F is the number of frames of the episode.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from worldkv.dataset.episode import Episode
from worldkv.dataset.layout import numbers
from worldkv.dataset.schema import ACTION, INTRINSICS, POSE, RETRIEVED, STATE, DatasetSchema
from worldkv.dataset.stats import STAT_NAMES, FeatureStats, Stats
from worldkv.errors import DatasetError

Columns = dict[str, npt.NDArray[Any]]
PADDING = -1
ARROW_TYPES = {"float32": pa.float32(), "int64": pa.int64()}
METADATA_TYPES = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}


def frame_columns(
    schema: DatasetSchema, episode: Episode, *, episode_index: int, from_index: int, task_index: int
) -> Columns:
    """Return every column of the episode's frame table, checked against nothing: the schema must fit."""
    frame_F = np.arange(episode.length, dtype=np.int64)
    columns: Columns = {
        STATE: episode.c2w_F44[:, :3].reshape(-1, 12),
        POSE: episode.c2w_F44,
        INTRINSICS: episode.intrinsics_F4,
        ACTION: episode.action_FA,
        RETRIEVED: _padded(episode.retrieved, episode.length, schema.retrieved_width),
        # LeRobot looks frames up by time and wants frame_index / fps exactly, never a wall clock.
        "timestamp": (frame_F / schema.fps).astype(np.float32),
        "frame_index": frame_F,
        "episode_index": np.full_like(frame_F, episode_index),
        "index": from_index + frame_F,
        "task_index": np.full_like(frame_F, task_index),
        **episode.scalars,
    }
    return {key: columns[key].reshape(-1, *shape) for key, (_, shape, _) in schema.columns().items()}


def frames_bytes(schema: DatasetSchema, columns: Columns) -> bytes:
    """Return the frame table as a parquet file; it has the declared columns only, others would not load."""
    arrays = {
        key: _nested(columns[key], shape, ARROW_TYPES[dtype])
        for key, (dtype, shape, _) in schema.columns().items()
    }
    return _parquet(pa.table(arrays))


def read_frames(path: Path, schema: DatasetSchema) -> Columns:
    """Return the columns of a frame table, each shaped (F, *feature shape)."""
    table = _read(path)
    expected = list(schema.columns())
    if table.column_names != expected:
        raise DatasetError(f"{path}: columns are {table.column_names}, expected {expected}")
    try:
        return {
            key: _flat(table.column(key)).astype(dtype).reshape(len(table), *shape)
            for key, (dtype, shape, _) in schema.columns().items()
        }
    except ValueError as error:
        raise DatasetError(f"{path}: a column has not the declared shape ({error})") from error


def retrieved_lists(retrieved_FN: npt.NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    """Return the chunk indices of each frame without their padding."""
    return tuple(tuple(int(chunk) for chunk in row if chunk != PADDING) for row in retrieved_FN)


def episode_row(
    schema: DatasetSchema, episode: Episode, key: str, episode_index: int, from_index: int
) -> dict[str, Any]:
    """Return LeRobot's row about an episode, our own facts under `worldkv/`; statistics are not yet in it."""
    chunk_index, file_index = numbers(episode_index)
    row: dict[str, Any] = {
        "episode_index": episode_index,
        "tasks": [episode.task],
        "length": episode.length,
        "dataset_from_index": from_index,
        "dataset_to_index": from_index + episode.length,
        "data/chunk_index": chunk_index,
        "data/file_index": file_index,
    }
    for video in schema.videos:
        row |= {f"videos/{video}/chunk_index": chunk_index, f"videos/{video}/file_index": file_index}
        row |= {
            f"videos/{video}/from_timestamp": 0.0,
            f"videos/{video}/to_timestamp": episode.length / schema.fps,
        }
    row |= {
        "meta/episodes/chunk_index": chunk_index,
        "meta/episodes/file_index": file_index,
        "worldkv/key": key,
    }
    return row | {f"worldkv/{name}": episode.metadata[name] for name in schema.metadata}


def row_bytes(schema: DatasetSchema, row: dict[str, Any], stats: Stats) -> bytes:
    """Return the row and its statistics as a parquet file."""
    arrays = {name: pa.array([value]) for name, value in row.items()}
    arrays |= {
        f"worldkv/{name}": pa.array([row[f"worldkv/{name}"]], METADATA_TYPES[kind])
        for name, kind in schema.metadata.items()
    }
    for feature, values in stats.items():
        arrays |= {f"stats/{feature}/{stat}": pa.array([values[stat].tolist()]) for stat in STAT_NAMES}
    # One row in a hundred columns: what parquet and arrow say about columns would outweigh the values.
    return _parquet(pa.table(arrays), write_statistics=False, store_schema=False)


def read_row(path: Path) -> dict[str, Any]:
    """Return the row about an episode, without its statistics."""
    row = _only_row(path)
    return {name: value for name, value in row.items() if not name.startswith("stats/")}


def read_row_stats(path: Path, schema: DatasetSchema) -> Stats:
    """Return the statistics of one episode."""
    row = _only_row(path)
    return {feature: _feature_stats(row, feature) for feature in schema.features()}


def tasks_bytes(tasks: list[str]) -> bytes:
    """Return the tasks in the order of their indices, as a table that pandas indexes by text."""
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())}
    )
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
    return _parquet(table.replace_schema_metadata({"pandas": json.dumps(description)}))


def _padded(retrieved: tuple[tuple[int, ...], ...], length: int, width: int) -> npt.NDArray[np.int64]:
    padded_FN = np.full((length, width), PADDING, dtype=np.int64)
    for frame, chunks in enumerate(retrieved):
        padded_FN[frame, : len(chunks)] = chunks
    return padded_FN


def _nested(values: npt.NDArray[Any], shape: tuple[int, ...], kind: Any) -> Any:
    flat = pa.array(values.reshape(-1), kind)
    if shape == (1,):
        return flat
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, shape[0])
    # Hugging Face stores its ArrayND as lists of variable length within lists.
    for size in reversed(shape):
        flat = pa.ListArray.from_arrays(pa.array(range(0, len(flat) + 1, size), pa.int32()), flat)
    return flat


def _flat(column: Any) -> npt.NDArray[Any]:
    array = column.combine_chunks()
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _feature_stats(row: dict[str, Any], feature: str) -> FeatureStats:
    return {
        stat: np.array(row[f"stats/{feature}/{stat}"], dtype=np.int64 if stat == "count" else np.float64)
        for stat in STAT_NAMES
    }


def _only_row(path: Path) -> dict[str, Any]:
    rows = _read(path).to_pylist()
    if len(rows) != 1:
        raise DatasetError(f"{path}: holds {len(rows)} episodes, expected 1")
    row: dict[str, Any] = rows[0]
    return row


def _pandas_column(name: str, pandas_type: str, numpy_type: str) -> dict[str, Any]:
    return {
        "name": name,
        "field_name": name,
        "pandas_type": pandas_type,
        "numpy_type": numpy_type,
        "metadata": None,
    }


def _parquet(table: Any, **options: bool) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy", use_dictionary=False, **options)
    contents: bytes = sink.getvalue().to_pybytes()
    return contents


def _read(path: Path) -> Any:
    try:
        return pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error})") from error
