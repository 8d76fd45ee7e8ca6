"""Who has what: told by the chunk servers, and by nobody else, so that a directory that died is rebuilt by asking them.

- A server reports what changed since its last report that was heard; whoever missed one is told everything.
- A report of an earlier life of a server is refused: what it speaks of died with that life.
- A server that is silent for long counts as dead, and what it had as lost, until it speaks again.
- Chunks of which too few copies lie on nodes, or none in the durable tier, are owed: a server that has one is ordered
  to copy it. A copy that was evicted is not owed again: room is short there.

Pure: time is passed in. One directory is one thread's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.chunks.labels import DURABLE, Gone, Key, Label, Life, Order, Reply, Report, Whereabouts
from cluster.chunks.replicas import Host, targets

# Ten reports: a node that is busy for a moment is not dead, and a dead one is asked in vain for no longer than this.
SILENT_SECONDS = 5.0
# An order whose outcome was not told by then is given again.
ORDER_SECONDS = 20.0
ORDERS_AT_ONCE = 16
# Why chunks are gone is remembered for so many; of others nobody knows that they ever were.
REMEMBERED_GONE = 100_000


@dataclass
class _Known:
    """One server."""

    life: Life
    number: int | None
    heard: float
    free_bytes: int
    has: set[Key] = field(default_factory=set)


class Directory:
    """One replica; see the module."""

    def __init__(self, copies: int, now: float) -> None:
        """`copies`: on how many nodes each chunk should lie."""
        self._copies, self._started = copies, now
        self._servers: dict[str, _Known] = {}
        self._labels: dict[Key, Label] = {}
        self._places: dict[Key, dict[str, None]] = {}
        self._named: dict[Key, Key] = {}
        self._gone: OrderedDict[Key, Gone] = OrderedDict()
        self._owed: OrderedDict[Key, float] = OrderedDict()
        """Chunk -> since when."""
        self._now = now
        self._ordered: dict[Order, float] = {}
        self._declined: set[Order] = set()

    def report(self, report: Report, now: float) -> Reply:
        """Take in what a server has to say, and tell it what to copy."""
        self.expire(now)
        known = self._servers.get(report.life.node)
        if known is not None and report.life < known.life:
            return Reply(heard=None)
        if known is None or known.life != report.life:
            if known is not None:
                self._lose(known)
            known = _Known(report.life, None, now, report.free_bytes)
            self._servers[report.life.node] = known
            # It may be just what was missing; what is not owed all the same is struck out when orders are given.
            self._owed = OrderedDict(dict.fromkeys(self._labels, now) | self._owed)
        known.heard, known.free_bytes = now, report.free_bytes
        if report.base is not None and report.base != known.number:
            known.number = None
            return Reply(heard=None)
        self._take_in(known, report)
        return Reply(report.number, tuple(self._orders(known, now)))

    def expire(self, now: float) -> None:
        """Count as dead who was silent for too long."""
        self._now = now
        for node, known in list(self._servers.items()):
            if now - known.heard > SILENT_SECONDS:
                self._lose(known)
                del self._servers[node]

    def find(self, tenant: str, names: Iterable[str], now: float) -> Whereabouts:
        """Where the tenant's chunks of these ids lie, nodes before the durable tier."""
        self.expire(now)
        places: dict[str, tuple[Label, tuple[str, ...]]] = {}
        gone: dict[str, Gone] = {}
        for name in names:
            key = self._named.get((tenant, name), (tenant, name))
            if key in self._labels:
                nodes = sorted(self._places[key], key=lambda node: node == DURABLE)
                places[name] = (self._labels[key], tuple(nodes))
            elif key in self._gone:
                gone[name] = self._gone[key]
        return Whereabouts(self._settled(now), places, gone)

    def copied(self, keys: Iterable[Key], now: float) -> dict[Key, bool]:
        """Whether each chunk lies in as many places as it should and can; those that nobody has any more left out.

        Of a chunk that no server told of as yet it is not so.
        """
        self.expire(now)
        here = {key: key in self._labels for key in keys if key not in self._gone}
        settled = self._settled(now)
        return {k: known and settled and not (k in self._owed and self._wanted(k)) for k, known in here.items()}

    def arrears(self, now: float) -> tuple[int, float]:
        """Bytes of all chunks that are to have more copies than they have, and for how long the oldest has been so."""
        self.expire(now)
        late = {key: since for key, since in self._owed.items() if self._wanted(key)}
        return sum(self._labels[key].nbytes for key in late), max((now - since for since in late.values()), default=0.0)

    def nodes(self) -> dict[str, int]:
        """Node -> number of chunks, of the servers that live."""
        return {node: len(known.has) for node, known in self._servers.items()}

    def faults(self) -> list[str]:
        """Where its tables do not agree."""
        faults = []
        for node, known in self._servers.items():
            listed = {key for key, nodes in self._places.items() if node in nodes}
            if listed != known.has:
                faults.append(f"{node}: {len(known.has)} chunks reported, {len(listed)} listed")
        if self._places.keys() != self._labels.keys() or not all(self._places.values()):
            faults.append("places and labels differ")
        faults += [f"owed, but nowhere: {key}" for key in self._owed if key not in self._labels]
        return faults + [f"name of nothing: {name}" for name, key in self._named.items() if key not in self._labels]

    def _settled(self, now: float) -> bool:
        """Whether who has not been heard since the directory's start counts as dead."""
        return now - self._started > SILENT_SECONDS

    def _take_in(self, known: _Known, report: Report) -> None:
        if report.base is None:
            for key in known.has - {label.key for label in report.added}:
                self._remove(known, key, Gone.EVICTED)
        for key, reason in report.removed:
            self._remove(known, key, reason)
        for label in report.added:
            self._add(known, label)
        for order in report.declined:
            self._ordered.pop(order, None)
            if order.key in self._labels:
                self._declined.add(order)
        known.number = report.number

    def _add(self, known: _Known, label: Label) -> None:
        key, node = label.key, known.life.node
        fresh = key not in known.has
        known.has.add(key)
        self._labels[key] = label
        self._places.setdefault(key, {})[node] = None
        self._gone.pop(key, None)
        for name in label.names:
            self._named[label.tenant, name] = key
        self._ordered.pop(Order(key, node), None)
        if fresh:
            self._owed.setdefault(key, self._now)

    def _remove(self, known: _Known, key: Key, reason: Gone) -> None:
        node = known.life.node
        if key not in known.has:
            if key not in self._labels:  # it came and went between two reports
                self._remember(key, reason)
            return
        known.has.discard(key)
        del self._places[key][node]
        if not self._places[key]:
            self._forget(key, reason)
        elif reason is Gone.EVICTED:
            self._declined.add(Order(key, node))

    def _forget(self, key: Key, reason: Gone) -> None:
        label = self._labels.pop(key)
        del self._places[key]
        for name in label.names:
            self._named.pop((label.tenant, name), None)
            self._remember((label.tenant, name), reason)
        self._remember(key, reason)
        self._owed.pop(key, None)
        self._ordered = {order: when for order, when in self._ordered.items() if order.key != key}
        self._declined = {order for order in self._declined if order.key != key}

    def _remember(self, key: Key, reason: Gone) -> None:
        self._gone[key] = reason
        if len(self._gone) > REMEMBERED_GONE:
            self._gone.popitem(last=False)

    def _lose(self, known: _Known) -> None:
        """The server died with all that it had."""
        self._declined = {order for order in self._declined if order.target != known.life.node}
        for key in list(known.has):
            self._remove(known, key, Gone.LOST)
            if key in self._labels:
                self._owed.setdefault(key, self._now)

    def _wanted(self, key: Key) -> list[str]:
        """Where the chunk should lie and does not, as far as may be."""
        hosts = [
            Host(node, known.free_bytes)
            for node, known in self._servers.items()
            if Order(key, node) not in self._declined
        ]
        return targets(self._labels[key], self._places[key], hosts, self._copies)

    def _orders(self, known: _Known, now: float) -> list[Order]:
        """What the server is to copy: of what is owed, that of which it is the first to have it."""
        orders: list[Order] = []
        # Who has not been heard yet may have just what seems to be missing.
        for key in list(self._owed) if self._settled(now) else ():
            if len(orders) >= ORDERS_AT_ONCE:
                break
            wanted = self._wanted(key)
            if not wanted:
                del self._owed[key]
                continue
            if next(node for node in self._places[key] if node != DURABLE) != known.life.node:
                continue
            fresh = [
                order for node in wanted if now - self._ordered.get(order := Order(key, node), -1e9) > ORDER_SECONDS
            ]
            self._ordered |= dict.fromkeys(fresh, now)
            orders += fresh
        return orders
