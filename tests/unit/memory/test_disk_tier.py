import errno
import os
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from faulty_disk import FaultyDisk, PowerCut, bytes_on_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldkv.errors import CapacityError, ChunkCorrupt, ChunkNotFound, ConfigError, TransferError
from worldkv.memory.tier import Tier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.filesystem import PUT_POINTS, FailPoint
from worldkv.memory.tiers.quarantine import QUARANTINE_FILES

COST = 8192  # of each chunk here: a page of header, and a payload of less than one
ROOMY = 100 * COST


@pytest.fixture
def open_tier(tmp_path):
    """Open a tier in the test's folder; closed, and its books checked, at the end."""
    tiers = []

    def opened(capacity_bytes=ROOMY, disk=None, name="disk", folder=tmp_path / "tier"):
        tiers.append(DiskTier.open(name, folder, capacity_bytes, disk))
        return tiers[-1]

    yield opened
    for tier in tiers:
        tier.close()


def file_of(tier: DiskTier, chunk_id: str):
    (path,) = tier.folder.glob(f"??/{chunk_id}.wkv")
    return path


def assert_same(found, chunk):
    assert (found.id, found.tenant, found.epoch, found.index) == (chunk.id, chunk.tenant, chunk.epoch, chunk.index)
    assert torch.equal(found.encoded.payload_LN, chunk.encoded.payload_LN)
    np.testing.assert_array_equal(found.c2w_F44, chunk.c2w_F44)


def test_it_gives_back_what_it_was_given_and_counts_whole_pages(open_tier, new_chunk):
    tier: Tier = open_tier()
    a, b = new_chunk(0, pruned=True), new_chunk(1, codec="int4")
    for chunk in (a, b, a):
        tier.put(chunk)
    assert (len(tier), list(tier.ids()), a.id in tier) == (2, [a.id, b.id], True)
    assert tier.used_bytes == tier.cost_bytes(a) + tier.cost_bytes(b) == 2 * COST == bytes_on_disk(tier.folder)
    assert_same(tier.get(a.id), a)
    assert_same(tier.get(b.id), b)
    tier.remove(a.id)
    tier.remove(a.id)
    assert (a.id in tier, tier.used_bytes, bytes_on_disk(tier.folder)) == (False, COST, COST)
    with pytest.raises(ChunkNotFound, match=f"tier disk does not hold chunk {a.id}"):
        tier.get(a.id)
    assert tier.check() == []


def test_a_restart_finds_every_chunk_in_the_order_of_their_writes(open_tier, new_chunk):
    chunks = [new_chunk(i) for i in range(5)]
    tier = open_tier()
    for age, chunk in enumerate(chunks):
        tier.put(chunk)
        os.utime(file_of(tier, chunk.id), ns=(age, age))
    tier.close()
    again = open_tier()
    assert list(again.ids()) == [chunk.id for chunk in chunks]
    assert again.used_bytes == 5 * COST
    for chunk in chunks:
        assert_same(again.get(chunk.id), chunk)
    assert again.check() == []


def test_what_no_longer_fits_at_a_restart_goes_oldest_first(open_tier, new_chunk):
    chunks = [new_chunk(i) for i in range(5)]
    tier = open_tier()
    for age, chunk in enumerate(chunks):
        tier.put(chunk)
        os.utime(file_of(tier, chunk.id), ns=(age, age))
    tier.close()
    smaller = open_tier(2 * COST + 1)
    assert list(smaller.ids()) == [chunk.id for chunk in chunks[3:]]
    assert smaller.used_bytes == bytes_on_disk(smaller.folder) == 2 * COST


def test_a_chunk_that_does_not_fit_is_refused_with_the_numbers(open_tier, new_chunk):
    tier = open_tier(COST + 4096)
    tier.put(new_chunk(0))
    with pytest.raises(CapacityError, match="tier disk: 8192 bytes asked, 4096 of 12288 bytes free"):
        tier.put(new_chunk(1))
    assert (len(tier), bytes_on_disk(tier.folder), tier.check()) == (1, COST, [])


def test_a_chunk_that_was_damaged_in_memory_is_never_written(open_tier, new_chunk):
    tier, chunk = open_tier(), new_chunk(0)
    chunk.encoded.payload_LN[1, 3] ^= 1
    with pytest.raises(TransferError, match=r"was damaged before it came here: .*checksum of layer 1"):
        tier.put(chunk)
    assert (len(tier), tier.used_bytes, bytes_on_disk(tier.folder)) == (0, 0, 0)


@pytest.mark.parametrize("point", PUT_POINTS)
def test_a_power_cut_leaves_the_chunk_absent_or_complete(open_tier, new_chunk, point):
    disk = FaultyDisk()
    tier = open_tier(3 * COST, disk)
    old, new = new_chunk(0), new_chunk(1)
    tier.put(old)
    disk.cut_at = point
    with pytest.raises(PowerCut):
        tier.put(new)
    assert new.id not in tier
    assert bytes_on_disk(tier.folder) <= 3 * COST
    tier.close()
    again = open_tier(3 * COST)
    assert_same(again.get(old.id), old)
    if new.id in again:
        assert_same(again.get(new.id), new)
    assert (new.id in again) == (point in (FailPoint.SYNC_FOLDER, FailPoint.WRITTEN))
    assert bytes_on_disk(again.folder) == again.used_bytes
    assert again.check() == []
    again.put(new)
    assert_same(again.get(new.id), new)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("point", PUT_POINTS)
def test_a_failed_write_leaves_nothing_behind(open_tier, new_chunk, point, code):
    disk = FaultyDisk()
    tier, chunk = open_tier(disk=disk), new_chunk(0)
    disk.failing = {point: code}
    kind = TransferError if code == errno.EIO else CapacityError
    with pytest.raises(kind, match=f"tier disk: 8192 bytes of chunk {chunk.id} cannot be written to .*: "):
        tier.put(chunk)
    assert (len(tier), tier.used_bytes, bytes_on_disk(tier.folder), tier.check()) == (0, 0, 0, [])
    disk.failing = {}
    tier.put(chunk)
    assert_same(tier.get(chunk.id), chunk)


@pytest.mark.parametrize("point", [FailPoint.SYNC_FILE, FailPoint.SYNC_FOLDER])
def test_bytes_that_cannot_be_cleared_stay_booked(open_tier, new_chunk, point):
    disk = FaultyDisk()
    tier = open_tier(COST + 4096, disk)
    disk.failing = {point: errno.EIO, FailPoint.UNLINK: errno.EIO}
    with pytest.raises(TransferError):
        tier.put(new_chunk(0))
    assert tier.check() == []
    disk.failing = {FailPoint.UNLINK: errno.EIO}
    with pytest.raises(CapacityError, match="8192 bytes asked, 4096 of 12288 bytes free"):
        tier.put(new_chunk(1))
    assert bytes_on_disk(tier.folder) == tier.used_bytes == COST
    assert tier.check() == []
    tier.close()
    again = open_tier(COST + 4096)
    whole = COST if point == FailPoint.SYNC_FOLDER else 0
    assert again.used_bytes == bytes_on_disk(again.folder) == whole


def test_bytes_that_could_not_be_cleared_go_with_the_next_put_that_can(open_tier, new_chunk):
    disk = FaultyDisk()
    tier = open_tier(COST, disk)
    disk.failing = {FailPoint.SYNC_FOLDER: errno.EIO, FailPoint.UNLINK: errno.EIO}
    with pytest.raises(TransferError):
        tier.put(new_chunk(0))
    disk.failing = {}
    tier.put(new_chunk(1))
    assert (list(tier.ids()), tier.used_bytes, bytes_on_disk(tier.folder)) == ([new_chunk(1).id], COST, COST)
    assert tier.check() == []


def test_a_chunk_whose_leftovers_cannot_be_cleared_can_still_come(open_tier, new_chunk):
    disk = FaultyDisk()
    tier, chunk = open_tier(disk=disk), new_chunk(0)
    disk.failing = {FailPoint.SYNC_FOLDER: errno.EIO, FailPoint.UNLINK: errno.EIO}
    with pytest.raises(TransferError):
        tier.put(chunk)
    disk.failing = {FailPoint.UNLINK: errno.EIO}
    tier.put(chunk)
    assert_same(tier.get(chunk.id), chunk)
    assert (tier.used_bytes, bytes_on_disk(tier.folder), tier.check()) == (COST, COST, [])


def test_a_read_error_names_chunk_and_file_and_the_chunk_stays(open_tier, new_chunk):
    disk = FaultyDisk()
    tier, chunk = open_tier(disk=disk), new_chunk(0)
    tier.put(chunk)
    for point in (FailPoint.OPEN, FailPoint.READ):
        disk.failing = {point: errno.EIO}
        with pytest.raises(TransferError, match=rf"chunk {chunk.id} cannot be read from .*\.wkv: Input/output error"):
            tier.get(chunk.id)
    disk.failing = {}
    assert_same(tier.get(chunk.id), chunk)


def test_a_file_that_vanished_is_not_found_and_leaves_the_books_with_its_removal(open_tier, new_chunk):
    tier, chunk = open_tier(), new_chunk(0)
    tier.put(chunk)
    file_of(tier, chunk.id).unlink()
    assert tier.check() == [f"tier disk: chunk {chunk.id} is booked and has no file"]
    with pytest.raises(ChunkNotFound, match=f"chunk {chunk.id} is gone: no file"):
        tier.get(chunk.id)
    assert (len(tier), tier.used_bytes) == (1, COST)
    tier.quarantine(chunk.id)
    assert (len(tier), tier.used_bytes, tier.check()) == (0, 0, [])


def test_a_disk_that_comes_back_brings_its_chunks_and_none_is_in_no_book(open_tier, new_chunk, tmp_path):
    tier = open_tier()
    a, b, c = (new_chunk(i) for i in range(3))
    tier.put(a)
    tier.put(b)
    tier.folder.rename(tmp_path / "away")
    for verb, chunk in ((tier.get, a.id), (tier.remove, a.id), (tier.quarantine, b.id), (tier.put, c)):
        with pytest.raises(TransferError, match="No such file or directory"):
            verb(chunk)
    assert [line.partition(" cannot be listed")[1] for line in tier.check()] == [" cannot be listed"]
    (tmp_path / "away").rename(tier.folder)
    assert_same(tier.get(a.id), a)
    assert_same(tier.get(b.id), b)
    tier.put(c)
    assert tier.check() == []
    assert bytes_on_disk(tier.folder) == tier.used_bytes == 3 * COST


def test_a_vanished_folder_is_not_made_again(open_tier, new_chunk, tmp_path):
    tier = open_tier()
    tier.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(TransferError, match="cannot be written"):
        tier.put(new_chunk(0))
    assert not tier.folder.exists()


@pytest.mark.parametrize("damage", ["flip header", "flip payload", "truncate", "lengthen", "empty", "another chunk"])
def test_damage_is_corrupt_and_names_tier_and_file(open_tier, new_chunk, damage):
    tier, chunk, other = open_tier(), new_chunk(0), new_chunk(1)
    tier.put(chunk)
    path = file_of(tier, chunk.id)
    data = bytearray(path.read_bytes())
    data[100 if damage == "flip header" else -1] ^= damage.startswith("flip")
    whole = {"truncate": data[:-1], "lengthen": data + b"0", "empty": b"", "another chunk": other.to_bytes()}
    path.write_bytes(whole.get(damage, data))
    for _ in range(2):
        with pytest.raises(ChunkCorrupt, match=f"tier disk, {path}: "):
            tier.get(chunk.id)
    tier.quarantine(chunk.id)
    assert (chunk.id in tier, tier.used_bytes, path.exists(), tier.check()) == (False, 0, False, [])
    assert (tier.folder / "quarantine" / path.name).exists()
    tier.put(chunk)
    assert_same(tier.get(chunk.id), chunk)


def test_the_quarantine_is_bounded_and_keeps_the_newest(open_tier, new_chunk):
    tier = open_tier()
    chunks = [new_chunk(i) for i in range(QUARANTINE_FILES + 3)]
    for chunk in chunks:
        tier.put(chunk)
        tier.quarantine(chunk.id)
        tier.quarantine(chunk.id)
    kept = {path.stem for path in (tier.folder / "quarantine").iterdir()}
    assert kept == {chunk.id for chunk in chunks[3:]}


def test_the_quarantine_yields_to_chunks_so_that_the_disk_never_holds_more_than_the_cap(open_tier, new_chunk):
    tier = open_tier(3 * COST)
    chunks = [new_chunk(i) for i in range(6)]
    for chunk in chunks[:3]:
        tier.put(chunk)
        tier.quarantine(chunk.id)
    for held, chunk in enumerate(chunks[3:], 1):
        tier.put(chunk)
        assert bytes_on_disk(tier.folder) <= 3 * COST
        assert tier.used_bytes == held * COST
    assert list((tier.folder / "quarantine").iterdir()) == []


def test_the_quarantine_counts_after_a_restart_too(open_tier, new_chunk):
    tier = open_tier(3 * COST)
    for index in range(3):
        tier.put(new_chunk(index))
    tier.quarantine(new_chunk(0).id)
    tier.close()
    again = open_tier(3 * COST)
    again.put(new_chunk(3))
    assert bytes_on_disk(again.folder) == again.used_bytes == 3 * COST


def test_what_cannot_be_removed_stays_in_the_books(open_tier, new_chunk):
    disk = FaultyDisk()
    tier, chunk = open_tier(disk=disk), new_chunk(0)
    tier.put(chunk)
    disk.failing = {FailPoint.UNLINK: errno.EIO, FailPoint.RENAME: errno.EIO}
    for verb in (tier.remove, tier.quarantine):
        with pytest.raises(TransferError, match="cannot be removed: Input/output error"):
            verb(chunk.id)
    assert (chunk.id in tier, tier.used_bytes) == (True, COST)


def test_a_start_that_cannot_scan_gives_the_lock_back(open_tier):
    open_tier().close()
    disk = FaultyDisk()
    disk.failing = {FailPoint.SCAN: errno.EIO}
    with pytest.raises(TransferError, match="cannot be scanned: Input/output error"):
        open_tier(disk=disk)
    open_tier()


def test_files_that_no_tier_wrote_are_left_alone(open_tier, new_chunk):
    tier = open_tier()
    strays = [tier.folder / "00" / "notes.txt", tier.folder / "00" / f"{'f' * 32}.wkv", tier.folder / "lost+found"]
    for stray in strays:
        stray.write_text("mine")
    tier.close()
    again = open_tier()
    assert (len(again), again.used_bytes) == (0, 0)
    assert all(stray.exists() for stray in strays)


def test_a_capacity_of_less_than_a_page_is_refused_before_anything_is_made(open_tier, tmp_path):
    with pytest.raises(ConfigError, match="a capacity of 100 bytes; at least 4096 are needed"):
        open_tier(100)
    assert not (tmp_path / "tier").exists()


def test_threads_put_and_get_at_the_same_time(open_tier, new_chunk):
    tier = open_tier()
    chunks = [new_chunk(i) for i in range(12)]
    faults = []

    def work(mine):
        for chunk in mine:
            tier.put(chunk)
            if tier.get(chunk.id).id != chunk.id:
                faults.append(chunk.id)

    # Every chunk is brought by two threads.
    threads = [threading.Thread(target=work, args=(chunks[start:] + chunks[:start],)) for start in (0, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (faults, len(tier), tier.used_bytes, tier.check()) == ([], 12, 12 * COST, [])


VERBS = st.sampled_from(["put", "get", "remove", "quarantine", "restart"])
FAULTS = st.sampled_from([None, None, None, *FailPoint])
STEPS = st.lists(st.tuples(VERBS, st.integers(0, 5), FAULTS), max_size=14)


@given(steps=STEPS, code=st.sampled_from([errno.EIO, errno.ENOSPC, None]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_the_books_hold_and_no_wrong_byte_is_given(new_chunk, tmp_path_factory, steps, code):
    """`code` None: a power cut, and a restart after it."""
    folder, capacity = tmp_path_factory.mktemp("disk") / "tier", 3 * COST
    chunks = [new_chunk(i) for i in range(6)]
    disk = FaultyDisk()
    tier = DiskTier.open("disk", folder, capacity, disk)
    for verb, which, point in steps:
        chunk = chunks[which]
        disk.failing = {point: code} if point and code else {}
        disk.cut_at = point if not code else None
        try:
            if verb == "put":
                tier.put(chunk)
                assert chunk.id in tier
            elif verb == "get":
                assert_same(tier.get(chunk.id), chunk)
            elif verb == "restart":
                disk.cut = True
            else:
                getattr(tier, verb)(chunk.id)
                assert chunk.id not in tier
        except (CapacityError, TransferError, ChunkNotFound, PowerCut):
            pass
        assert bytes_on_disk(folder) <= capacity
        if disk.cut:
            tier.close()
            disk = FaultyDisk()
            tier = DiskTier.open("disk", folder, capacity, disk)
        disk.failing, disk.cut_at = {}, None
        assert tier.check() == []
        assert tier.used_bytes == sum(tier.cost_bytes(chunk) for chunk in chunks if chunk.id in tier)
    tier.close()


def test_only_what_a_later_process_shall_find_waits_for_the_medium(tmp_path, new_chunk, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or real(descriptor))
    counts = {}
    for keeps in (True, False):
        with closing(DiskTier.open("disk", tmp_path / str(keeps), 2**20, keeps=keeps)) as tier:
            assert synced, "the claim is durable in any case"
            synced.clear()
            tier.put(new_chunk())
            tier.get(new_chunk().id).verify()
            tier.also_name(new_chunk().id, ["of old"])
            tier.remove(new_chunk().id)
            counts[keeps] = len(synced)
    assert (counts[True] > 0, counts[False]) == (True, 0)
