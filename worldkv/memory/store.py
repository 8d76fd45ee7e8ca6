"""The chunk memory of one process: tiers of chunks, nearest first, each bounded, and one set of books for all.

    admit -> place in tier 0 ... demote under pressure ... drop from the last      (placement, eviction, detail)
    fetch -> find (catalogue) -> read, verified (tier) -> promote -> hit or miss with a reason (books)

- Every lookup is a hit in one tier or a miss with a reason: `lookups = hits + misses`, per tier and tenant.
- An id means something to its tenant only; to any other it is as unknown as one that never was.
- What is damaged, unreadable or made by other weights is a miss, never pixels and never an exception.
- References count who wants a chunk. Forks share lists (`chunk_list`), not references: the memory never sees a fork.
- A chunk may come back with less detail than it was admitted with, under the same id.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from worldkv.durations import Listener, nobody
from worldkv.errors import (
    CapacityError,
    ChunkCorrupt,
    ChunkEvicted,
    ChunkForeign,
    ChunkNotFound,
    ChunkPinned,
    TransferError,
    TransferLate,
)
from worldkv.memory import integrity
from worldkv.memory.adoption import Adoption
from worldkv.memory.ahead import Ahead, Expected
from worldkv.memory.books import Books
from worldkv.memory.catalogue import DEFAULT_TENANT, Catalogue, Entry
from worldkv.memory.chunk import KVChunk
from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.holds import Lease, Leases
from worldkv.memory.mover import Mover, VerifyingMover
from worldkv.memory.placement import Placement, TierRules
from worldkv.memory.tier import Tier
from worldkv.stats import MemoryStats

# An idle memory audits its books that seldom, so that audits take less than 2 % of the time however many chunks there
# are: one costs 10 us per known chunk.
AUDIT_SECONDS, AUDIT_SECONDS_PER_CHUNK = 10.0, 1e-3


class ChunkMemory:
    """Admit, fetch, hold and release chunks. Single-threaded; calls block for copies between tiers only."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        epoch: str,
        rules: Sequence[TierRules] | None = None,
        mover: Mover | None = None,
        listener: Listener = nobody,
    ) -> None:
        """`mover`: who copies chunks from tier to tier; by default the calling thread. `listener`: see `Books`."""
        if not tiers:
            raise CapacityError("a chunk memory needs at least one tier, got none")
        self.tiers = tuple(tiers)
        self.rules = tuple(rules) if rules is not None else tuple(TierRules() for _ in tiers)
        for tier, rule in zip(self.tiers, self.rules, strict=True):
            rule.shares.check(tier.name, tier.capacity_bytes)
        self._catalogue, self._books, self._leases = Catalogue(len(self.tiers)), Books(listener=listener), Leases()
        self._mover = mover or VerifyingMover()
        self._placement = Placement(self.tiers, self.rules, self._catalogue, self._books, epoch, self._mover)
        self._ahead = Ahead(self._placement, self._books, self._mover)
        self._past_epochs: set[str] = set()
        self._adoption = Adoption(self._placement, self._catalogue)
        self._audited = -math.inf

    @property
    def epoch(self) -> str:
        """Digest of the weights whose chunks are valid."""
        return self._placement.epoch

    def set_epoch(self, epoch: str) -> None:
        """From now on chunks of other weights miss as `stale_epoch`. O(1): their bytes go when asked for or needed."""
        self._past_epochs.add(self.epoch)
        self._placement.epoch = epoch

    def adopt(self) -> int:
        """Take up the chunks that the tiers hold from an earlier process; how many. Blocks for reading their headers.

        They are kept for whoever admits or asks for them, until room is needed. See `adoption`.
        """
        return self._adoption.start()

    def admit(
        self, chunk: KVChunk, *, group: Hashable = None, known_as: str | None = None, tenant: str | None = None
    ) -> str:
        """Take one reference on the chunk and store it in tier 0, making room; returns the id to ask for.

        Chunks of one `group` show one world, so that one may stand in for another. `known_as` is the id under
        which a chunk with less detail by now was first admitted. A chunk that no tier can take is dropped at once,
        and its fetch will miss; so is one of weights that were valid here before `set_epoch`, which a rollout under way
        may still bring. Raises ChunkForeign for a chunk of any other weights, or of another than the given `tenant`.
        """
        self._refuse_foreign(chunk, tenant)
        self._adoption.try_again(chunk.tenant, chunk.id)
        entry = self._entry_for(chunk.tenant, known_as or chunk.id, chunk)
        entry.group = group if entry.references == 0 or entry.group == group else None
        entry.references, entry.found = entry.references + 1, False
        self._books.moved("admitted", chunk.nbytes)
        if not entry.copies:
            self._catalogue.rename(entry, chunk)
            entry.last_use = self._catalogue.tick()
            if chunk.epoch == self.epoch:
                self._placement.place(entry, chunk)
            else:
                self._books.moved("dropped", chunk.nbytes)
        else:
            self._placement.copies.keep_names(entry)
            self._placement.place_near(entry, chunk)
        if entry.id == chunk.id and chunk.epoch == self.epoch:
            for level in (level for level, rules in enumerate(self.rules) if rules.copies_at_once):
                self._placement.enter(entry, chunk, level)
        return known_as or chunk.id

    def admit_dropped(self, chunk_ids: Iterable[str], *, tenant: str = DEFAULT_TENANT) -> None:
        """Take one reference on chunks that were dropped elsewhere: they miss as evicted, not as cold.

        Where this memory holds the same content for another session of the tenant, or a shared tier has it, they hit.
        """
        for chunk_id in chunk_ids:
            entry = self._catalogue.find(tenant, chunk_id) or self._catalogue.add(tenant, self.epoch, chunk_id)
            entry.references, entry.found = entry.references + 1, False

    def release(self, chunk_ids: Iterable[str], *, tenant: str = DEFAULT_TENANT) -> None:
        """Give back one reference on each; a chunk nobody holds any more is gone, but from tiers that keep such ones.

        Raises ChunkNotFound for a chunk on which nobody has a reference.
        """
        for chunk_id in chunk_ids:
            entry = self._catalogue.find(tenant, chunk_id)
            if entry is None or entry.references <= 0:
                raise ChunkNotFound(f"chunk {chunk_id} of tenant {tenant} is held by nobody and cannot be released")
            entry.references -= 1
            self._forget_unless_wanted([entry])

    def holds(self, chunk_id: str, *, tenant: str = DEFAULT_TENANT) -> bool:
        """Whether a fetch could find the chunk now; no lookup is counted."""
        entry = self._catalogue.find(tenant, chunk_id)
        return entry is not None and bool(entry.copies) and entry.epoch == self.epoch

    def fetch(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT, deadline: float = math.inf
    ) -> list[KVChunk | None]:
        """The chunks, in order, promoted to tier 0 where they fit; None for each miss.

        No chunk of one fetch is moved by another one of it. What is not in tier 0, and whose bytes would begin to move
        after the `deadline` (by the mover's clock, `time.monotonic`), is a miss as `late` and stays where it is.
        A chunk may be read in a tier's own memory, which is not free before it is let go: let go soon.
        """
        found: list[KVChunk | None] = []
        pinned: list[Entry] = []
        self._adoption.look_around(tenant, chunk_ids)
        try:
            for chunk_id in chunk_ids:
                found.append(self._fetch(chunk_id, tenant, deadline))
                if found[-1] is not None and (entry := self._catalogue.find(tenant, chunk_id)) is not None:
                    entry.pins += 1
                    pinned.append(entry)
        finally:
            self._unpin(pinned)
        return found

    def prefetch(self, chunk_ids: Iterable[str], *, tenant: str = DEFAULT_TENANT) -> Expected:
        """Start to bring those of the chunks that lie further off to tier 0, and keep all of them where they are then.

        What is held stays, and what tier 0 has no room for is left where it is. No lookup is counted; whether it was of
        use is. Blocks for copies within the host's memory, not for tiers that take long. To be let go after the
        fetch, or when they are not expected any more.
        """
        wanted = list(chunk_ids)
        self._adoption.look_around(tenant, wanted)
        expected = Expected([], self._leave)
        with ExitStack() as unless_all_is_well:
            unless_all_is_well.callback(expected.let_go)
            for chunk_id in wanted:
                # One by one: what is started first may be why another lies nowhere any more.
                for entry in self._lying([chunk_id], tenant):
                    if entry.epoch == self.epoch:
                        self._ahead.start(entry)
                        expected.entries.append(entry)
            unless_all_is_well.pop_all()
        return expected

    @contextmanager
    def pin(self, chunk_ids: Iterable[str], *, tenant: str = DEFAULT_TENANT) -> Iterator[None]:
        """Meanwhile those of the chunks that a tier holds neither move nor go."""
        entries = self._lying(chunk_ids, tenant)
        for entry in entries:
            entry.pins += 1
        try:
            yield
        finally:
            self._unpin(entries)

    def lease(self, chunk_ids: Iterable[str], seconds: float, now: float, *, tenant: str = DEFAULT_TENANT) -> Lease:
        """Hold those of the chunks that a tier holds until `expire` is told that `now + seconds` has come."""
        wanted = tuple(chunk_id for chunk_id in chunk_ids if self.holds(chunk_id, tenant=tenant))
        return Lease(self._leases.start(self._lying(wanted, tenant), now + seconds), wanted)

    def renew(self, lease: Lease, seconds: float, now: float) -> None:
        """Hold on until `now + seconds`. Raises LeaseExpired where it is too late."""
        self._leases.renew(lease.number, seconds, now)

    def end_lease(self, lease: Lease) -> None:
        """Let go before time; nothing happens where it ran out."""
        self._forget_unless_wanted(self._leases.end(lease.number))

    def expire(self, now: float) -> None:
        """End the leases that ran out by `now`."""
        self._forget_unless_wanted(self._leases.expire(now))

    def idle(self, now: float) -> list[str]:
        """For the time between chunks: `expire`, and when it is due an audit; the faults that it found.

        An audit is `check_integrity` without lists, after another try at removing what a tier failed to remove.
        `now` is in the clock of the leases. Blocks for listing the tiers; reads no payloads.
        """
        self.expire(now)
        pause = max(AUDIT_SECONDS, AUDIT_SECONDS_PER_CHUNK * len(self._catalogue))
        if self._audited <= now < self._audited + pause:
            return []
        self._audited = now
        for level in range(len(self.tiers)):
            self._placement.access.retry_stuck(level)
        return self.check_integrity()

    def demote(self, chunk_ids: Iterable[str], *, tenant: str = DEFAULT_TENANT) -> None:
        """Move the chunks one tier down, such as those of an idle session. Raises ChunkPinned for one that is held."""
        for entry in self._lying(chunk_ids, tenant):
            if entry.firm:
                raise ChunkPinned(f"chunk {entry.id} has {entry.pins} pins and {entry.leases} leases and cannot move")
            if entry.copies:
                self._placement.demote(entry)

    def held(self, chunk_ids: Iterable[str], *, tenant: str = DEFAULT_TENANT) -> dict[str, KVChunk]:
        """Id -> chunk of those that a tier holds and that are sound, coldest first.

        Admitted in this order to empty tiers of the same size, they lie where they lie here. No lookup is counted
        and nothing moves.
        """
        names: dict[Entry, list[str]] = {}
        for chunk_id in chunk_ids:
            entry = self._catalogue.find(tenant, chunk_id)
            if entry is not None and entry.copies and entry.epoch == self.epoch:
                names.setdefault(entry, []).append(chunk_id)
        found: dict[str, KVChunk] = {}
        for entry in sorted(names, key=lambda entry: (-min(entry.copies), entry.copies[min(entry.copies)].stamp)):
            chunk = self._look(entry)
            found |= {} if chunk is None else dict.fromkeys(names[entry], chunk)
        return found

    def lying(self) -> list[list[str]]:
        """Ids of what each tier holds, least recently used first."""
        return [[entry.id for entry in self._catalogue.lying(level)] for level in range(len(self.tiers))]

    def stats(self) -> MemoryStats:
        """A frozen copy of all counters and the tiers' fill."""
        return self._books.stats(self.tiers, self._catalogue)

    def check_integrity(self, lists: Iterable[ChunkList] | None = None, *, tenant: str = DEFAULT_TENANT) -> list[str]:
        """Faults in the books, empty when all is well; `stats` counts them. Reads no payloads.

        With `lists`, those of all sessions of the tenant, references are recounted too: none leaked, none missing.
        """
        faults = [*integrity.tier_faults(self._placement, self._catalogue)]
        faults += [*integrity.entry_faults(self._catalogue), *integrity.lookup_faults(self.stats())]
        if lists is not None:
            faults += integrity.reference_faults(self._catalogue, list(lists), tenant)
        self._books.events["audits"] += 1
        self._books.events["faults"] += len(faults)
        return faults

    def close(self) -> None:
        """End transfers and close the tiers; what is durable stays."""
        with ExitStack() as closing:  # all of them, should one fail
            for tier in reversed(self.tiers):
                closing.callback(tier.close)
            closing.callback(self._mover.close)
            closing.callback(self._ahead.close)

    def _fetch(self, chunk_id: str, tenant: str, deadline: float) -> KVChunk | None:
        started = self._books.clock()
        self._adoption.try_again(tenant, chunk_id)
        entry = self._catalogue.find(tenant, chunk_id)
        if entry is not None and entry.epoch != self.epoch:
            self._miss_as_stale(entry)
            return None
        reasons, last_start = set(), deadline
        try:
            if entry is not None:
                self._ahead.land(entry, deadline)
        except TransferLate:
            last_start = -math.inf  # it is on its way, and not brought a second time
        for level in range(len(self.tiers)):
            if entry is None or level not in entry.copies:
                self._books.passed(level, tenant, entry.left.get(level, "cold") if entry else "cold")
                continue
            reason = "corrupt"
            try:
                chunk = self._placement.bring(entry, level, last_start)
                if chunk is not None:
                    self._books.asked_for(entry)
                    self._books.hit(level, tenant)
                    self._books.fetched(level, self.tiers[level].name, chunk, started)
                    return chunk
            except TransferLate:
                reason = "late"
            except ChunkEvicted:
                reason = "evicted"
            self._books.passed(level, tenant, reason)
            reasons.add(reason)
        lost = entry.lost if entry else "cold"
        self._books.miss("corrupt" if "corrupt" in reasons else "late" if "late" in reasons else lost)
        if entry is not None:
            self._catalogue.settle(entry)
        return None

    def _miss_as_stale(self, entry: Entry) -> None:
        for level in range(len(self.tiers)):
            self._books.passed(level, entry.tenant, "stale_epoch")
        self._books.miss("stale_epoch")
        if not entry.firm:
            self._placement.copies.drop(entry, "stale_epoch")
            self._catalogue.settle(entry)

    def _refuse_foreign(self, chunk: KVChunk, tenant: str | None) -> None:
        what = f"chunk {chunk.id}, number {chunk.index} of a rollout"
        if tenant is not None and chunk.tenant != tenant:
            raise ChunkForeign(
                f"{what}: tenant {tenant!r} expected, {chunk.tenant!r} found; admit it for the tenant that owns it"
            )
        if chunk.epoch != self.epoch and chunk.epoch not in self._past_epochs:
            raise ChunkForeign(
                f"{what}: epoch {self.epoch!r} expected, {chunk.epoch!r} found: another model or other weights made "
                f"it; give each model a memory of its own, or call set_epoch when the weights change"
            )

    def _entry_for(self, tenant: str, name: str, chunk: KVChunk) -> Entry:
        """The entry of this name: one it had before, that of the chunk's own content, or a fresh one."""
        known, same = self._catalogue.find(tenant, name), self._catalogue.find(tenant, chunk.id)
        if same is None:
            return known or self._catalogue.add(tenant, chunk.epoch, name)
        if known is None:
            self._catalogue.also_named(same, name)
        elif known is not same:
            if known.copies or known.firm:
                return known
            self._catalogue.merge(known, same)
        return same

    def _look(self, entry: Entry) -> KVChunk | None:
        """The chunk if it is sound, verified wherever it lies; nothing changes where it is not."""
        try:
            chunk = self.tiers[min(entry.copies)].get(entry.id)
            chunk.verify()
        except (ChunkCorrupt, ChunkNotFound, TransferError):
            return None
        return chunk

    def _lying(self, chunk_ids: Iterable[str], tenant: str) -> list[Entry]:
        entries = (self._catalogue.find(tenant, chunk_id) for chunk_id in chunk_ids)
        return [entry for entry in entries if entry is not None and entry.copies]

    def _leave(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        self._ahead.give_up(entries)
        self._forget_unless_wanted(entries)

    def _unpin(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        for entry in entries:
            entry.pins -= 1
        self._forget_unless_wanted(entries)

    def _forget_unless_wanted(self, entries: Iterable[Entry]) -> None:
        for entry in dict.fromkeys(entries):
            if entry.wanted or not entry.names:
                continue
            for level in list(entry.copies):
                if not self.rules[level].keeps_released:
                    self._placement.copies.remove(entry, level, "evicted")
            entry.found = bool(entry.copies)  # what stays, stays as if found at a start
            self._catalogue.settle(entry)
