"""Which chunks there are, whose they are and where they lie: the store's list of contents. No bytes, no policy.

- An entry goes by every id under which it was admitted; `id` is that of the bytes held now, which may have less detail.
- Ids belong to a tenant: another tenant's lookup of the same id finds nothing, by the same way as any unknown id.
- Per tier, entries stand in the order in which they came or were last used there: the front is least recent.
"""

from __future__ import annotations

import functools
import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldkv.memory.chunk import KVChunk
from worldkv.memory.encoded import Shape

DEFAULT_TENANT = "default"
SeenFrom = tuple[float, float, float, float, float, float]
"""Mean position and mean viewing direction of a chunk's poses."""


@dataclass(frozen=True)
class Form:
    """How a chunk is stored: what its detail can still be reduced to depends on it."""

    codec: str
    shape: Shape
    pruned: bool


class Shelf(NamedTuple):
    """What entries that stand together in a tier have in common."""

    tenant: str
    epoch: str
    codec: str | None
    pruned: bool


@dataclass(slots=True)
class Copy:
    """One tier's copy of a chunk."""

    cost_bytes: int
    stamp: int
    """When it came or was last used here, on the catalogue's clock."""


@dataclass(eq=False, slots=True)
class Entry:
    """One chunk and its books; lives until nobody holds it any more, which can be as long as a session.

    Made of few objects: Python's collector looks at each of them in every full collection.
    """

    tenant: str
    epoch: str
    id: str
    names: list[str]
    group: Hashable = None
    """Chunks of one group show one world, so that one may stand in for another; None: unknown."""
    form: Form | None = None
    seen_from: SeenFrom | None = None
    references: int = 0
    pins: int = 0
    leases: int = 0
    found: bool = False
    """Found in a tier at start-up, and asked for by nobody since."""
    early: bool = False
    """Prefetched into tier 0, and asked for by nobody since."""
    uses: int = 0
    last_use: int = 0
    copies: dict[int, Copy] = field(default_factory=dict)
    """Tier -> its copy; empty: lost."""
    left: dict[int, str] = field(default_factory=dict)
    """Tier -> why the chunk left it, or was refused: the reason of a miss there."""
    lost: str = "evicted"
    """Why no tier holds it; means nothing while one does."""

    @property
    def firm(self) -> bool:
        """Whether it may neither move nor go."""
        return self.pins + self.leases > 0

    @property
    def wanted(self) -> bool:
        """Whether anyone would miss it."""
        return self.references > 0 or self.found or self.firm

    @property
    def shelf(self) -> Shelf:
        """Where it stands in each tier; constant while it lies anywhere."""
        form = self.form
        if form is None:
            return Shelf(self.tenant, self.epoch, None, False)
        return Shelf(self.tenant, self.epoch, form.codec, form.pruned)

    def describe(self, chunk: KVChunk) -> None:
        """Note what is now held."""
        self.id, self.epoch, self.seen_from = chunk.id, chunk.epoch, seen_from(chunk.c2w_F44)
        self.form = _form(chunk.encoded.codec, chunk.encoded.shape, chunk.token_ids_T3 is not None)


# One form for all chunks that are stored alike, as those of a session are.
_form = functools.lru_cache(maxsize=256)(Form)


class Catalogue:
    """All entries, by tenant and id, and per tier in order of use."""

    def __init__(self, tiers: int) -> None:
        self.clock = 0
        self._named: dict[tuple[str, str], Entry] = {}
        self._shelves: list[dict[Shelf, OrderedDict[Entry, None]]] = [{} for _ in range(tiers)]
        self._used: Counter[tuple[int, str]] = Counter()

    def __len__(self) -> int:
        return len(self._named)

    def tick(self) -> int:
        """The next moment of the clock that orders uses."""
        self.clock += 1
        return self.clock

    def find(self, tenant: str, chunk_id: str) -> Entry | None:
        """The tenant's entry of this id."""
        return self._named.get((tenant, chunk_id))

    def entries(self) -> list[Entry]:
        """All entries, each once."""
        return list(dict.fromkeys(self._named.values()))

    def names(self) -> Iterator[tuple[tuple[str, str], Entry]]:
        """((tenant, id), entry) of every known id."""
        return iter(self._named.items())

    def add(self, tenant: str, epoch: str, chunk_id: str) -> Entry:
        """A fresh entry that lies nowhere yet."""
        entry = Entry(tenant, epoch, chunk_id, [chunk_id])
        self._named[tenant, chunk_id] = entry
        return entry

    def forget(self, entry: Entry) -> None:
        """Its ids are unknown from now on; the caller has emptied the tiers of it."""
        assert not entry.copies, f"chunk {entry.id} still lies in tiers {list(entry.copies)}"
        for name in entry.names:
            del self._named[entry.tenant, name]
        entry.names.clear()

    def settle(self, entry: Entry) -> None:
        """Forget what lies nowhere any more and nobody asks for: chunks found at start-up that had to go."""
        if not entry.copies and entry.references == 0 and not entry.firm:
            self.forget(entry)

    def also_named(self, entry: Entry, chunk_id: str) -> None:
        """The entry goes by one more id."""
        if chunk_id not in entry.names:
            entry.names.append(chunk_id)
            self._named[entry.tenant, chunk_id] = entry

    def rename(self, entry: Entry, chunk: KVChunk) -> None:
        """The entry, which lies nowhere, is about to hold `chunk`, whose id becomes one more of its names."""
        assert not entry.copies, f"chunk {entry.id} still lies in tiers {list(entry.copies)}"
        entry.describe(chunk)
        self.also_named(entry, chunk.id)

    def merge(self, gone: Entry, into: Entry) -> None:
        """`gone`, which lies nowhere, turned out to be `into`: its names and references go over."""
        assert not gone.copies, f"chunk {gone.id} still lies in tiers {list(gone.copies)}"
        assert not gone.firm, f"chunk {gone.id} is held firmly"
        into.references += gone.references
        into.found |= gone.found
        into.uses += gone.uses
        into.group = into.group if into.group == gone.group else None
        into.names += gone.names
        for name in gone.names:
            self._named[into.tenant, name] = into

    def enter(self, entry: Entry, tier: int, cost_bytes: int) -> None:
        """The entry now lies in the tier too, as most recently used."""
        entry.copies[tier] = Copy(cost_bytes, self.tick())
        entry.left.pop(tier, None)
        self._shelves[tier].setdefault(entry.shelf, OrderedDict())[entry] = None
        self._used[tier, entry.tenant] += cost_bytes

    def leave(self, entry: Entry, tier: int, reason: str) -> int:
        """The entry no longer lies in the tier, for this reason; returns the bytes that it took up there."""
        cost = entry.copies.pop(tier).cost_bytes
        self._used[tier, entry.tenant] -= cost
        shelves = self._shelves[tier]
        del shelves[entry.shelf][entry]
        if not shelves[entry.shelf]:
            del shelves[entry.shelf]
        entry.left[tier] = entry.lost = reason
        return cost

    def touch(self, entry: Entry) -> None:
        """Most recently used, wherever it lies."""
        entry.last_use, entry.uses = self.tick(), entry.uses + 1
        for tier, copy in entry.copies.items():
            copy.stamp = entry.last_use
            self._shelves[tier][entry.shelf].move_to_end(entry)

    def used_bytes(self, tier: int, tenant: str) -> int:
        """What the tenant's chunks take up in the tier."""
        return self._used[tier, tenant]

    def tenants(self, tier: int) -> set[str]:
        """Who has chunks in the tier."""
        return {shelf.tenant for shelf in self._shelves[tier]}

    def chunks(self, tier: int, tenant: str) -> int:
        """How many chunks the tenant has in the tier."""
        return sum(len(row) for shelf, row in self._shelves[tier].items() if shelf.tenant == tenant)

    def lying(self, tier: int, where: Callable[[Entry], bool] = lambda entry: True) -> Iterator[Entry]:
        """Entries of the tier, least recently used first. Lazy: the front costs the same however many there are.

        `where` is asked for one entry of each shelf, and must not tell entries of one shelf apart.
        """
        rows = [row for row in self._shelves[tier].values() if where(next(iter(row)))]
        return heapq.merge(*rows, key=lambda entry: entry.copies[tier].stamp)


def seen_from(c2w_F44: NDArray[np.float32]) -> SeenFrom:
    """Mean position and viewing direction (the third axis of an OpenCV camera) of a chunk's poses."""
    x, y, z = np.asarray(c2w_F44[:, :3, 3], np.float64).mean(axis=0).tolist()
    u, v, w = np.asarray(c2w_F44[:, :3, 2], np.float64).mean(axis=0).tolist()
    return x, y, z, u, v, w
