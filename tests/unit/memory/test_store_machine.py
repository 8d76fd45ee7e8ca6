"""The store under any sequence of calls, faults included, with all books checked after each step.

`World` knows how to do each kind of step at random; hypothesis looks for short sequences that break something, and
walks of fixed seeds go far.
"""

import random
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldkv.errors import ChunkPinned, LeaseExpired, TransferError
from worldkv.memory.ahead import Expected
from worldkv.memory.chunk import KVChunk
from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.crossing import Crossing
from worldkv.memory.detail import Detail, Ladder
from worldkv.memory.eviction import CostAware, PoseRedundancy
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tenants import Share, Shares
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.memory.transfer import PlainLink, TransferEngine

CPU = torch.device("cpu")
TENANTS = ("guarded", "limited")
# A chunk in every codec, so that the reduced form of one is another one of the same tenant.
CODECS = ("fp32", "bf16", "int8", "int4")
CHUNKS = 12
# How often each kind of step is taken.
STEPS = {
    "admit": 6,
    "append": 3,
    "admit_dropped": 1,
    "fork": 2,
    "let_go": 3,
    "fetch": 8,
    "fetch_late": 1,
    "prefetch": 4,
    "read_early": 2,
    "stop_expecting": 6,
    "read": 2,
    "stop_reading": 3,
    "fetch_as_the_other": 1,
    "pin": 2,
    "unpin": 2,
    "lease": 1,
    "pass_time": 1,
    "demote": 2,
    "change_weights_and_back": 1,
    "damage": 2,
    "fail": 1,
    "recover": 2,
    "look": 1,
}


class Patient(Executor):
    """Readers that read when they are told to, or when somebody waits for them."""

    class Reading(Future):
        def __init__(self, read) -> None:
            super().__init__()
            self._read = read

        def work(self) -> None:
            if self.set_running_or_notify_cancel():
                try:
                    self.set_result(self._read())
                except Exception as fault:
                    self.set_exception(fault)

        def result(self, timeout=None):
            if not self.done():
                self.work()
            return super().result(timeout)

    def __init__(self) -> None:
        self.readings: list[Patient.Reading] = []

    def submit(self, read, *args) -> Future:
        self.readings.append(Patient.Reading(partial(read, *args)))
        return self.readings[-1]

    def work_on_one(self, rng: random.Random) -> None:
        self.readings = [reading for reading in self.readings if not reading.done()]
        if self.readings:
            rng.choice(self.readings).work()


class FailsOnDemand:
    """As a tier does whose medium went away."""

    verbs = ("put", "get", "remove")
    failing: frozenset[str] = frozenset()

    def put(self, chunk) -> None:
        self._maybe_fail("put")
        super().put(chunk)

    def reserve(self, layers, layer_bytes):
        self._maybe_fail("put")
        return super().reserve(layers, layer_bytes)

    def get(self, chunk_id: str):
        self._maybe_fail("get")
        return super().get(chunk_id)

    def remove(self, chunk_id: str) -> None:
        self._maybe_fail("remove")
        super().remove(chunk_id)

    def _maybe_fail(self, verb: str) -> None:
        if verb in self.failing:
            raise TransferError(f"tier {self.name}: {verb} fails on purpose")


class FlakyResident(FailsOnDemand, ResidentTier):
    pass


class FlakyAside(FlakyResident):
    """Read by others, as a disk is, into memory of the chunk's own."""

    reads_aside = True

    def get(self, chunk_id: str):
        return super().get(chunk_id).copy_to(CPU)


class FlakySlab(FailsOnDemand, HostTier):
    pass


def resident_tiers(size: int, clock):
    """Of resident tiers, and a plain mover."""
    tiers = [
        ResidentTier("device", CPU, 3 * size),
        FlakyResident("host", CPU, 4 * size),
        ResidentTier("last", CPU, 6 * size, verifies=True),
    ]
    return tiers, VerifyingMover(clock=clock)


def slab_tiers(size: int, clock):
    """Of slabs, and a plain mover."""
    tiers = [
        DeviceTier.open("device", CPU, 3 * size),
        FlakySlab.open("host", 4 * size),
        HostTier.open("last", 6 * size),
    ]
    return tiers, VerifyingMover(clock=clock)


def linked_tiers(size: int, clock, *, device_digests: bool = False):
    """Of slabs, two of which exchange chunks through a transfer engine that works inline."""
    tiers, _ = slab_tiers(size, clock)
    tiers[1].verbs = ("put", "remove")  # a crossing trusts that it can refer to what it has just published
    engine = TransferEngine(PlainLink(), PlainLink(), clock=clock)
    return tiers, VerifyingMover(Crossing(engine, *tiers[:2], ThreadPoolExecutor(1), device_digests), clock)


def verified_there_tiers(size: int, clock):
    """As `linked_tiers`, but what comes up is verified where it arrives."""
    return linked_tiers(size, clock, device_digests=True)


def slow_tiers(size: int, clock):
    """Of resident tiers, the middle one of which is read by others, when the world says so or when somebody waits."""
    tiers, _ = resident_tiers(size, clock)
    tiers[1] = FlakyAside("host", CPU, 4 * size)
    return tiers, VerifyingMover(clock=clock, readers=Patient())


KINDS_OF_TIERS = [resident_tiers, slab_tiers, linked_tiers, verified_there_tiers, slow_tiers]


def rules_of(size: int) -> list[TierRules]:
    """Every rule there is, in some tier; `size` is that of a middling chunk."""
    ladder = Ladder((Detail("int8"), Detail("int4"), Detail("int4", 0.5)), rows=1, columns=2)
    shares = Shares({"guarded": Share(size, None), "limited": Share(0, 3 * size)})
    return [
        TierRules(high_ratio=0.9, low_ratio=0.6, shares=shares),
        TierRules(CostAware(), ladder=ladder, shares=shares),
        TierRules(PoseRedundancy(), keeps_copies=True, ladder=ladder, shares=shares),
    ]


def decoded(chunk) -> torch.Tensor:
    """Keys and values [2, L, T, H, D]."""
    k = torch.empty(chunk.encoded.shape)
    v = torch.empty_like(k)
    chunk.load(k, v)
    return torch.stack([k, v])


def assert_shows_the_same(chunk, original) -> None:
    """Whatever detail it lost: the original's keys and values, at the tokens it still has."""
    whole, ids = decoded(original), chunk.token_ids_T3
    if ids is not None:
        frame, _, column = torch.from_numpy(ids).long().T
        whole = whole[:, :, 2 * frame + column]
    torch.testing.assert_close(decoded(chunk), whole, atol=0.4, rtol=0)


class World:
    """A memory of three tiers, the sessions that use it, and what must be true of it."""

    def __init__(self, new_chunk, damage, open_tiers=resident_tiers, folder: Path | None = None) -> None:
        def make(i: int, who: str):
            return new_chunk(i // len(CODECS), tenant=who, codec=CODECS[i % len(CODECS)], tokens=6)

        self.chunks = {who: [make(i, who) for i in range(CHUNKS)] for who in TENANTS}
        self.flip = damage
        size = self.chunks["guarded"][1].nbytes
        self.now = 0.0
        tiers, mover = open_tiers(size, lambda: self.now)
        if folder is not None:
            tiers[2] = DiskTier.open("last", folder, 6 * 4096)
        self.host = tiers[1]
        self.readers = mover._readers
        self.blind = mover._crossing is not None and not mover._crossing.device_digests
        self.expected: list[Expected] = []
        self.memory = ChunkMemory(tiers, "weights-a", rules_of(size), mover)
        self.reading: list[tuple[KVChunk, torch.Tensor]] = []
        self.lists: list[tuple[str, ChunkList]] = []
        self.pins: list[tuple[object, dict[str, set[int]]]] = []
        self.leases: list[tuple[object, float]] = []
        self.damaged = False

    def admit(self, rng: random.Random) -> None:
        who, i = rng.choice(TENANTS), rng.randrange(CHUNKS)
        chunk_id = self.memory.admit(self.chunks[who][i], group=rng.choice([None, 1, 2]))
        self.lists.append((who, ChunkList([(i, chunk_id)])))

    def append(self, rng: random.Random) -> None:
        if self.lists:
            who, stored = rng.choice(self.lists)
            i = rng.randrange(CHUNKS)
            if i > max(stored):
                stored.append(i, self.memory.admit(self.chunks[who][i]))

    def admit_dropped(self, rng: random.Random) -> None:
        who, i = rng.choice(TENANTS), rng.randrange(CHUNKS)
        chunk_id = self.chunks[who][i].id
        self.memory.admit_dropped([chunk_id], tenant=who)
        self.lists.append((who, ChunkList([(i, chunk_id)])))

    def fork(self, rng: random.Random) -> None:
        if self.lists:
            who, stored = rng.choice(self.lists)
            twin = stored.fork()
            assert twin == stored
            self.lists.append((who, twin))

    def let_go(self, rng: random.Random) -> None:
        if self.lists:
            who, stored = self.lists.pop(rng.randrange(len(self.lists)))
            self.memory.release(stored.let_go(), tenant=who)

    def fetch(self, rng: random.Random) -> None:
        who, wanted = rng.choice(TENANTS), rng.choices(range(CHUNKS), k=rng.randrange(1, 4))
        before = self.memory.stats()
        found = self.memory.fetch([self.chunks[who][i].id for i in wanted], tenant=who)
        after = self.memory.stats()
        for i, chunk in zip(wanted, found, strict=True):
            if chunk is not None:
                chunk.verify()
                asked = self.chunks[who][i]
                assert (chunk.tenant, chunk.index, chunk.epoch) == (who, asked.index, "weights-a")
                assert_shows_the_same(chunk, self.chunks[who][i - i % len(CODECS)])
        hits = sum(chunk is not None for chunk in found)
        assert (after.hits - before.hits, after.lookups - before.lookups) == (hits, len(wanted))

    def fetch_late(self, rng: random.Random) -> None:
        who, i = rng.choice(TENANTS), rng.randrange(CHUNKS)
        chunk_id, before, places = self.chunks[who][i].id, self.memory.stats().misses["late"], self.places()
        held = self.memory.holds(chunk_id, tenant=who)
        (found,) = self.memory.fetch([chunk_id], tenant=who, deadline=self.now)
        if self.expected:  # what is here already is not late
            return
        assert self.memory.stats().misses["late"] - before == (held and found is None)
        assert self.places() == places

    def prefetch(self, rng: random.Random) -> None:
        who, wanted = rng.choice(TENANTS), rng.choices(range(CHUNKS), k=2)
        before = self.memory.stats().lookups
        self.expected.append(self.memory.prefetch([self.chunks[who][i].id for i in wanted], tenant=who))
        assert self.memory.stats().lookups == before
        if rng.random() < 0.5:
            for _ in wanted:
                self.read_early(rng)
            self.memory.fetch([self.chunks[who][i].id for i in wanted], tenant=who)

    def read_early(self, rng: random.Random) -> None:
        if isinstance(self.readers, Patient):
            self.readers.work_on_one(rng)

    def stop_expecting(self, rng: random.Random) -> None:
        if self.expected:
            self.expected.pop(rng.randrange(len(self.expected))).let_go()

    def read(self, rng: random.Random) -> None:
        """Refer to chunks where they lie, for as long as it may take."""
        who = rng.choice(TENANTS)
        for chunk in self.memory.fetch([rng.choice(self.chunks[who]).id for _ in range(2)], tenant=who):
            if chunk is not None:
                self.reading.append((chunk, chunk.encoded.payload_LN.clone()))

    def stop_reading(self, rng: random.Random) -> None:
        if self.reading:
            self.reading.pop(rng.randrange(len(self.reading)))

    def fetch_as_the_other(self, rng: random.Random) -> None:
        before = self.memory.lying(), self.memory.stats().misses["cold"]
        asked = [rng.choice(self.chunks["guarded"]).id, "no chunk at all"]
        assert self.memory.fetch(asked, tenant="limited") == [None, None]
        assert (self.memory.lying(), self.memory.stats().misses["cold"] - 2) == before

    def pin(self, rng: random.Random) -> None:
        who, wanted = rng.choice(TENANTS), rng.choices(range(CHUNKS), k=2)
        places, ids = self.places(), [self.chunks[who][i].id for i in wanted]
        pin = self.memory.pin(ids, tenant=who)
        pin.__enter__()
        self.pins.append((pin, {chunk_id: places[chunk_id] for chunk_id in ids if chunk_id in places}))

    def unpin(self, rng: random.Random) -> None:
        if self.pins:
            self.pins.pop(rng.randrange(len(self.pins)))[0].__exit__(None, None, None)

    def lease(self, rng: random.Random) -> None:
        who, wanted, seconds = rng.choice(TENANTS), rng.choices(range(CHUNKS), k=2), rng.randrange(1, 20)
        lease = self.memory.lease([self.chunks[who][i].id for i in wanted], seconds, self.now, tenant=who)
        self.leases.append((lease, self.now + seconds))

    def pass_time(self, rng: random.Random) -> None:
        self.now += rng.randrange(1, 10)
        self.memory.expire(self.now)
        for lease, until in self.leases:
            if until <= self.now:
                with pytest.raises(LeaseExpired):
                    self.memory.renew(lease, 1, self.now)
        running = [lease for lease, until in self.leases if until > self.now]
        for lease in running[1:]:
            self.memory.renew(lease, 15, self.now)
        self.leases = [(lease, self.now + 15) for lease in running[1:]]
        for lease in running[:1]:
            self.memory.end_lease(lease)

    def demote(self, rng: random.Random) -> None:
        who = rng.choice(TENANTS)
        try:
            self.memory.demote([rng.choice(self.chunks[who]).id], tenant=who)
        except ChunkPinned:
            assert self.pins or self.leases or self.expected

    def change_weights_and_back(self, rng: random.Random) -> None:
        self.memory.set_epoch("weights-b")
        who = rng.choice(TENANTS)
        stale = rng.choice(self.chunks[who]).id
        known = any(stale in stored.values() for tenant, stored in self.lists if tenant == who)
        before = self.memory.stats().misses["stale_epoch"]
        assert self.memory.fetch([stale], tenant=who) == [None]
        assert self.memory.stats().misses["stale_epoch"] - before >= known
        if rng.random() < 0.5:
            self.admit(rng)
        self.memory.set_epoch("weights-a")

    def damage(self, rng: random.Random) -> None:
        ids = list(self.host.ids())
        if ids and not (self.blind and self.expected):  # between digest and copy nobody could notice it
            chunk_id = rng.choice(ids)
            self.reading = [(chunk, seen) for chunk, seen in self.reading if chunk.id != chunk_id]
            self.flip(self.host, chunk_id)
            self.damaged = True

    def fail(self, rng: random.Random) -> None:
        self.host.failing = frozenset(rng.sample(self.host.verbs, k=rng.randrange(1, 3)))

    def recover(self, rng: random.Random) -> None:
        self.host.failing = frozenset()

    def look(self, rng: random.Random) -> None:
        before = self.memory.lying(), self.memory.stats()
        for who in TENANTS:
            for chunk in self.memory.held([chunk.id for chunk in self.chunks[who]], tenant=who).values():
                chunk.verify()
        assert (self.memory.lying(), self.memory.stats()) == before

    def places(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for level, ids in enumerate(self.memory.lying()):
            for chunk_id in ids:
                found.setdefault(chunk_id, set()).add(level)
        return found

    def check(self) -> None:
        for who in TENANTS:
            lists = [stored for tenant, stored in self.lists if tenant == who]
            assert self.memory.check_integrity(lists, tenant=who) == []
        assert all(tier.used_bytes <= tier.capacity_bytes for tier in self.memory.tiers)
        assert all(chunk.encoded.payload_LN.equal(seen) for chunk, seen in self.reading)
        if not self.damaged:  # a damaged piece is taken out whoever holds it
            places = self.places()
            for _, pinned in self.pins:
                assert all(levels <= places.get(chunk_id, set()) for chunk_id, levels in pinned.items())

    def end(self) -> None:
        """Everybody lets go, and nothing is left."""
        self.host.failing = frozenset()
        for pin, _ in self.pins:
            pin.__exit__(None, None, None)
        for expected in self.expected:
            expected.let_go()
        for lease, _ in self.leases:
            self.memory.end_lease(lease)
        for who, stored in self.lists:
            self.memory.release(stored.let_go(), tenant=who)
        self.reading.clear()
        assert self.memory.lying() == [[], [], []]
        stuck = self.memory._placement.access.stuck
        assert not any(tier.used_bytes for tier, left in zip(self.memory.tiers, stuck, strict=True) if not left)
        assert self.memory.check_integrity([]) == []


@pytest.fixture(scope="module", autouse=True)
def _small_grains():
    """So that chunks of several codecs lie in extents of several sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldkv.memory.tiers.slab.GRAIN_BYTES", 64)
        patch.setattr("worldkv.memory.tiers.host.GRAIN_BYTES", 64)
        patch.setattr("worldkv.memory.tiers.device.GRAIN_BYTES", 64)
        yield


KINDS = [name for name, weight in STEPS.items() for _ in range(weight)]


@pytest.mark.parametrize("open_tiers", KINDS_OF_TIERS)
@given(steps=st.lists(st.tuples(st.sampled_from(KINDS), st.randoms(use_true_random=False)), min_size=8, max_size=40))
@settings(max_examples=25)
def test_the_books_balance_after_any_sequence_of_calls(new_chunk, damage, open_tiers, steps):
    world = World(new_chunk, damage, open_tiers)
    for kind, rng in steps:
        getattr(world, kind)(rng)
        world.check()
    world.end()


@pytest.mark.parametrize("open_tiers", KINDS_OF_TIERS)
@pytest.mark.parametrize("seed", range(2))
def test_the_books_balance_on_long_random_walks(new_chunk, damage, open_tiers, seed):
    rng, world = random.Random(seed), World(new_chunk, damage, open_tiers)
    for _ in range(900):
        getattr(world, rng.choice(KINDS))(rng)
        world.check()
    # A walk that never came past these would prove little.
    stats = world.memory.stats()
    events = {name: getattr(stats, name) for name in ("demoted", "promoted", "dropped", "reduced", "quarantined")}
    assert all((events | stats.misses).values()), (events, stats.misses)
    assert stats.prefetch.useful + stats.prefetch.late, stats.prefetch
    assert all(tier.hits for tier in stats.tiers)
    assert stats.tiers[1].failures
    world.end()
    world.memory.close()


def test_the_books_balance_with_a_tier_on_disk(new_chunk, damage, tmp_path):
    rng, world = random.Random(0), World(new_chunk, damage, folder=tmp_path / "chunks")
    for _ in range(240):
        getattr(world, rng.choice(KINDS))(rng)
        world.check()
    assert world.memory.stats().tiers[2].hits
    world.end()
    world.memory.close()
