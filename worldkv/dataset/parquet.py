"""Parquet files as bytes and back, the same bytes for the same table."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from worldkv.errors import DatasetError


def to_bytes(table: Any, **options: bool) -> bytes:
    """Return an arrow table as a parquet file; options are those of `pyarrow.parquet.write_table`."""
    sink = pa.BufferOutputStream()
    # One chunk per column, however the table was put together: chunks would show in the file.
    pq.write_table(table.combine_chunks(), sink, compression="snappy", use_dictionary=False, **options)
    contents: bytes = sink.getvalue().to_pybytes()
    return contents


def read(path: Path, expected: list[str]) -> Any:
    """Return the arrow table in a file; raises DatasetError unless it has exactly these columns."""
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error})") from error
    if table.column_names != expected:
        wrong = sorted(set(table.column_names) ^ set(expected)) or "in another order"
        raise DatasetError(f"{path}: has not the declared columns: {wrong}")
    return table
