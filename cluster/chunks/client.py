"""What one process asks of servers and directories: whom first, and whom next when one does not answer.

The server of the own node is asked first, then the directories in turn, then who has the chunk, nodes before the
durable tier. A party that does not answer in time raises TransferError; what only it knows cannot be told then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from cluster.chunks.directory import Directory
from cluster.chunks.labels import Found, Gone, Key, Label, Process, Whereabouts
from cluster.chunks.server import Bytes, ChunkServer, Handle, Lent, Objects
from worldkv.errors import ChunkEvicted, ChunkNotFound, TransferError

Answer = TypeVar("Answer")

# When all directories died at once, one is back after a second or two, and sure of what it knows five later.
PATIENCE_SECONDS = 10.0
PAUSE_SECONDS = 0.1
# What was sent for and nobody has read yet.
AHEAD_CHUNKS = 32


class Network(Protocol):
    """The parties, here or elsewhere; those elsewhere look the same and may raise TransferError from every call."""

    @property
    def objects(self) -> Objects:
        """How bytes get from process to process."""
        ...

    def server(self, node: str) -> ChunkServer:
        """The server of this node."""
        ...

    def directories(self) -> Sequence[Directory]:
        """All replicas, nearest first."""
        ...

    def now(self) -> float:
        """Seconds of a clock that only goes forward."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait."""
        ...

    def tell(self, node: str, numbers: Sequence[int]) -> None:
        """Give loans back to the server of the node, without waiting for an answer. Raises nothing."""
        ...


@dataclass(frozen=True)
class Loan:
    """Bytes to read, until the loan is given back."""

    node: str
    number: int
    serial: int
    """Of the node's copy: another one has another."""
    handle: Handle
    data: Bytes | None = None
    """Once it is opened."""


class Client:
    """Of one process; threads may call at the same time."""

    def __init__(self, me: Process, network: Network) -> None:
        self.me, self._network = me, network
        self._ahead: OrderedDict[Key, Loan] = OrderedDict()
        """Sent for and not asked for yet; looked at under the lock, for several threads read."""
        self._lock = threading.Lock()

    def store(self, label: Label, data: Bytes) -> None:
        """Give the node's server a copy of the chunk; visible there when this returns. Blocks.

        Raises TransferError, CapacityError, ChunkCorrupt.
        """
        server = self._network.server(self.me.node)
        if not server.offer(label, self.me):
            return
        stored = False
        try:
            server.store(label, self._network.objects.share(data), self.me)
            stored = True
        finally:
            if not stored:
                self._ask(lambda: server.abandon(label.key), None)

    def find(self, tenant: str, names: Sequence[str]) -> dict[str, tuple[str, Found]]:
        """By id asked for: the node that has the chunk, nearest first, and what it says. Raises TransferError."""
        nothing: dict[str, Found] = {}
        here = self._ask(lambda: self._network.server(self.me.node).find(tenant, names, self.me), nothing)
        found = {name: (self.me.node, one) for name, one in here.items()}
        missing = [name for name in names if name not in found]
        if not missing:
            return found
        where = self._whereabouts(tenant, missing)
        for name, (_, nodes) in where.places.items():
            for node in nodes:
                one = self._ask(partial(self._find_at, node, tenant, name), None)
                if one is not None:
                    found[name] = (node, one)
                    break
        return found

    def lend(self, key: Key) -> Loan:
        """The chunk's bytes, opened, from where they can be had soonest; those of other nodes are copied to this one.

        Blocks. Raises ChunkEvicted, ChunkNotFound where all who had it are dead, TransferError where nobody can tell.
        """
        with self._lock:
            sent_for = self._ahead.pop(key, None)
        if sent_for is not None:
            loan = self._ask(lambda: self._open(sent_for), None)
            if loan is not None:
                return loan
        reasons: set[Gone] = set()
        faults: list[str] = []
        loan = self._borrow(self.me.node, key, reasons, faults)
        if loan is not None:
            return loan
        where = self._whereabouts(key[0], [key[1]])
        reasons |= set(where.gone.values())
        for _, nodes in where.places.values():
            for node in nodes:
                loan = self._borrow(node, key, reasons, faults) if node != self.me.node else None
                if loan is not None:
                    return loan
        if where.places and faults:
            raise TransferError(f"chunk {key[1]} cannot be read now: {'; '.join(faults)}")
        if Gone.EVICTED in reasons:
            raise ChunkEvicted(f"chunk {key[1]} was evicted from every node that had it")
        raise ChunkNotFound(f"chunk {key[1]} lies on no node any more: all that had it are gone")

    def prefetch(self, keys_by_node: Mapping[str, Sequence[Key]]) -> None:
        """Borrow these chunks by one question per node, for a `lend` to come, and begin to copy those of other nodes.

        Raises nothing.
        """
        for node, keys in keys_by_node.items():
            with self._lock:
                fresh = [key for key in keys if key not in self._ahead]
            nothing: list[Lent] = []
            lent = self._ask(partial(self._all_lent_by, node, fresh), nothing) if fresh else nothing
            came = {key: Loan(node, *one) for key, one in zip(fresh, lent, strict=False) if isinstance(one, tuple)}
            handles = [loan.handle for loan in came.values()]
            if node == self.me.node:
                # Where that fails for one, it is tried again for each.
                unopened: list[Bytes] = []
                opened = self._ask(partial(self._network.objects.open_all, handles), unopened)
                for (key, loan), data in zip(came.items(), opened, strict=False):
                    came[key] = replace(loan, data=data)
            else:
                self._network.objects.fetch_ahead(handles)
            with self._lock:
                self._ahead |= came
        self._give_up_all_but(AHEAD_CHUNKS)

    def close(self) -> None:
        """Give back what was sent for and never read."""
        self._give_up_all_but(0)

    def give_back(self, node: str, numbers: Sequence[int]) -> None:
        """The bytes of these loans are not read any more. Does not wait."""
        self._network.tell(node, numbers)

    def unclaim(self, node: str, key: Key) -> None:
        """This process does not count on the chunk any more. Raises nothing: the dead have forgotten it already."""
        self._ask(lambda: self._network.server(node).unclaim(key, self.me), None)

    def also_name(self, node: str, key: Key, names: Sequence[str]) -> None:
        """See `Survives`. Raises TransferError."""
        self._network.server(node).also_name(key, names)

    def distrust(self, node: str, key: Key) -> None:
        """The chunk was found damaged. Raises nothing."""
        self._ask(lambda: self._network.server(node).distrust(key), None)

    def now(self) -> float:
        """See `Network.now`."""
        return self._network.now()

    def pause(self, seconds: float) -> None:
        """See `Network.pause`."""
        self._network.pause(seconds)

    def copied(self, keys: Sequence[Key]) -> dict[Key, bool]:
        """See `Directory.copied`. Raises TransferError."""
        return self._of_any_directory(lambda directory: directory.copied(keys, self._network.now()))

    def _give_up_all_but(self, newest: int) -> None:
        while True:
            with self._lock:
                if len(self._ahead) <= newest:
                    return
                _, loan = self._ahead.popitem(last=False)
            self.give_back(loan.node, [loan.number])

    def _find_at(self, node: str, tenant: str, name: str) -> Found | None:
        return self._network.server(node).find(tenant, [name], self.me).get(name)

    def _all_lent_by(self, node: str, keys: Sequence[Key]) -> list[Lent]:
        return self._network.server(node).lend_all(keys, self.me)

    def _borrow(self, node: str, key: Key, reasons: set[Gone], faults: list[str]) -> Loan | None:
        try:
            lent = self._network.server(node).lend(key, self.me)
            if lent is None:
                return None
            if isinstance(lent, Gone):
                reasons.add(lent)
                return None
            return self._open(Loan(node, *lent))
        except TransferError as fault:
            faults.append(f"node {node}: {fault}")
            return None

    def _open(self, loan: Loan) -> Loan:
        if loan.data is not None:
            return loan
        opened = None
        try:
            opened = replace(loan, data=self._network.objects.open(loan.handle))
        finally:
            # What came from another node is a copy of this one's by now, and no loan.
            if opened is None or loan.node != self.me.node:
                self.give_back(loan.node, [loan.number])
        return opened

    def _whereabouts(self, tenant: str, names: Sequence[str]) -> Whereabouts:
        """Of a directory that knows all of them, or else of one that has heard every server."""
        until = self._network.now() + PATIENCE_SECONDS
        while True:
            fault: TransferError | None = None
            for directory in self._network.directories():
                try:
                    where = directory.find(tenant, names, self._network.now())
                except TransferError as error:
                    fault = error
                    continue
                if where.settled or all(name in where.places for name in names):
                    return where
            if self._network.now() >= until:
                raise TransferError(f"no directory could tell where {len(names)} chunks lie") from fault
            self._network.pause(PAUSE_SECONDS)

    def _of_any_directory(self, ask: Callable[[Directory], Answer]) -> Answer:
        fault: TransferError | None = None
        for directory in self._network.directories():
            try:
                return ask(directory)
            except TransferError as error:
                fault = error
        raise TransferError("no directory answers") from fault

    @staticmethod
    def _ask(call: Callable[[], Answer], otherwise: Answer) -> Answer:
        """What the party answers, or `otherwise` where it does not."""
        try:
            return call()
        except TransferError:
            return otherwise
