"""Damaged chunks set aside for whoever looks for the cause: few, small, and only in room that nothing else needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from worldkv.memory.tiers.ledger import Ledger

# Enough to find out what damages a store's chunks; more only keeps others out.
QUARANTINE_FILES = 16
QUARANTINE_BYTES = 256 * 2**20


class Quarantine:
    """Names and bytes of what was set aside, oldest first; `delete` removes one by its name. Thread-safe."""

    def __init__(self, delete: Callable[[str], None]) -> None:
        self._delete = delete
        self._sizes: dict[str, int] = {}
        self._lock = threading.RLock()

    @property
    def used_bytes(self) -> int:
        """Bytes set aside."""
        with self._lock:
            return sum(self._sizes.values())

    def adopt(self, found: Iterable[tuple[str, int]], spare_bytes: int) -> None:
        """Book what a start-up found, oldest first, and delete what is too much."""
        with self._lock:
            self._sizes.update(found)
            self.trim(spare_bytes)

    def add(self, name: str, size_bytes: int) -> None:
        """Book what was just set aside, in bytes that it held before. Raises what `delete` raises."""
        with self._lock:
            self._sizes.pop(name, None)
            self._sizes[name] = size_bytes
            self.trim(QUARANTINE_BYTES)

    def trim(self, spare_bytes: int) -> None:
        """Delete the oldest until the rest is small and fits into `spare_bytes`. Raises what `delete` raises."""
        with self._lock:
            limit = min(spare_bytes, QUARANTINE_BYTES)
            while self.used_bytes > limit or len(self._sizes) > QUARANTINE_FILES:
                oldest = next(iter(self._sizes))
                self._delete(oldest)
                del self._sizes[oldest]

    def faults(self, books: Ledger) -> list[str]:
        """Where what is set aside and what the tier's books hold pass its capacity together."""
        aside, used = self.used_bytes, books.used_bytes
        if aside + used <= books.capacity_bytes:
            return []
        return [f"tier {books.tier}: {used} bytes used and {aside} in quarantine, capacity {books.capacity_bytes}"]
