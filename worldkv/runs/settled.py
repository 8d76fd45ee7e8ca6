"""Python's collector of garbage, spared what lives as long as a run.

With torch loaded a full collection looks at 200,000 objects for a tenth of a second, in the middle of some chunk
(benchmarks/long_session_cpu_202611.md), though none of them can have become garbage.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settled() -> Iterator[None]:
    """Meanwhile no collection looks at what is there now."""
    settle()
    try:
        yield
    finally:
        gc.unfreeze()


def settle() -> None:
    """From now on no collection looks at what is there now; for a process that does nothing else afterwards."""
    gc.collect()
    gc.freeze()
