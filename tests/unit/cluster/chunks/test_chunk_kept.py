"""Chunks that are written through to a durable tier, and what is found of them by another cluster."""

import itertools

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.chunks.kept import KeptShelf
from cluster.chunks.labels import DURABLE
from worldkv.errors import TransferError
from worldkv.memory.tiers.durable import open_durable_tier

SIZE = 8192
numbers = itertools.count()


@pytest.fixture(params=["objects", "folder"])
def url(request, tmp_path):
    if request.param == "folder":
        yield str(tmp_path / "kept")
        return
    place = f"/kept-{next(numbers)}"
    yield f"memory:/{place}"
    store = MemoryFileSystem()
    if store.exists(place):
        store.rm(place, recursive=True)


@pytest.fixture
def build(village, url):
    """A town that writes through to the URL."""
    open_tiers = []

    def build(**options):
        for tier in open_tiers:
            tier.close()
        town = village(20 * SIZE, **options)
        tier = open_durable_tier(DURABLE, url, town.capacity_bytes)
        open_tiers.append(tier)
        town.start(DURABLE, KeptShelf(tier, town.objects))
        return town

    yield build
    for tier in open_tiers:
        tier.close()


def same(chunk, other) -> bool:
    return chunk.id == other.id and chunk.encoded.payload_LN.equal(other.encoded.payload_LN)


def lying(tier) -> list[object]:
    """All files or objects of the tier."""
    return list(tier.folder.rglob("*")) if hasattr(tier, "folder") else MemoryFileSystem().find(tier.root)


def test_what_was_written_through_survives_its_node_and_the_whole_cluster(build, new_chunk):
    town = build(nodes=("a", "b"))
    maker, far = town.worker(), town.worker("b", 2)
    chunks = [new_chunk(i, pruned=bool(i)) for i in range(3)]
    for chunk in chunks:
        maker.put(chunk)
    maker.also_name(chunks[0].id, ["0" * 32])
    assert maker.flush(5) == {chunk.id for chunk in chunks}
    town.kill("a")
    town.pass_time(6)
    far.put(far.find("default", [chunks[1].id])[chunks[1].id])
    assert same(far.get(chunks[1].id), chunks[1])
    far.remove(chunks[1].id)  # nobody's giving it up is a reason to delete what is durable
    again = build(nodes=("c",))
    again.pass_time(1)
    worker = again.worker("c")
    found = worker.find("default", ["0" * 32, *(chunk.id for chunk in chunks)])
    assert found["0" * 32].id == chunks[0].id
    for chunk in chunks:
        worker.put(found[chunk.id])
        assert same(worker.get(chunk.id), chunk)
    assert again.servers["c"].figures()["chunks"] == 0
    again.check()


def test_a_durable_store_that_fails_for_a_while_gets_everything_in_the_end(build, new_chunk):
    town = build()
    worker, chunk = town.worker(), new_chunk(0)
    tier = town.servers[DURABLE]._shelf._tier
    put = tier.put

    def fail(chunk):
        raise TransferError("away")

    tier.put = fail
    worker.put(chunk)
    town.pass_time(4)
    assert town.servers[DURABLE].figures()["chunks"] == 0
    assert same(worker.get(chunk.id), chunk)
    tier.put = put
    town.pass_time(25)
    assert town.servers[DURABLE].figures()["chunks"] == 1
    town.check()


def test_a_full_durable_tier_lets_the_oldest_go(build, new_chunk):
    town = build()
    worker = town.worker(capacity_bytes=100 * SIZE)
    for i in range(25):
        worker.put(new_chunk(i))
        town.pass_time(0.5)
    figures = town.servers[DURABLE].figures()
    assert figures["used_bytes"] <= figures["capacity_bytes"]
    assert figures["evicted"] > 0
    shelf = town.servers[DURABLE]._shelf
    assert len(shelf._tier) == figures["chunks"]
    assert shelf._tier.used_bytes <= shelf._tier.capacity_bytes
    town.check()


def test_a_damaged_durable_chunk_is_set_aside_and_is_a_miss(build, new_chunk, monkeypatch):
    town = build(nodes=("a", "b"))
    maker, far, chunk = town.worker(), town.worker("b", 2), new_chunk(0)
    maker.put(chunk)
    maker.flush(5)
    town.kill("a")
    town.pass_time(6)
    far.put(far.find("default", [chunk.id])[chunk.id])
    tier = town.servers[DURABLE]._shelf._tier
    if hasattr(tier, "folder"):
        path = tier.folder / chunk.id[:2] / f"{chunk.id}.wkv"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    else:
        path = f"{tier.root}/{chunk.id}.wkv"
        MemoryFileSystem().pipe_file(path, MemoryFileSystem().cat_file(path)[:-1] + b"\x55")
    with pytest.raises(KeyError, match="all that had it are gone"):
        far.get(chunk.id)
    assert chunk.id not in tier
    assert any("quarantine" in str(path) and chunk.id in str(path) for path in lying(tier))
    assert town.servers[DURABLE].figures()["chunks"] == 0
    town.check()
