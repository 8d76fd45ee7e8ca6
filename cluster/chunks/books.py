"""The books of one chunk server: what it holds, who asked for that, who reads it, and that it never overbooks.

- A chunk on its way in is counted twice: once as its writer's object, once as the server's own.
- What is read by somebody is not evicted, for that would free nothing; what is dropped while it is read stays counted
  as lingering until its last reader gives it back, or is dead.
- A claim says that a process counts on a chunk. What the last one has given up goes first when room is needed, and not
  before: a moved session may yet ask for it. What a dead process claimed keeps its turn.

Decides and counts; holds no bytes. Not thread-safe: the server has one lock.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from cluster.chunks.labels import Key, Label, Process
from worldkv.errors import CapacityError
from worldkv.memory.tenants import Shares

# A reader of another node copies at once; when its word that it has done so is lost, the loan ends by itself.
FAR_LOAN_SECONDS = 60.0


@dataclass
class Holding:
    """One chunk that is here; `serial` tells it from an earlier one of the same id."""

    label: Label
    serial: int
    claims: set[Process] = field(default_factory=set)


@dataclass(frozen=True)
class _Loan:
    serial: int
    reader: Process
    since: float


class ServerBooks:
    """Of one server. `reserve` -> `arrived` or `abandoned`; `lend` -> `give_back`."""

    def __init__(self, capacity_bytes: int, shares: Shares | None = None) -> None:
        self.capacity_bytes, self.shares = capacity_bytes, shares or Shares()
        self.held: OrderedDict[Key, Holding] = OrderedDict()
        """Least recently used first."""
        self._arriving: dict[Key, tuple[Label, Process]] = {}
        self._named: dict[Key, Key] = {}
        self._loans: dict[int, _Loan] = {}
        self._lent: Counter[int] = Counter()
        self._lingering: dict[int, int] = {}
        self._held_bytes: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    @property
    def used_bytes(self) -> int:
        """Held, lingering, and on their way in."""
        arriving = sum(2 * label.nbytes for label, _ in self._arriving.values())
        return self._held_bytes.total() + arriving + sum(self._lingering.values())

    @property
    def lent_bytes(self) -> int:
        """Of what is being read, here still or not."""
        here = sum(one.label.nbytes for one in self.held.values() if self._lent[one.serial])
        return here + sum(self._lingering.values())

    def tenant_bytes(self, tenant: str) -> int:
        """Of the tenant's chunks that are here or on their way in."""
        return self._held_bytes[tenant] + sum(
            label.nbytes for label, _ in self._arriving.values() if label.tenant == tenant
        )

    def find(self, tenant: str, name: str) -> Holding | None:
        """The tenant's chunk of this id or further name."""
        return self.held.get(self._named.get((tenant, name), (tenant, name)))

    def on_its_way(self, key: Key) -> bool:
        """Whether somebody is bringing the chunk."""
        return key in self._arriving

    def reserve(self, label: Label, writer: Process) -> list[Holding]:
        """Book room for a chunk that is neither here nor on its way; what had to be dropped for that.

        Raises CapacityError, and then nothing has changed.
        """
        victims = self._victims(label)
        for victim in victims:
            self.drop(victim.label.key)
        self._arriving[label.key] = (label, writer)
        return victims

    def arrived(self, key: Key) -> Holding:
        """The chunk is here, complete."""
        label, writer = self._arriving.pop(key)
        return self.enter(label, {writer})

    def abandoned(self, key: Key) -> None:
        """The chunk did not come."""
        self._arriving.pop(key, None)

    def enter(self, label: Label, claims: Iterable[Process] = ()) -> Holding:
        """Book a chunk that lies here already, as most recently used."""
        holding = Holding(label, next(self._numbers), set(claims))
        self.held[label.key] = holding
        self._held_bytes[label.tenant] += label.nbytes
        for name in label.names:
            self._named[label.tenant, name] = label.key
        return holding

    def also_name(self, holding: Holding, names: Iterable[str]) -> bool:
        """The chunk is asked for under these as well; False where that was known."""
        known = {holding.label.chunk_id, *holding.label.names}
        fresh = tuple(name for name in dict.fromkeys(names) if name not in known)
        holding.label = replace(holding.label, names=holding.label.names + fresh)
        for name in fresh:
            self._named[holding.label.tenant, name] = holding.label.key
        return bool(fresh)

    def drop(self, key: Key) -> Holding | None:
        """The chunk is not here any more; None where it was not."""
        holding = self.held.pop(key, None)
        if holding is None:
            return None
        label = holding.label
        self._held_bytes[label.tenant] -= label.nbytes
        for name in label.names:
            self._named.pop((label.tenant, name), None)
        if self._lent[holding.serial]:
            self._lingering[holding.serial] = label.nbytes
        return holding

    def lend(self, holding: Holding, reader: Process, now: float) -> int:
        """Somebody reads the chunk from now on; the number to give back."""
        number = next(self._numbers)
        self._loans[number] = _Loan(holding.serial, reader, now)
        self._lent[holding.serial] += 1
        self.held.move_to_end(holding.label.key)
        return number

    def give_back(self, number: int) -> None:
        """The reader is done; nothing happens where the loan has ended already."""
        loan = self._loans.pop(number, None)
        if loan is None:
            return
        self._lent[loan.serial] -= 1
        if not self._lent[loan.serial]:
            del self._lent[loan.serial]
            self._lingering.pop(loan.serial, None)

    def unclaim(self, key: Key, process: Process) -> None:
        """The process does not count on the chunk any more; where nobody else does, it is the first to go."""
        holding = self.held.get(key)
        if holding is not None and process in holding.claims:
            holding.claims.discard(process)
            if not holding.claims:
                self.held.move_to_end(key, last=False)

    def sweep(self, node: str, alive: Callable[[Process], bool], now: float) -> None:
        """End what the dead have reserved, borrowed and claimed; `alive` can tell for processes of this `node` only."""
        loans = self._loans.values()
        known = {loan.reader for loan in loans} | {writer for _, writer in self._arriving.values()}
        known |= {process for one in self.held.values() for process in one.claims}
        dead = {process for process in known if process.node == node and not alive(process)}
        for key in [key for key, (_, writer) in self._arriving.items() if writer in dead]:
            self.abandoned(key)
        ended = [
            number
            for number, loan in self._loans.items()
            if loan.reader in dead or (loan.reader.node != node and now - loan.since > FAR_LOAN_SECONDS)
        ]
        for number in ended:
            self.give_back(number)
        for one in self.held.values():
            one.claims -= dead

    def faults(self) -> list[str]:
        """Where the books do not add up."""
        faults = []
        listed: Counter[str] = Counter()
        for one in self.held.values():
            listed[one.label.tenant] += one.label.nbytes
        if listed != self._held_bytes:
            faults.append(f"{dict(listed)} bytes listed, {dict(self._held_bytes)} booked")
        if self.used_bytes > self.capacity_bytes:
            faults.append(f"{self.used_bytes} bytes used, capacity {self.capacity_bytes}")
        if Counter(loan.serial for loan in self._loans.values()) != +self._lent:
            faults.append("loans and lent chunks differ")
        serials = {one.serial for one in self.held.values()}
        if self._lingering.keys() & serials or not self._lingering.keys() <= self._lent.keys():
            faults.append("chunks linger that are here, or that nobody reads")
        wrong = [name for name, key in self._named.items() if key not in self.held or name[0] != key[0]]
        return faults + [f"name {name} leads to no chunk" for name in wrong]

    def _victims(self, label: Label) -> list[Holding]:
        """Who makes room for the chunk: its tenant's own beyond a limit, then whoever has more than is reserved."""
        own = label.tenant
        over = self.shares.over_limit_bytes(own, self.tenant_bytes(own), label.nbytes)
        need = self.used_bytes + 2 * label.nbytes - self.capacity_bytes
        tenants = [who for who, nbytes in self._held_bytes.items() if nbytes]
        spare = self.shares.spare_bytes(((who, self._held_bytes[who]) for who in tenants), own)
        victims: dict[int, Holding] = {}

        def take(tenants: Iterable[str], wanted: int) -> int:
            """Victims of these, for so many bytes; how many they are."""
            taken = 0
            for one in self.held.values() if wanted > 0 else ():
                who, nbytes = one.label.tenant, one.label.nbytes
                if taken >= wanted:
                    break
                if who in tenants and nbytes <= spare[who] and one.serial not in victims and not self._lent[one.serial]:
                    victims[one.serial] = one
                    spare[who] -= nbytes
                    taken += nbytes
            return taken

        freed = take({own} & spare.keys(), over)
        over -= freed
        need -= freed + take(spare.keys(), need - freed)
        if max(need, over) > 0:
            raise self._refusal(label, over)
        return list(victims.values())

    def _refusal(self, label: Label, over: int) -> CapacityError:
        limit = f"; tenant {label.tenant} is at its limit" if over > 0 else ""
        return CapacityError(
            f"chunk {label.chunk_id}: twice {label.nbytes} bytes asked, {self.capacity_bytes - self.used_bytes} of "
            f"{self.capacity_bytes} free, {self.lent_bytes} being read{limit}"
        )
