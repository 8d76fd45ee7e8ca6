"""The chunks one session has stored: shared with its forks, copied by none of them.

    root: chunks 1 .. 2000, frozen, held by 65 lists
      ├ own part of the parent    2001, 2002, ...
      ├ own part of fork 1        2001', ...
      └ ...

- Ids lie in parts. A list appends to a part of its own; forking freezes that part, and both lists hold it from then on.
- A part counts the lists that hold it, so forks and their ends touch parts, not chunks; the memory counts one reference
  for each chunk of a part however many lists share it.
- Ids come back from `let_go` once, from the last list that holds them: those are the references to release.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from worldkv.errors import ChunkNotFound


class Part:
    """A run of a session's chunks in ascending order; does not change once a second list holds it."""

    __slots__ = ("holders", "ids")

    def __init__(self) -> None:
        self.ids: dict[int, str] = {}
        self.holders = 1


class ChunkList(Mapping[int, str]):
    """Chunk index -> id in memory, ascending."""

    def __init__(self, items: Iterable[tuple[int, str]] = ()) -> None:
        self._parts: list[Part] = []
        self._starts: list[int] = []
        self._own: Part | None = None
        self._open = True
        for index, chunk_id in items:
            self.append(index, chunk_id)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Oldest first; what an audit counts."""
        return tuple(self._parts)

    def __len__(self) -> int:
        return sum(len(part.ids) for part in self._parts)

    def __iter__(self) -> Iterator[int]:
        return (index for part in self._parts for index in part.ids)

    def __getitem__(self, index: int) -> str:
        place = bisect_right(self._starts, index) - 1
        if place < 0:
            raise KeyError(index)
        return self._parts[place].ids[index]

    def append(self, index: int, chunk_id: str) -> None:
        """Take over one reference on the chunk. Raises ValueError where `index` is not beyond the last."""
        if self._own is None:
            own = Part()
            self._parts.append(own)
            self._starts.append(index)
            self._own = own
        last = next((next(reversed(part.ids)) for part in reversed(self._parts) if part.ids), None)
        if last is not None and index <= last:
            raise ValueError(f"chunk {index} cannot follow chunk {last}: a session stores its chunks in order")
        self._own.ids[index] = chunk_id

    def fork(self) -> ChunkList:
        """A second list that holds the same chunks; touches parts, whatever their length.

        Raises ChunkNotFound once the list was let go.
        """
        if not self._open:
            raise ChunkNotFound("a list that was let go holds no chunk that could be shared")
        self._own = None
        twin = ChunkList()
        twin._parts, twin._starts = list(self._parts), list(self._starts)
        for part in self._parts:
            part.holders += 1
        return twin

    def let_go(self) -> list[str]:
        """Empty the list for good; the ids that no other list holds, whose references are to be released."""
        freed: list[str] = []
        for part in self._parts:
            part.holders -= 1
            if part.holders == 0:
                freed += part.ids.values()
        self._parts, self._starts, self._own, self._open = [], [], None, False
        return freed
