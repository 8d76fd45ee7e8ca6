"""The books of a tier that stores files or objects: what it holds, what is on its way in, and that it never overbooks.

- Bytes are reserved before the first of them is written and given back only when none of them remains.
- An id is on its way in at most once; whoever brings it a second time waits for the first.
- Bytes that could not be cleared away stay booked as stuck until they are: a cap that trusts is no cap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from worldkv.errors import CapacityError, ChunkNotFound


class Ledger:
    """Ids and their bytes within a capacity. Thread-safe; only `reserve` ever waits."""

    def __init__(self, tier: str, capacity_bytes: int) -> None:
        self.tier, self.capacity_bytes = tier, capacity_bytes
        self._held: dict[str, int] = {}
        self._arriving: dict[str, int] = {}
        self._stuck: dict[str, int] = {}
        self._used_bytes = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._held

    @property
    def used_bytes(self) -> int:
        """Held, arriving and stuck."""
        return self._used_bytes

    def ids(self) -> list[str]:
        """What is held, in order of its last write."""
        with self._changed:
            return list(self._held)

    def adopt(self, found: Iterable[tuple[str, int]]) -> None:
        """Book what a start-up found, oldest first."""
        with self._changed:
            for chunk_id, size in found:
                self._held[chunk_id] = size
                self._used_bytes += size

    def reserve(self, chunk_id: str, size: int, spare_bytes: Callable[[int], None]) -> bool:
        """Book bytes for a chunk to come; False where it is held already. Waits while another brings it.

        `spare_bytes` is told, before anything is booked, how much of the capacity is left for what is not in these
        books. Raises CapacityError.
        """
        with self._changed:
            self._changed.wait_for(lambda: chunk_id not in self._arriving)
            if chunk_id in self._held:
                return False
            free = self.capacity_bytes - self._used_bytes
            if size > free:
                raise CapacityError(f"tier {self.tier}: {size} bytes asked, {free} of {self.capacity_bytes} bytes free")
            spare_bytes(free - size)
            self._arriving[chunk_id] = size
            self._used_bytes += size
            return True

    def arrived(self, chunk_id: str) -> None:
        """The chunk is here, complete, in the place of whatever was left of it."""
        with self._changed:
            self._held[chunk_id] = self._arriving.pop(chunk_id)
            self._used_bytes -= self._stuck.pop(chunk_id, 0)
            self._changed.notify_all()

    def abandoned(self, chunk_id: str, *, cleared: bool) -> None:
        """The chunk did not come; what was written of it is gone, or could not be cleared."""
        with self._changed:
            size = self._arriving.pop(chunk_id) + self._stuck.pop(chunk_id, 0)
            if cleared:
                self._used_bytes -= size
            else:
                self._stuck[chunk_id] = size
            self._changed.notify_all()

    def stuck(self) -> set[str]:
        """Ids of which something may be left that could not be cleared away."""
        with self._changed:
            return set(self._stuck)

    def clear_stuck(self, clear: Callable[[str], bool]) -> None:
        """Clear away what could not be before; `clear` says whether it could."""
        with self._changed:
            again = self._stuck.keys() - self._arriving.keys()
            self._arriving |= {chunk_id: self._stuck.pop(chunk_id) for chunk_id in again}
        for chunk_id in sorted(again):
            self.abandoned(chunk_id, cleared=clear(chunk_id))

    def require(self, chunk_id: str) -> None:
        """Raise ChunkNotFound unless the chunk is held."""
        if chunk_id not in self._held:
            raise ChunkNotFound(f"tier {self.tier} does not hold chunk {chunk_id}")

    def size_bytes(self, chunk_id: str) -> int:
        """Bytes of a chunk that is held."""
        with self._changed:
            return self._held[chunk_id]

    def forget(self, chunk_id: str) -> int:
        """The chunk's bytes are gone; how many they were, 0 where it was not held."""
        with self._changed:
            size = self._held.pop(chunk_id, 0)
            self._used_bytes -= size
            return size

    def faults(self) -> list[str]:
        """Where the books do not add up."""
        with self._changed:
            booked = sum(self._held.values()) + sum(self._arriving.values()) + sum(self._stuck.values())
            faults = []
            if booked != self._used_bytes:
                faults.append(f"tier {self.tier}: {booked} bytes listed, {self._used_bytes} booked")
            if self._used_bytes > self.capacity_bytes:
                faults.append(f"tier {self.tier}: {self._used_bytes} bytes booked, capacity {self.capacity_bytes}")
            return faults
