import itertools
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from worldkv.errors import CapacityError, ChunkCorrupt, ChunkNotFound, ConfigError, OutputError, TransferError
from worldkv.memory.tier import Tier
from worldkv.memory.tiers import durable
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.durable import open_durable_tier
from worldkv.memory.tiers.quarantine import QUARANTINE_FILES

numbers = itertools.count()


class Refuses(Exception):
    """What a store's client raises, and no OSError."""


@pytest.fixture
def root():
    """A place of its own in the one memory store of this process."""
    place = f"/tier-{next(numbers)}"
    yield place
    store = MemoryFileSystem()
    if store.exists(place):
        store.rm(place, recursive=True)


@pytest.fixture(params=["whole objects", "moved into place"])
def open_tier(request, root, monkeypatch):
    if request.param == "moved into place":
        monkeypatch.setattr(durable, "WHOLE_OBJECT_STORES", frozenset())

    def opened(capacity_bytes=10**6, name="durable"):
        return open_durable_tier(name, f"memory:/{root}", capacity_bytes)

    return opened


@pytest.fixture
def store(root):
    return MemoryFileSystem()


def objects(store, root) -> dict[str, int]:
    found = store.find(root, detail=True)
    return {path.removeprefix(root + "/"): info["size"] for path, info in found.items() if "tier.json" not in path}


def failing(fault):
    def fail(*_: object, **__: object):
        raise fault

    return fail


def test_it_gives_back_what_it_was_given_and_finds_it_again(open_tier, new_chunk, store, root):
    tier: Tier = open_tier()
    chunks = [new_chunk(0, pruned=True), new_chunk(1, codec="int4"), new_chunk(2)]
    for chunk in (*chunks, chunks[0]):
        tier.put(chunk)
    again = open_tier()
    for here in (tier, again):
        assert list(here.ids()) == [chunk.id for chunk in chunks]
        assert here.used_bytes == sum(map(here.cost_bytes, chunks)) == sum(objects(store, root).values())
        assert here.check() == []
        for chunk in chunks:
            found = here.get(chunk.id)
            assert found.id == chunk.id
            assert torch.equal(found.encoded.payload_LN, chunk.encoded.payload_LN)
    tier.remove(chunks[1].id)
    tier.remove(chunks[1].id)
    assert (len(tier), chunks[1].id in tier, len(objects(store, root))) == (2, False, 2)


def test_headers_are_read_in_one_round_of_requests_and_one_by_one_where_that_fails(open_tier, new_chunk, monkeypatch):
    tier, chunks = open_tier(), [new_chunk(i) for i in range(3)]
    for chunk in chunks:
        tier.put(chunk)
    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "cat_ranges", failing(OSError("away")))
        tier.expect(chunk.id for chunk in chunks)
        assert tier.outline(chunks[0].id).id == chunks[0].id
    tier.expect([*(chunk.id for chunk in chunks), "unknown"])
    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "cat_file", failing(OSError("away")))
        found = [tier.outline(chunk.id) for chunk in chunks]
        assert [(chunk.id, tier.cost_bytes(chunk)) for chunk in found] == [(c.id, tier.cost_bytes(c)) for c in chunks]
        with pytest.raises(TransferError, match="cannot be read"):
            tier.outline(chunks[0].id)


def test_a_chunk_that_does_not_fit_is_refused_with_the_numbers(open_tier, new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    cost = a.header.total_bytes
    tier = open_tier(cost + 10)
    tier.put(a)
    with pytest.raises(CapacityError, match=f"tier durable: {cost} bytes asked, 10 of {cost + 10} bytes free"):
        tier.put(b)
    assert (list(tier.ids()), tier.used_bytes) == ([a.id], cost)


def test_what_no_longer_fits_at_a_start_goes_oldest_first(open_tier, new_chunk, store, root):
    chunks = [new_chunk(i) for i in range(4)]
    tier = open_tier()
    for chunk in chunks:
        tier.put(chunk)
    cost = tier.cost_bytes(chunks[0])
    smaller = open_tier(2 * cost + 1)
    assert list(smaller.ids()) == [chunk.id for chunk in chunks[2:]]
    assert sum(objects(store, root).values()) == smaller.used_bytes == 2 * cost


@pytest.mark.parametrize("damage", ["flip", "truncate", "another chunk"])
def test_damage_is_corrupt_and_can_be_set_aside(open_tier, new_chunk, store, root, damage):
    tier, chunk = open_tier(), new_chunk(0)
    tier.put(chunk)
    path = f"{root}/{chunk.id}.wkv"
    data = bytearray(store.cat_file(path))
    data[-1] ^= 1
    store.pipe_file(path, {"truncate": bytes(data[:-1]), "another chunk": new_chunk(1).to_bytes()}.get(damage, data))
    with pytest.raises(ChunkCorrupt, match=f"tier durable, {path}: "):
        tier.get(chunk.id)
    tier.quarantine(chunk.id)
    tier.quarantine(chunk.id)
    assert (chunk.id in tier, tier.used_bytes, list(objects(store, root))) == (False, 0, [f"quarantine/{chunk.id}.wkv"])
    tier.put(chunk)
    assert tier.get(chunk.id).id == chunk.id
    assert list(open_tier().ids()) == [chunk.id]


def test_the_quarantine_is_bounded_and_yields_to_chunks(open_tier, new_chunk, store, root):
    tier = open_tier()
    for index in range(QUARANTINE_FILES + 2):
        tier.put(new_chunk(index))
        tier.quarantine(new_chunk(index).id)
    assert len(objects(store, root)) == QUARANTINE_FILES
    cost = new_chunk(0).header.total_bytes
    small = open_tier(2 * cost)
    for index in range(2):
        small.put(new_chunk(100 + index))
        assert sum(objects(store, root).values()) <= 2 * cost
    assert small.check() == []


def test_an_object_that_vanished_is_not_found_and_leaves_the_books_with_its_removal(open_tier, new_chunk, store, root):
    tier, chunks = open_tier(), [new_chunk(0), new_chunk(1)]
    for chunk in chunks:
        tier.put(chunk)
        store.rm_file(f"{root}/{chunk.id}.wkv")
    with pytest.raises(ChunkNotFound, match=f"chunk {chunks[0].id} cannot be read from .*: no such object"):
        tier.get(chunks[0].id)
    assert len(tier) == 2
    tier.remove(chunks[0].id)
    tier.quarantine(chunks[1].id)
    assert (len(tier), tier.used_bytes) == (0, 0)
    with pytest.raises(ChunkNotFound, match="does not hold"):
        tier.get(chunks[0].id)


@pytest.mark.parametrize("fault", [OSError("the store is away"), FileNotFoundError("bucket"), Refuses("slow down")])
def test_a_store_that_fails_is_a_transfer_error_and_leaves_nothing(
    open_tier, new_chunk, store, root, monkeypatch, fault
):
    monkeypatch.setitem(sys.modules, "aiohttp", SimpleNamespace(ClientError=Refuses))
    tier, chunk, held = open_tier(), new_chunk(0), new_chunk(1)
    tier.put(held)
    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "info", failing(fault))
        with pytest.raises(TransferError, match=f"chunk {chunk.id} cannot be written to {root}/{chunk.id}"):
            tier.put(chunk)
    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "cat_file", failing(fault))
        broken.setattr(MemoryFileSystem, "rm_file", failing(fault))
        if not isinstance(fault, FileNotFoundError):
            with pytest.raises(TransferError, match=f"chunk {held.id} cannot be read from"):
                tier.get(held.id)
            with pytest.raises(TransferError, match="cannot be removed"):
                tier.remove(held.id)
    assert (list(tier.ids()), list(objects(store, root)), tier.check()) == ([held.id], [f"{held.id}.wkv"], [])
    assert tier.used_bytes == tier.cost_bytes(held)


def test_a_short_upload_is_noticed_and_cleared(open_tier, new_chunk, store, root, monkeypatch):
    tier, chunk, whole = open_tier(), new_chunk(0), MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, data: whole(self, path, data[:-1]))
    with pytest.raises(
        TransferError, match=f"{len(chunk.to_bytes())} bytes sent to .*, {len(chunk.to_bytes()) - 1} arr"
    ):
        tier.put(chunk)
    assert (len(tier), tier.used_bytes, objects(store, root)) == (0, 0, {})


def test_bytes_that_cannot_be_cleared_stay_booked(open_tier, new_chunk, monkeypatch):
    tier, chunk = open_tier(), new_chunk(0)
    with monkeypatch.context() as broken:
        for verb in ("info", "rm_file"):
            broken.setattr(MemoryFileSystem, verb, failing(OSError("away")))
        with pytest.raises(TransferError):
            tier.put(chunk)
    assert (len(tier), tier.used_bytes) == (0, tier.cost_bytes(chunk))
    tier.put(new_chunk(1))
    assert (list(tier.ids()), tier.used_bytes, tier.check()) == ([new_chunk(1).id], tier.cost_bytes(chunk), [])


def test_a_crash_before_the_move_leaves_a_part_that_the_next_start_clears(open_tier, new_chunk, store, root):
    tier, chunk = open_tier(), new_chunk(0)
    store.pipe_file(f"{root}/{chunk.id}.part", chunk.to_bytes()[:-1])
    store.pipe_file(f"{root}/notes/mine.part", b"mine")
    assert len(open_tier()) == len(tier) == 0
    assert list(objects(store, root)) == ["notes/mine.part"]


def test_a_place_of_others_is_refused_untouched(open_tier, store, root):
    store.pipe_file(f"{root}/thesis.tex", b"years of work")
    with pytest.raises(
        ConfigError, match=rf"holds '{root}/thesis.tex'.*name a place of its own, such as {root}/worldkv"
    ):
        open_tier()
    assert objects(store, root) == {"thesis.tex": 13}


def test_another_tiers_place_is_refused(open_tier, store, root):
    open_tier(name="archive")
    with pytest.raises(
        ConfigError, match=r"belongs to another tier: .*'archive'.* not .*'durable'.*; name another place"
    ):
        open_tier()
    for foreign in (b"{", b"\x89PNG\r\n\xff\xfe", b"\xff"):
        store.pipe_file(f"{root}/tier.json", foreign)
        with pytest.raises(ConfigError, match=r"tier\.json is damaged"):
            open_tier()


def test_a_store_that_cannot_be_listed_is_an_output_error(open_tier, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "find", failing(PermissionError("not yours")))
    with pytest.raises(OutputError, match=r"tier durable: .* cannot be listed: not yours"):
        open_tier()


@pytest.mark.parametrize("url", ["nonsense://x", "dir://x", "reference://x", "zip://a::pyproject.toml"])
def test_a_url_that_fsspec_cannot_open_is_refused(url):
    with pytest.raises(ConfigError, match=f"tier durable: url '{url}' cannot be opened"):
        open_durable_tier("durable", url, 10**6)


def test_an_empty_capacity_is_refused():
    url = "memory://x"
    with pytest.raises(ConfigError, match="a capacity of 0 bytes"):
        open_durable_tier("durable", url, 0)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_of_this_machine_is_a_disk_tier(tmp_path, new_chunk, scheme):
    tier = open_durable_tier("durable", f"{scheme}{tmp_path / 'kept'}", 10**6)
    assert isinstance(tier, DiskTier)
    tier.put(new_chunk(0))
    tier.close()
    assert json.loads((tmp_path / "kept" / "tier.json").read_text())["uid"] == os.geteuid()
    again = open_durable_tier("durable", f"{scheme}{tmp_path / 'kept'}", 10**6)
    assert list(again.ids()) == [new_chunk(0).id]
    again.close()


def test_a_crash_while_the_place_is_marked_keeps_nobody_out(open_tier, new_chunk, store, root, monkeypatch):
    def crash(self, path, value, **_):
        with store.open(path, "wb") as file:
            file.write(value[: len(value) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "WHOLE_OBJECT_STORES", frozenset())
    with monkeypatch.context() as crashing:
        crashing.setattr(MemoryFileSystem, "pipe_file", crash)
        with pytest.raises(KeyboardInterrupt):
            open_tier()
    tier, chunk = open_tier(), new_chunk(0)
    tier.put(chunk)
    assert tier.get(chunk.id).id == chunk.id


def test_a_chunk_that_was_damaged_in_memory_is_never_written(open_tier, new_chunk, store, root):
    tier, chunk = open_tier(), new_chunk(0)
    chunk.encoded.payload_LN[0, 0] ^= 1
    with pytest.raises(TransferError, match="was damaged before it came here"):
        tier.put(chunk)
    assert objects(store, root) == {}
