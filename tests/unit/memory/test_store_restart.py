"""What a memory finds again after a restart, and what a fault or a power cut in between may cost."""

import errno
from contextlib import suppress

import pytest
import torch
from faulty_disk import FaultyDisk, PowerCut, bytes_on_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.detail import Detail, Ladder
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.durable import DurableTier, open_durable_tier
from worldkv.memory.tiers.filesystem import PUT_POINTS, FailPoint
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier

CPU = torch.device("cpu")
PAGE = 4096
LADDER = Ladder((Detail("int4"),))
TOKENS = 64  # fp32: a page of header and three of payload; int4: one and one
WHOLE, REDUCED = 4 * PAGE, 2 * PAGE


class CountingDisk(FaultyDisk):
    """Knows how much was read."""

    read_bytes = 0

    def read_into(self, descriptor, path, offset, out):
        found = super().read_into(descriptor, path, offset, out)
        self.read_bytes += found
        return found


def on_disk(folder, capacity_bytes, disk=None, *, ladder=LADDER, below=()) -> ChunkMemory:
    """A memory of one tier on disk, or with others below it; what is found there is taken up."""
    tiers = [DiskTier.open("disk", folder / "disk", capacity_bytes, disk), *below]
    rules = [TierRules(ladder=ladder, keeps_copies=True), *(TierRules() for _ in below)]
    memory = ChunkMemory(tiers, "weights-a", rules)
    memory.adopt()
    return memory


def codecs(memory, chunks) -> list[str | None]:
    """How each chunk comes back, by the id under which it was admitted."""
    found = memory.fetch([chunk.id for chunk in chunks])
    for chunk in found:
        if chunk is not None:
            chunk.verify()
    return [chunk and chunk.encoded.codec for chunk in found]


@pytest.fixture
def chunks(new_chunk):
    return [new_chunk(i, tokens=TOKENS) for i in range(4)]


def filled(folder, chunks) -> None:
    memory = on_disk(folder, 10 * WHOLE)
    for chunk in chunks:
        memory.admit(chunk)
    memory.close()


def test_a_restart_reads_headers_alone(chunks, tmp_path):
    filled(tmp_path, chunks)
    disk = CountingDisk()
    memory = on_disk(tmp_path, 10 * WHOLE, disk)
    assert disk.read_bytes == len(chunks) * PAGE
    assert codecs(memory, chunks) == ["fp32"] * 4
    assert memory.check_integrity() == []
    memory.close()


def test_a_payload_that_was_damaged_meanwhile_is_one_corrupt_miss(chunks, tmp_path):
    filled(tmp_path, chunks)
    (file,) = tmp_path.rglob(f"{chunks[0].id}.wkv")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    memory = on_disk(tmp_path, 10 * WHOLE)
    assert codecs(memory, chunks[:2]) == [None, "fp32"]
    stats = memory.stats()
    assert (stats.misses["corrupt"], stats.quarantined) == (1, 1)
    assert memory.check_integrity() == []
    memory.close()


@pytest.mark.parametrize("point", [FailPoint.OPEN, FailPoint.READ])
def test_what_cannot_be_read_at_the_start_stays_and_is_tried_again_when_asked_for(chunks, tmp_path, point):
    filled(tmp_path, chunks)
    disk = FaultyDisk()
    disk.failing = {point: errno.EIO}
    memory = on_disk(tmp_path, 10 * WHOLE, disk)
    stats = memory.stats()
    assert (stats.quarantined, stats.tiers[0].failures, stats.tiers[0].used_bytes) == (0, 4, 4 * WHOLE)
    assert memory.check_integrity() == []
    assert codecs(memory, chunks[:1]) == [None]
    disk.failing = {}
    assert codecs(memory, chunks) == ["fp32"] * 4
    assert memory.fetch([chunks[0].id], tenant="another") == [None]
    assert memory.check_integrity() == []
    memory.close()


def test_what_cannot_be_read_at_the_start_is_taken_up_by_who_admits_it_again(chunks, tmp_path):
    filled(tmp_path, chunks)
    disk = FaultyDisk()
    disk.failing = {FailPoint.READ: errno.EIO}
    memory = on_disk(tmp_path, 10 * WHOLE, disk)
    lists = [ChunkList([(0, memory.admit(chunks[0]))]), ChunkList([(1, chunks[1].id)])]
    memory.admit_dropped([chunks[1].id])
    assert memory.check_integrity(lists) == []
    disk.failing = {}
    assert codecs(memory, chunks[:2]) == ["fp32", "fp32"]
    for stored in lists:
        memory.release(stored.let_go())
    assert memory.check_integrity([]) == []
    assert memory.lying() == [[]]
    memory.close()


def test_a_chunk_of_another_tenant_that_could_not_be_read_stays_its_own(new_chunk, tmp_path):
    theirs = new_chunk(0, tenant="theirs")
    filled(tmp_path, [theirs])
    disk = FaultyDisk()
    disk.failing = {FailPoint.READ: errno.EIO}
    memory = on_disk(tmp_path, 10 * WHOLE, disk)
    disk.failing = {}
    assert memory.fetch([theirs.id]) == [None]
    assert memory.stats().misses["cold"] == 1
    assert memory.fetch([theirs.id], tenant="theirs")[0].id == theirs.id
    memory.close()


def test_what_still_cannot_be_read_gives_way_where_its_bytes_are_needed(chunks, new_chunk, tmp_path):
    filled(tmp_path, chunks)
    disk = FaultyDisk()
    disk.failing = {FailPoint.READ: errno.EIO}
    memory = on_disk(tmp_path, 4 * WHOLE, disk)
    new = new_chunk(9, tokens=TOKENS)
    memory.admit(new)
    assert memory.lying() == [[new.id]]
    assert memory.tiers[0].used_bytes == 4 * WHOLE
    assert memory.check_integrity() == []
    disk.failing = {}
    assert sum(codec is not None for codec in codecs(memory, chunks)) == 3
    memory.close()


@pytest.mark.parametrize("readable", [True, False])
def test_a_chunk_that_lost_detail_is_found_under_its_first_id(chunks, tmp_path, readable):
    memory = on_disk(tmp_path, 2 * WHOLE)
    for chunk in chunks[:3]:
        memory.admit(chunk)
    assert memory.stats().reduced == 2
    memory.close()
    disk = FaultyDisk()
    if not readable:
        disk.failing = {FailPoint.READ: errno.EIO}
    memory = on_disk(tmp_path, 2 * WHOLE, disk)
    disk.failing = {}
    assert codecs(memory, chunks[:3]) == ["int4", "int4", "fp32"]
    assert memory.check_integrity() == []
    for chunk in chunks[:3]:
        memory.admit_dropped([chunk.id])
        memory.release([chunk.id])
    assert memory.lying() == [[]]
    memory.close()
    assert [path.name for path in tmp_path.rglob("*.name")] == []


def test_a_chunk_that_lost_detail_in_another_tier_or_gained_a_name_later_is_found_too(chunks, new_chunk, tmp_path):
    coarse = LADDER.reduce(chunks[0], Detail("int4"))
    tiers = [ResidentTier("host", CPU, chunks[0].nbytes), DiskTier.open("disk", tmp_path / "disk", 10 * WHOLE)]
    memory = ChunkMemory(tiers, "weights-a", [TierRules(ladder=LADDER), TierRules(keeps_copies=True)])
    memory.admit(coarse, known_as=chunks[0].id)
    memory.demote([coarse.id])
    later = new_chunk(7).id
    assert memory.admit(coarse, known_as=later) == later
    memory.close()
    again = on_disk(tmp_path, 10 * WHOLE)
    assert [chunk.id for chunk in again.fetch([chunks[0].id, later])] == [coarse.id, coarse.id]
    again.close()


def test_an_object_store_keeps_first_ids_and_reads_headers_alone(chunks, monkeypatch):
    def opened() -> ChunkMemory:
        tier = open_durable_tier("durable", "memory://restart-of-a-memory", 2 * chunks[0].header.total_bytes)
        assert isinstance(tier, DurableTier)
        memory = ChunkMemory([tier], "weights-a", [TierRules(ladder=LADDER)])
        memory.adopt()
        return memory

    memory = opened()
    for chunk in chunks[:3]:
        memory.admit(chunk)
    with monkeypatch.context() as at_start:
        at_start.setattr(DurableTier, "get", lambda self, chunk_id: pytest.fail("a payload is read"))
        again = opened()
    assert codecs(again, chunks[:3]) == ["int4", "int4", "fp32"]
    again.admit_dropped([chunk.id for chunk in chunks[:3]])
    again.release([chunk.id for chunk in chunks[:3]])
    assert again.lying() == [[]]
    assert opened().lying() == [[]]


def test_where_there_is_room_the_reduced_chunk_is_written_before_the_whole_one_goes(chunks, tmp_path):
    memory = on_disk(tmp_path, 2 * WHOLE + REDUCED, disk := FaultyDisk())
    memory.admit(chunks[0])
    memory.admit(chunks[1])
    disk.failing = {FailPoint.SYNC_FILE: errno.EIO}
    memory.admit(chunks[2])  # cannot be written, and nothing else can be either
    disk.failing = {}
    assert codecs(memory, chunks[:2]).count("fp32") >= 1
    assert "int4" not in codecs(memory, chunks[:2])
    assert memory.check_integrity() == []
    memory.close()


@pytest.mark.parametrize("room", [REDUCED, 0])
@pytest.mark.parametrize("point", PUT_POINTS)
def test_a_reduction_that_fails_once_loses_nothing(chunks, tmp_path, point, room):
    class FailsOnce(FaultyDisk):
        def reach(self, at, path):
            super().reach(at, path)
            if self.failing.pop(at, None):
                raise OSError(errno.EIO, "once", str(path))

    disk = FailsOnce()
    memory = on_disk(tmp_path, WHOLE + room, disk)
    memory.admit(chunks[0])
    entry = memory._catalogue.find("default", chunks[0].id)
    disk.failing = {}
    arm = disk.reach

    def armed(at, path):
        if at == point and not armed.done:
            armed.done = True
            raise OSError(errno.EIO, "once", str(path))
        arm(at, path)

    armed.done = False
    disk.reach = armed
    assert memory._placement._reduce(entry, 0, Detail("int4")) is None
    assert codecs(memory, chunks[:1]) == ["fp32"]
    assert memory.check_integrity() == []
    assert bytes_on_disk(tmp_path) == WHOLE
    memory.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("room", [REDUCED, 0])
def test_a_chunk_whose_reduction_cannot_be_written_goes_down_rather_than_away(chunks, tmp_path, room, code):
    disk = FaultyDisk()
    below = ResidentTier("below", CPU, 10 * chunks[0].nbytes)
    memory = on_disk(tmp_path, WHOLE + room, disk, below=[below])
    memory.admit(chunks[0])
    disk.failing = {FailPoint.WRITE_HEAD: code}
    memory.admit(chunks[1])
    assert codecs(memory, chunks[:2]) == ["fp32", "fp32"]
    assert (memory.stats().dropped, memory.check_integrity()) == (0, [])
    memory.close()


@pytest.mark.parametrize("point", [*PUT_POINTS, FailPoint.UNLINK])
@pytest.mark.parametrize("nth", range(3))
def test_a_power_cut_while_a_chunk_loses_detail_leaves_it_in_one_detail_or_the_other(chunks, tmp_path, point, nth):
    class CutLater(FaultyDisk):
        left = 10**6

        def reach(self, at, path):
            if at == point:
                self.left -= 1
            self.cut_at = at if self.left < 0 else None
            super().reach(at, path)

    disk = CutLater()
    memory = on_disk(tmp_path, 2 * WHOLE + REDUCED, disk)
    memory.admit(chunks[0])
    memory.admit(chunks[1])
    disk.left = nth
    with suppress(PowerCut):
        memory.admit(chunks[2])
    memory.close()
    again = on_disk(tmp_path, 3 * WHOLE)
    assert None not in codecs(again, chunks[:2])
    assert again.check_integrity() == []
    again.close()


def test_a_whole_chunk_that_cannot_be_removed_is_known_and_its_reduced_form_serves(chunks, tmp_path):
    disk = FaultyDisk()
    memory = on_disk(tmp_path, 2 * WHOLE + REDUCED, disk)
    memory.admit(chunks[0])
    memory.admit(chunks[1])
    disk.failing = {FailPoint.UNLINK: errno.EIO}
    memory.admit(chunks[2])
    assert codecs(memory, chunks[:1]) == ["int4"]
    assert bytes_on_disk(tmp_path) <= memory.tiers[0].used_bytes <= 2 * WHOLE + REDUCED
    assert memory.check_integrity() == []
    disk.failing = {}
    memory.admit(chunks[3])
    assert bytes_on_disk(tmp_path) == memory.tiers[0].used_bytes
    assert memory.check_integrity() == []
    memory.close()


def test_in_a_full_slab_too_a_chunk_loses_detail_and_not_its_place(new_chunk):
    a, b = new_chunk(0, tokens=4096), new_chunk(1, tokens=4096)
    size = HostTier("probe", memoryview(bytearray(2**20))).cost_bytes(a)
    memory = ChunkMemory([HostTier("host", memoryview(bytearray(2 * size)))], "weights-a", [TierRules(ladder=LADDER)])
    memory.admit(a)
    memory.admit(b)
    memory.admit(new_chunk(2, tokens=1024))
    assert (memory.stats().reduced, memory.stats().dropped) == (1, 0)
    assert codecs(memory, [a, b]) == ["int4", "fp32"]
    assert memory.check_integrity() == []
    memory.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "admit", "fetch", "release", "restart"]),
        st.integers(0, 5),
        st.sampled_from([None, None, None, None, *FailPoint]),
    ),
    max_size=25,
)


@given(steps=STEPS, code=st.sampled_from([errno.EIO, errno.ENOSPC, None]), room=st.integers(0, 3))
@settings(max_examples=12)
def test_whatever_fails_between_restarts_ids_lead_to_their_own_content_or_nowhere(
    new_chunk, tmp_path_factory, steps, code, room
):
    """`code` None: power cuts, each followed by a restart."""
    folder, capacity = tmp_path_factory.mktemp("restarts"), 2 * WHOLE + room * PAGE
    chunks = [new_chunk(i, tokens=TOKENS) for i in range(6)]
    disk, held = FaultyDisk(), set()
    memory = on_disk(folder, capacity, disk)
    for verb, which, point in [*steps, ("restart", 0, None)]:
        chunk = chunks[which]
        # The start itself is not refused by a fault: reads are what adoption meets.
        starts = verb == "restart" and point not in (FailPoint.OPEN, FailPoint.READ)
        disk.failing = {point: code} if point and code and not starts else {}
        disk.cut_at = point if not code else None
        try:
            if verb == "admit":
                memory.admit(chunk)
                held.add(which)
            elif verb == "fetch":
                (found,) = memory.fetch([chunk.id])
                if found is not None:
                    found.verify()
                    assert found.index == chunk.index
                    assert found.id == chunk.id or found.encoded.codec == "int4"
            elif verb == "release" and which in held:
                memory.release([chunk.id])
                held.remove(which)
                memory.admit(chunk)
                held.add(which)
        except PowerCut:
            verb = "restart"
        assert bytes_on_disk(folder) <= capacity
        if verb == "restart":
            lay = [] if disk.cut else [i for i in range(6) if memory.holds(chunks[i].id)]
            unsure = any(memory._placement.access.stuck)
            failing, held = disk.failing, set()
            memory.close()
            disk = FaultyDisk()
            disk.failing = failing
            memory = on_disk(folder, capacity, disk)
            disk.failing = {}
            found = codecs(memory, chunks)
            assert unsure or all(found[i] is not None for i in lay)
        disk.failing, disk.cut_at = {}, None
        assert memory.check_integrity() == []
    memory.close()


def test_a_chunk_made_again_is_near_although_a_tier_kept_it(tmp_path, chunks):
    """Only its header was read at the restart: whoever brings the bytes needs none of those that lie there."""

    def memory_of() -> ChunkMemory:
        tiers = [ResidentTier("device", CPU, 8 * WHOLE), DiskTier.open("disk", tmp_path / "disk", 8 * WHOLE)]
        memory = ChunkMemory(tiers, "weights-a", [TierRules(), TierRules(keeps_copies=True, keeps_released=True)])
        memory.adopt()
        return memory

    before = memory_of()
    ids = [before.admit(chunk) for chunk in chunks]
    before.demote(ids)
    before.close()

    after = memory_of()
    for chunk in chunks[:2]:
        after.admit(chunk)
    assert [chunk is not None for chunk in after.fetch(ids)] == [True] * 4
    device, disk = after.stats().tiers
    assert (device.hits, disk.hits) == (2, 2)
    assert after.check_integrity() == []
    after.close()
