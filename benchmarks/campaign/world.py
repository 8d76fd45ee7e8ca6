"""A memory of four tiers, those who use it, and what must be true of it whatever happens.

    device, host   resident, slabs, or slabs that a transfer engine links; anew after each restart
    disk           a folder on a `FaultyDisk`
    durable        objects of a `FaultyStore`

Nothing here breaks anything: see `harm`. What users do is in `use`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from campaign.medium import Faults, FaultyDisk, FaultyStore, PowerCut
from campaign.pool import EPOCHS, LADDER, TENANTS, Pool
from campaign.tally import Tally
from worldkv.memory.chunk import KVChunk
from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.crossing import Crossing
from worldkv.memory.eviction import CostAware, PoseRedundancy
from worldkv.memory.holds import Lease
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tenants import Share, Shares
from worldkv.memory.tier import Tier
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.durable import DurableTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.memory.transfer import PlainLink, TransferEngine

CPU = torch.device("cpu")
PAGE_BYTES = 4096
CHUNK_FILE_BYTES = 4 * PAGE_BYTES
"""Of the largest chunk: a page of header and three of payload."""
CAPACITIES = {"device": 6 * PAGE_BYTES, "host": 8 * PAGE_BYTES, "disk": 40 * PAGE_BYTES, "durable": 48 * PAGE_BYTES}
DISK, DURABLE = 2, 3


class Broken(AssertionError):
    """The memory did what it must never do."""


@dataclass
class View:
    """A chunk that somebody fetched and still reads."""

    asked: str
    tenant: str
    chunk: KVChunk


@dataclass
class Pinned:
    """Chunks that somebody holds in place."""

    hold: AbstractContextManager[None]
    names: list[str]
    places: dict[str, set[int]]
    struck: int
    """See `World.struck`: as many faults had been by then."""


@dataclass
class World:
    """One campaign's memory and its users."""

    folder: Path
    pool: Pool
    tally: Tally
    rng: random.Random
    wait: Callable[[float], None]
    """What a slow medium does for so many seconds."""
    now: float = 0.0
    epoch: str = EPOCHS[0]
    lists: list[tuple[str, ChunkList]] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    pins: list[Pinned] = field(default_factory=list)
    leases: list[tuple[Lease, float]] = field(default_factory=list)
    harmed: set[tuple[int, str]] = field(default_factory=set)
    """(tier, chunk id) of what was damaged where it lies, and may miss."""
    misses_due: dict[str, int] = field(default_factory=dict)
    """Misses of this memory as its callers saw them: of chunks on which someone has a reference, and of others."""
    lookups: int = 0

    def __post_init__(self) -> None:
        self.stamp = 0
        self.open()

    # The memory's life

    def open(self) -> None:
        """Start the process: find what lies on disk, with empty memory before it."""
        rng = self.rng
        self.media = {level: Faults(wait=self.wait, stamp=self.stamp) for level in (DISK, DURABLE)}
        kind = rng.choice(("resident", "slabs", "linked slabs"))
        near, link = (self._resident(), None) if kind == "resident" else self._slabs(linked=kind == "linked slabs")
        self.tiers: list[Tier] = [*near, *self._far_tiers()]
        mover = VerifyingMover(link, lambda: self.now)
        self.limit_bytes = rng.choice((5, 6, 7)) * PAGE_BYTES
        self.memory = ChunkMemory(self.tiers, self.epoch, rules(self.limit_bytes), mover)
        self.past: set[str] = set()
        self.misses_due, self.lookups = {"known": 0, "unknown": 0}, 0
        self.found = [set(tier.ids()) for tier in self.tiers]
        self.tally.event("open", self.memory.adopt(), [sorted(ids) for ids in self.found])

    def _resident(self) -> list[Tier]:
        return [ResidentTier(name, CPU, CAPACITIES[name], verifies=True) for name in ("device", "host")]

    def _slabs(self, *, linked: bool) -> tuple[list[Tier], Crossing | None]:
        device = DeviceTier.open("device", CPU, CAPACITIES["device"])
        host = HostTier.open("host", CAPACITIES["host"], headroom=lambda: None)
        if not linked:
            return [device, host], None
        engine = TransferEngine(PlainLink(), PlainLink(), clock=lambda: self.now)
        return [device, host], Crossing(engine, device, host, ThreadPoolExecutor(1))

    def _far_tiers(self) -> list[Tier]:
        disk = DiskTier.open("disk", self.folder / "disk", CAPACITIES["disk"], FaultyDisk(self.media[DISK]))
        root = self.folder / "durable"
        root.mkdir(exist_ok=True)
        durable = DurableTier("durable", FaultyStore(self.media[DURABLE]), str(root), CAPACITIES["durable"])
        durable.claim()
        durable.scan()
        return [disk, durable]

    def restart(self, *, cut: bool = False) -> None:
        """End the process, in order or by a power cut, and start it again.

        Sessions that come back take a reference on what they had; others are gone.
        """
        if not cut:
            self.heal()
            self.drop_views()
            self.unpin()
            self.audit()
        before, names, limit_bytes = self.memory.lying(), self._names_on_media(), self.limit_bytes
        undisturbed = not cut and not any(faults.struck for faults in self.media.values())
        self._end(cut)
        self.mount()
        self.check_bytes_on_media()
        self.open()
        if not cut and not self.harmed:
            self._expect_found(before)
        if undisturbed and not self.harmed and self.limit_bytes >= limit_bytes:
            self._expect_names(names)
        was, self.lists = self.lists, []
        for who, stored in was:
            if stored and self.rng.random() < 0.5:
                self.memory.admit_dropped(stored.values(), tenant=who)
                self.lists.append((who, ChunkList(stored.items())))

    def _end(self, cut: bool) -> None:
        self.tally.take(self.memory.stats(), self.media.values())
        for faults in self.media.values():
            faults.cut_after = 0 if cut else None
        with suppress(PowerCut):
            self.unpin()
        # What was handed out goes with the process; damaged memory goes too.
        self.views, self.leases = [], []
        self.harmed = {(level, chunk_id) for level, chunk_id in self.harmed if level >= DISK}
        with suppress(PowerCut):
            self.memory.close()
        for tier in self.tiers:  # the kernel gives locks back, however a process ends
            with suppress(PowerCut):
                tier.close()
        self.stamp = max(faults.stamp for faults in self.media.values())

    def _expect_found(self, before: list[list[str]]) -> None:
        for level in (DISK, DURABLE):
            if lost := set(before[level]) - self.found[level]:
                raise Broken(f"tier {self.tiers[level].name} lost chunks {sorted(lost)} in a restart")

    def _names_on_media(self) -> list[tuple[str, str]]:
        """(tenant, id) of all under which a chunk that survives is asked for."""
        names = self.memory._catalogue.names()
        return [key for key, entry in names if entry.epoch == self.epoch and {DISK, DURABLE} & entry.copies.keys()]

    def _expect_names(self, names: list[tuple[str, str]]) -> None:
        self.tally.names_checked += len(names)
        if lost := [name for tenant, name in names if not self.memory.holds(name, tenant=tenant)]:
            raise Broken(f"chunks are not found under {lost} after a restart")

    def end(self) -> None:
        """Everybody lets go; then nothing is left, but what was found at the last start and asked for by nobody."""
        self.heal()
        self.drop_views()
        self.unpin()
        for lease, _ in self.leases:
            self.memory.end_lease(lease)
        self.leases = []
        for who, stored in self.lists:
            self.memory.release(stored.let_go(), tenant=who)
        self.lists = []
        self.audit()
        self._end(cut=False)

    # What must be true

    @property
    def armed(self) -> bool:
        """Whether a medium may fail at its next call."""
        return any(faults.armed for faults in self.media.values())

    @property
    def struck(self) -> int:
        """Calls of media that failed by order since the last start, and faults ordered since the first."""
        return sum(faults.struck for faults in self.media.values()) + self.tally.faults.total()

    def heal(self) -> None:
        """All media work again, as fast as they are."""
        for faults in self.media.values():
            faults.heal()
        self.mount()

    def mount(self) -> None:
        """The disk's folder is where it was."""
        away = self.folder / "disk-away"
        if away.exists():
            away.rename(self.folder / "disk")

    def may_miss(self, chunk_id: str) -> bool:
        """Whether a fault that was ordered may keep this chunk from being found."""
        forms = self.pool.forms(chunk_id)
        return self.armed or any(harmed in forms for _, harmed in self.harmed)

    def got(self, asked: str, tenant: str, found: KVChunk) -> None:
        """Compare every byte of what came back."""
        self.pool.check(asked, found, tenant)
        self.tally.checked_chunks += 1

    def drop_views(self) -> None:
        """Readers are done, and what they read stayed as it was to the end."""
        for view in self.views:
            self.got(view.asked, view.tenant, view.chunk)
        self.views = []

    def unpin(self) -> None:
        """Nobody holds chunks in place any more. Raises PowerCut where the power is gone; they are let go still."""
        with ExitStack() as holds:
            for pinned in self.pins:
                holds.push(pinned.hold)
            self.pins = []

    def audit(self) -> None:
        """All books, of the memory and of its users. Media must be healed."""
        who = TENANTS[self.tally.checks % len(TENANTS)]
        lists = [stored for tenant, stored in self.lists if tenant == who]
        faults = self.memory.check_integrity(lists, tenant=who)
        lying = [set(tier.ids()) for tier in self.tiers]
        gone = [chunk_id for level, chunk_id in self.harmed if level >= DISK]
        if faults := [fault for fault in dict.fromkeys(faults) if not any(chunk_id in fault for chunk_id in gone)]:
            raise Broken("; ".join(faults))
        self.harmed = {(level, chunk_id) for level, chunk_id in self.harmed if chunk_id in lying[level]}
        self._audit_lookups()
        self.check_bytes_on_media()
        self.tally.checks += 1

    def _audit_lookups(self) -> None:
        stats, due = self.memory.stats(), self.misses_due
        missed = sum(stats.misses.values())
        if stats.lookups != self.lookups or missed != sum(due.values()) or stats.hits != self.lookups - missed:
            raise Broken(f"{self.lookups} lookups and {due} misses were seen, counted: {stats}")
        if stats.misses["cold"] > due["unknown"]:
            raise Broken(f"{stats.misses['cold']} cold misses, but only {due['unknown']} were of unknown chunks")

    def check_bytes_on_media(self) -> None:
        """Of all chunk files, whoever wrote them, as their tier counts bytes: at most one chunk beyond the cap."""
        for level, place, page in ((DISK, "disk", PAGE_BYTES), (DURABLE, "durable", 1)):
            files = [file for file in (self.folder / place).rglob("*") if file.suffix in (".wkv", ".part")]
            nbytes = sum(-(-file.stat().st_size // page) * page for file in files)
            if nbytes > self.tiers[level].capacity_bytes + CHUNK_FILE_BYTES:
                raise Broken(f"{nbytes} bytes lie on {place}, its cap is {self.tiers[level].capacity_bytes}")


def rules(limit_bytes: int) -> list[TierRules]:
    """Every rule there is, in some tier."""
    shares = Shares({"guarded": Share(2 * PAGE_BYTES, None), "limited": Share(0, limit_bytes)})
    far = Shares({"guarded": Share(8 * PAGE_BYTES, None), "limited": Share(0, 2 * limit_bytes)})
    return [
        TierRules(high_ratio=0.9, low_ratio=0.6, shares=shares),
        TierRules(CostAware(), ladder=LADDER, shares=shares),
        TierRules(PoseRedundancy(), ladder=LADDER, shares=far),
        TierRules(keeps_copies=True, shares=shares),
    ]
