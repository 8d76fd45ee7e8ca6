"""Arrays over shared memory, which is for reading only, in a form that torch takes without a warning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SharedMemory:
    """Refers to the bytes of `data`; `np.asarray` of it is a view that looks writable and must not be written to.

    All processes of a node would see a write. Chunks are immutable, and decoding copies.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        self.__array_interface__ = {
            "shape": data.shape,
            "typestr": "|u1",
            "data": (data.ctypes.data, False),
            "version": 3,
        }


def view_of(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes."""
    return np.asarray(SharedMemory(data))
