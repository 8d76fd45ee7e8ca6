"""What a campaign counts, and the digest that tells two campaigns apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import xxhash

from campaign.medium import Faults
from worldkv.stats import MemoryStats

MOVES = ("admitted", "demoted", "promoted", "reduced", "quarantined", "dropped")


class Tally:
    """Operations, faults, outcomes and times of one campaign."""

    def __init__(self) -> None:
        self.operations = 0
        self.calls: Counter[str] = Counter()
        """Operations by kind."""
        self.faults: Counter[str] = Counter()
        """By kind, as they were ordered; and the calls that failed, and the power cuts that came, of those."""
        self.hits: Counter[str] = Counter()
        """Fetched chunks by tier."""
        self.misses: Counter[str] = Counter()
        """By reason."""
        self.moves: Counter[str] = Counter()
        """What became of chunks."""
        self.checked_chunks = 0
        """Chunks whose every byte was compared."""
        self.names_checked = 0
        """Ids under which something on a medium was asked for, and had to be found after a restart."""
        self.checks = 0
        """Times that all books were audited."""
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        """Of each fetch, on media as fast as they are and on slowed ones."""
        self.medium_calls: Counter[int] = Counter()
        """Calls of media in one operation -> how many operations made so many."""
        self._digest = xxhash.xxh3_128()

    def take(self, stats: MemoryStats, media: Iterable[Faults]) -> None:
        """A memory ends, with these figures; so do its media."""
        self.hits.update({tier.name: tier.hits for tier in stats.tiers})
        self.misses.update(stats.misses)
        self.moves.update({name: getattr(stats, name) for name in MOVES})
        self.faults["calls that failed by order"] += sum(faults.struck for faults in media)

    def event(self, *what: object) -> None:
        """Something happened; it goes into the digest."""
        self._digest.update(repr(what).encode())

    @property
    def digest(self) -> str:
        """Equal for equal campaigns: of all events in order, with their outcomes."""
        return self._digest.hexdigest()

    def add(self, other: Tally) -> None:
        """Take in the counts of another campaign, but not its digest."""
        self.operations += other.operations
        self.checked_chunks += other.checked_chunks
        self.checks += other.checks
        self.names_checked += other.names_checked
        for name in ("calls", "faults", "hits", "misses", "moves", "medium_calls"):
            getattr(self, name).update(getattr(other, name))
        for name, taken in other.seconds.items():
            self.seconds[name] += taken

    def milliseconds(self) -> dict[str, dict[str, float]]:
        """Kind of fetch -> p50, p99 and the largest."""
        return {
            name: {
                **{f"p{q}": round(1e3 * float(np.percentile(taken, q)), 3) for q in (50, 99)},
                "max": round(1e3 * max(taken), 3),
            }
            for name, taken in sorted(self.seconds.items())
        }

    def largest_calls(self) -> int:
        """The most calls of media that one operation made."""
        return max(self.medium_calls, default=0)
