"""Where each batch of a job is: pending, under way, finished, or settled. Pure; nothing here blocks or is written.

    pending -> under way -> finished -> settled (committed)
                  |  ^---- given back        or settled (set aside)

- Batches are committed in their order, and each once: `turn` names the only one that may be next.
- A batch is in one place only; whatever fails on the way makes it pending again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Sequence

from worldkv.runs.batch import Batch


class Book:
    """Of all batches of one job."""

    def __init__(
        self, batches: Sequence[Batch], *, committed: Collection[str], finished: Iterable[int], aside: Iterable[int]
    ) -> None:
        """`committed`: keys of episodes; `finished`, `aside`: numbers of batches that earlier drivers left so."""
        self.batches = batches
        self._settled = {b.number for b in batches if all(key in committed for key in b.keys)} | set(aside)
        self._finished = set(finished) - self._settled
        self._pending = [b.number for b in batches if b.number not in self._settled | self._finished]
        self._turn = 0

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be done."""
        return len(self._settled) == len(self.batches)

    @property
    def over(self) -> int:
        """Batches that no worker has to roll out any more."""
        return len(self._settled) + len(self._finished)

    def turn(self) -> Batch | None:
        """The batch to commit now; None where the next one is not finished yet."""
        while self._turn in self._settled:
            self._turn += 1
        return self.batches[self._turn] if self._turn in self._finished else None

    def near(self, ahead: int) -> list[Batch]:
        """Pending batches within `ahead` of the one whose turn it is, in their order."""
        self.turn()
        return [self.batches[number] for number in self._pending[:ahead] if number < self._turn + ahead]

    @property
    def pending(self) -> list[int]:
        """Numbers of all batches that wait for a worker, ascending."""
        return list(self._pending)

    def take(self, batch: Batch) -> None:
        """A pending batch is under way now."""
        self._pending.remove(batch.number)

    def give_back(self, batch: Batch) -> None:
        """It was not finished, or what was finished is damaged."""
        self._finished.discard(batch.number)
        insort(self._pending, batch.number)

    def finish(self, batch: Batch) -> None:
        """It waits for its turn."""
        self._finished.add(batch.number)

    def settle(self, batch: Batch) -> None:
        """All its episodes are committed, or it was set aside."""
        self._finished.discard(batch.number)
        self._settled.add(batch.number)
