import pytest
import torch

from worldkv.errors import CapacityError, ChunkNotFound
from worldkv.memory.tiers.resident import ResidentTier


def tier_of(capacity_bytes: int) -> ResidentTier:
    return ResidentTier("host", torch.device("cpu"), capacity_bytes)


def test_used_bytes_are_those_of_the_chunks_it_holds(new_chunk):
    a, b = new_chunk(0, tokens=2), new_chunk(1, tokens=5)
    tier = tier_of(a.nbytes + b.nbytes)
    tier.put(a)
    tier.put(b)
    assert (len(tier), tier.used_bytes) == (2, a.nbytes + b.nbytes)
    assert tier.pop(a.id) is not None
    assert (len(tier), tier.used_bytes, a.id in tier) == (1, b.nbytes, False)


def test_a_chunk_that_does_not_fit_is_refused_with_the_numbers_and_leaves_no_trace(new_chunk):
    a, b = new_chunk(0), new_chunk(1)
    tier = tier_of(a.nbytes + 10)
    tier.put(a)
    with pytest.raises(CapacityError, match=f"tier host: {b.nbytes} bytes asked, 10 bytes free"):
        tier.put(b)
    assert (list(tier.ids()), tier.used_bytes) == ([a.id], a.nbytes)


def test_putting_a_chunk_again_books_it_once(new_chunk):
    a = new_chunk(0)
    tier = tier_of(a.nbytes)
    tier.put(a)
    tier.put(a)
    assert (len(tier), tier.used_bytes) == (1, a.nbytes)


def test_ids_run_from_least_to_most_recently_used(new_chunk):
    a, b, c = (new_chunk(i) for i in range(3))
    tier = tier_of(3 * a.nbytes)
    for chunk in (a, b, c):
        tier.put(chunk)
    tier.get(a.id)
    assert list(tier.ids()) == [b.id, c.id, a.id]
    tier.put(b)
    assert list(tier.ids()) == [c.id, a.id, b.id]
    tier.peek(c.id)
    assert list(tier.ids()) == [c.id, a.id, b.id]


@pytest.mark.parametrize("verb", ["get", "peek", "pop"])
def test_an_absent_chunk_is_named(verb):
    with pytest.raises(ChunkNotFound, match="tier host does not hold chunk abc"):
        getattr(tier_of(100), verb)("abc")
