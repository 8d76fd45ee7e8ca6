"""What files and objects of a tier are called: chunks, unfinished writes, and further ids of chunks.

A further id is one under which a stored chunk is asked for: that which it had with more detail. It is one empty file or
object beside the chunk, named after both: it comes into being whole, takes up no bytes, and is found by the listing
that finds the chunk. One that outlived its chunk names nothing, and goes at the next start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SUFFIX, PART_SUFFIX = ".wkv", ".part"
CHUNK_NAME = re.compile(r"([0-9a-f]{32})\.wkv")
PART_NAME = re.compile(r"[0-9a-f]{32}\.part")
NAME_FILE = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{32})\.name")
CHUNK_ID = re.compile(r"[0-9a-f]{32}")


class Names:
    """Chunk -> its further ids."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def of(self, chunk_id: str) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._names.get(chunk_id, ()))

    def fresh(self, chunk_id: str, names: Iterable[str]) -> list[str]:
        """Those of the names that are ids and not known yet."""
        known = {chunk_id, *self.of(chunk_id)}
        return [name for name in dict.fromkeys(names) if name not in known and CHUNK_ID.fullmatch(name)]

    def add(self, chunk_id: str, names: Iterable[str]) -> None:
        """Note these too."""
        self._names.setdefault(chunk_id, []).extend(self.fresh(chunk_id, names))

    def forget(self, chunk_id: str) -> list[str]:
        """The files that kept the chunk's names, which mean nothing any more."""
        return [name_file(chunk_id, name) for name in self._names.pop(chunk_id, ())]


def name_file(chunk_id: str, name: str) -> str:
    """Of one further id of a chunk."""
    return f"{chunk_id}.{name}.name"
