"""Real deaths: a process that writes to disk and durable tier is killed at its n-th call of a medium, for every n.

The child tells its parent by a pipe, before each step and after it, what lies on the media; then it is gone, with
SIGKILL. The parent starts anew on what it left, and asks for everything: what was there comes back exact, nothing else
does, bytes stay within caps plus one chunk, and no part of a file counts.

Uses `os.fork`: for processes of one thread.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from campaign.medium import Faults, FaultyDisk, FaultyStore
from campaign.pool import CHUNKS, EPOCHS, LADDER, TENANTS, Pool
from campaign.world import CHUNK_FILE_BYTES, CPU, PAGE_BYTES, Broken
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.durable import DurableTier
from worldkv.memory.tiers.resident import ResidentTier

TENANT, EPOCH = TENANTS[0], EPOCHS[0]
DEVICE_BYTES, DISK_BYTES, DURABLE_BYTES = 3 * PAGE_BYTES, 12 * PAGE_BYTES, 12 * PAGE_BYTES
ROOMY_BYTES = 2**20
STEPS = (*["admit"] * 5, *["demote"] * 4, *["fetch"] * 3, "release", "damage", "restart")


@dataclass
class Deadly(Faults):
    """Media of a process that dies at the n-th call of any of them."""

    dies_at: int = 0
    pipe: int = -1
    last: str = ""

    def reach(self, point: str) -> None:
        """The call that is one too many is told, and does not happen. A scan of many folders counts as one."""
        if point == self.last == "scan":
            return
        self.last = point
        super().reach(point)
        if self.calls == self.dies_at:
            os.write(self.pipe, json.dumps({"died": str(point)}).encode() + b"\n")
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Deaths:
    """What a sweep saw."""

    points: Counter[str] = field(default_factory=Counter)
    """Deaths by the call that did not happen."""
    found: int = 0
    """Chunks that lay on a medium at a death and came back exact."""


@dataclass(frozen=True)
class Sweep:
    """All deaths of one sequence of steps."""

    pool: Pool
    seed: int
    steps: int
    roomy: bool
    """Media on which nothing has to make room: then all that lay there must be found. Else the caps are tested."""

    def run(self, folder: Path) -> Deaths:
        """Kill a process at its first call of a medium, at its second, ..., until one lives to the end."""
        deaths = Deaths()
        for place in range(1, 1_000_000):
            told = list(self._die(folder, place))
            died = next((line["died"] for line in told if "died" in line), None)
            try:
                deaths.found += self._start_anew(folder, told, died)
            except AssertionError as fault:
                where = f"seed {self.seed}, {self.roomy=}, killed at call {place} ({died})"
                raise Broken(f"{where}: {fault}; told last: {told[-3:]}") from fault
            shutil.rmtree(folder)
            if died is None:
                break
            deaths.points[died] += 1
        return deaths

    def _die(self, folder: Path, place: int) -> Iterator[dict[str, object]]:
        """What the child told."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            code = 1
            try:
                self._live(folder, Deadly(dies_at=place, pipe=writing))
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        with open(reading, encoding="utf-8") as lines:
            told = [json.loads(line) for line in lines]
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if killed != any("died" in line for line in told) or (not killed and status):
            raise Broken(f"seed {self.seed}, call {place}: the process ended with status {status}, told {told[-1:]}")
        return iter(told)

    def _live(self, folder: Path, media: Deadly) -> None:
        def tell(**what: object) -> None:
            os.write(media.pipe, json.dumps(what).encode() + b"\n")

        rng, held = random.Random(self.seed), []
        memory = self._open(folder, media)
        for _ in range(self.steps):
            step = rng.choice(STEPS)
            tell(leaving=self._leaving(memory, step, held), harmed=step == "damage")
            memory = self._step(memory, step, rng, held, lambda: self._open(folder, media))
            tell(lying=memory.lying()[1:])
        memory.close()

    def _leaving(self, memory: ChunkMemory, step: str, held: list[str]) -> list[str]:
        """What the step may take off the media."""
        if step == "release":
            return held[:1]
        if step == "damage":
            return [chunk_id for ids in memory.lying()[1:] for chunk_id in ids[:1]]
        return held if step == "restart" and not self.roomy else []

    def _step(
        self, memory: ChunkMemory, step: str, rng: random.Random, held: list[str], reopen: Callable[[], ChunkMemory]
    ) -> ChunkMemory:
        if step == "admit":
            held.append(memory.admit(self.pool.fresh(TENANT, EPOCH, rng.randrange(CHUNKS))))
        elif step == "release" and held:
            memory.release([held.pop(0)], tenant=TENANT)
        elif step == "damage":
            self._damage(memory)
        elif step == "restart":
            memory.close()
            memory = reopen()
            memory.admit_dropped(held, tenant=TENANT)
        elif held:
            wanted = [rng.choice(held) for _ in range(2)]
            memory.fetch(wanted, tenant=TENANT) if step == "fetch" else memory.demote(wanted, tenant=TENANT)
        return memory

    def _damage(self, memory: ChunkMemory) -> None:
        """The oldest file of each medium is damaged, and asked for."""
        for tier, file in zip(memory.tiers[1:], (disk_file, durable_file), strict=True):
            for chunk_id in list(tier.ids())[:1]:
                path = file(Path(getattr(tier, "folder", getattr(tier, "root", ""))), chunk_id)
                path.write_bytes(path.read_bytes()[:-1])
                memory.fetch([chunk_id], tenant=TENANT)

    def _open(self, folder: Path, media: Faults) -> ChunkMemory:
        disk_bytes, durable_bytes = (ROOMY_BYTES, ROOMY_BYTES) if self.roomy else (DISK_BYTES, DURABLE_BYTES)
        (folder / "durable").mkdir(parents=True, exist_ok=True)
        disk = DiskTier.open("disk", folder / "disk", disk_bytes, FaultyDisk(media))
        durable = DurableTier("durable", FaultyStore(media), str(folder / "durable"), durable_bytes)
        durable.claim()
        durable.scan()
        ladder = TierRules(keeps_copies=self.roomy) if self.roomy else TierRules(ladder=LADDER)
        rules = [TierRules(), ladder, TierRules(keeps_copies=True)]
        tiers = [ResidentTier("device", CPU, DEVICE_BYTES, verifies=True), disk, durable]
        memory = ChunkMemory(tiers, EPOCH, rules)
        memory.adopt()
        return memory

    def _start_anew(self, folder: Path, told: list[dict[str, object]], died: str | None) -> int:
        """Look at what the child left; how many chunks were there and are found."""
        self._check_bytes(folder)
        memory = self._open(folder, Faults())
        try:
            if parts := [file.name for file in folder.rglob("*.part")]:
                raise Broken(f"parts of files are left: {parts}")
            if faults := memory.check_integrity():
                raise Broken("; ".join(faults))
            due = self._due(told)
            self._fetch_all(memory, due)
            memory.admit(self.pool.fresh(TENANT, EPOCH, 0))
            if memory.fetch([self.pool.chunks[TENANT, EPOCH][0].id], tenant=TENANT) == [None]:
                raise Broken("what is admitted after the start cannot be had")
            self._check_bytes(folder)
            return len(due)
        finally:
            memory.close()

    def _due(self, told: Iterable[dict[str, object]]) -> set[str]:
        """What lay on a medium after the last step that ended, but for what the one under way may take off."""
        lying: list[list[str]] = []
        leaving: list[str] = []
        harmed: set[str] = set()  # the copy stays in the books as long as a nearer one is read
        for line in told:
            harmed |= set(line["leaving"]) if line.get("harmed") else set()  # type: ignore[call-overload]  # as the child wrote it
            if "lying" in line:
                lying, leaving = line["lying"], []  # type: ignore[assignment]  # as the child wrote it
            leaving = line.get("leaving", leaving)  # type: ignore[assignment]  # as the child wrote it
        return {chunk_id for ids in lying for chunk_id in ids} - {*leaving, *harmed} if self.roomy else set()

    def _fetch_all(self, memory: ChunkMemory, due: set[str]) -> None:
        for asked in (chunk.id for chunk in self.pool.chunks[TENANT, EPOCH]):
            (found,) = memory.fetch([asked], tenant=TENANT)
            if found is not None:
                self.pool.check(asked, found, TENANT)
            elif asked in due:
                raise Broken(f"chunk {asked} lay on a medium, and is not found")

    def _check_bytes(self, folder: Path) -> None:
        caps = (ROOMY_BYTES, ROOMY_BYTES) if self.roomy else (DISK_BYTES, DURABLE_BYTES)
        for place, page, cap in (("disk", PAGE_BYTES, caps[0]), ("durable", 1, caps[1])):
            files = [file for file in (folder / place).rglob("*") if file.suffix in (".wkv", ".part")]
            nbytes = sum(-(-file.stat().st_size // page) * page for file in files)
            if nbytes > cap + CHUNK_FILE_BYTES:
                raise Broken(f"{nbytes} bytes lie on {place}, its cap is {cap}")


def disk_file(folder: Path, chunk_id: str) -> Path:
    """Where a disk tier keeps the chunk."""
    return folder / chunk_id[:2] / f"{chunk_id}.wkv"


def durable_file(root: Path, chunk_id: str) -> Path:
    """Where a durable tier in a folder keeps the chunk."""
    return root / f"{chunk_id}.wkv"
