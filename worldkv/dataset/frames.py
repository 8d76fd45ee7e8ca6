"""The frame table of an episode: its columns, as a parquet file and back.

F is the number of frames of the episode.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from worldkv.dataset.episode import Episode
from worldkv.dataset.parquet import read, to_bytes
from worldkv.dataset.schema import ACTION, INTRINSICS, POSE, RETRIEVED, STATE, DatasetSchema
from worldkv.errors import DatasetError

Columns = dict[str, npt.NDArray[Any]]
PADDING = -1
ARROW_TYPES = {"float32": pa.float32(), "int64": pa.int64()}


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
        key: _nested(columns[key], shape, ARROW_TYPES[dtype]) for key, (dtype, shape, _) in schema.columns().items()
    }
    return to_bytes(pa.table(arrays))


def read_frames(path: Path, schema: DatasetSchema) -> Columns:
    """Return the columns of a frame table, each shaped (F, *feature shape)."""
    table = read(path, list(schema.columns()))
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
