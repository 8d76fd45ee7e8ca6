import pytest
import torch

from worldkv.errors import CapacityError, ChunkCorrupt, ChunkNotFound
from worldkv.memory.tiers.resident import ResidentTier


def tier_of(capacity_bytes: int) -> ResidentTier:
    return ResidentTier("host", torch.device("cpu"), capacity_bytes)


def test_used_bytes_are_those_of_the_chunks_it_holds(new_chunk):
    a, b = new_chunk(0, tokens=2), new_chunk(1, tokens=5)
    tier = tier_of(a.nbytes + b.nbytes)
    tier.put(a)
    tier.put(b)
    assert (len(tier), tier.used_bytes) == (2, a.nbytes + b.nbytes)
    tier.remove(a.id)
    assert (len(tier), tier.used_bytes, a.id in tier) == (1, b.nbytes, False)


def test_a_chunk_that_does_not_fit_is_refused_with_the_numbers_and_leaves_no_trace(new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    tier = tier_of(a.nbytes + 10)
    tier.put(a)
    with pytest.raises(CapacityError, match=f"tier host: {b.nbytes} bytes asked, 10 bytes free"):
        tier.put(b)
    assert (list(tier.ids()), tier.used_bytes) == ([a.id], a.nbytes)


def test_a_device_without_memory_is_a_tier_without_room(new_chunk, monkeypatch):
    chunk, tier = new_chunk(0), tier_of(10_000)

    def full(chunk, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    monkeypatch.setattr(type(chunk), "copy_to", full)
    with pytest.raises(CapacityError, match=r"10000 free, but cpu has no memory left; lower .*: CUDA out of memory"):
        tier.put(chunk)
    assert (list(tier.ids()), tier.used_bytes) == ([], 0)


def test_a_chunk_lies_in_memory_of_the_tiers_own(new_chunk):
    chunk, tier = new_chunk(0), tier_of(10_000)
    tier.put(chunk)
    assert tier.get(chunk.id).encoded.payload_LN.data_ptr() != chunk.encoded.payload_LN.data_ptr()


def test_putting_a_chunk_again_books_it_once(new_chunk):
    a = new_chunk(0)
    tier = tier_of(a.nbytes)
    tier.put(a)
    tier.put(a)
    assert (len(tier), tier.used_bytes) == (1, a.nbytes)


def test_removing_frees_the_bytes_once(new_chunk):
    a = new_chunk(0)
    tier = tier_of(a.nbytes)
    tier.put(a)
    tier.remove(a.id)
    tier.remove(a.id)
    assert (len(tier), tier.used_bytes, tier.check()) == (0, 0, [])


def test_an_absent_chunk_is_named():
    with pytest.raises(ChunkNotFound, match="tier host does not hold chunk abc"):
        tier_of(100).get("abc")


@pytest.mark.parametrize("verifies", [True, False])
def test_a_damaged_chunk_is_refused_where_the_tier_verifies(new_chunk, damage, verifies):
    a = new_chunk(0)
    tier = ResidentTier("host", torch.device("cpu"), a.nbytes, verifies=verifies)
    tier.put(a)
    damage(tier, a.id)
    if verifies:
        with pytest.raises(ChunkCorrupt):
            tier.get(a.id)
    else:
        assert tier.get(a.id) is not None


def test_check_names_bytes_that_do_not_add_up(new_chunk):
    a = new_chunk(0)
    tier = tier_of(2 * a.nbytes)
    tier.put(a)
    tier.used_bytes += 1
    assert tier.check() == [f"tier {tier.name}: {a.nbytes} bytes held, {a.nbytes + 1} booked, {2 * a.nbytes} cap"]
