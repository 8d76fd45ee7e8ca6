"""Chunks brought near before they are asked for, and what became of that."""

from worldkv.stats import PrefetchStats


def three_chunks(new_chunk, make_memory):
    """A memory with two chunks near and one further off."""
    chunks = [new_chunk(i) for i in range(3)]
    memory = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    assert memory.lying() == [[chunks[1].id, chunks[2].id], [chunks[0].id]]
    return memory, *chunks


def test_a_prefetched_chunk_is_near_when_it_is_asked_for_and_that_was_useful_once(new_chunk, make_memory):
    memory, a, b, c = three_chunks(new_chunk, make_memory)
    memory.promote([a.id])
    assert memory.lying() == [[c.id, a.id], [b.id]]
    assert memory.stats().lookups == 0
    memory.fetch([a.id, a.id])
    assert memory.stats().prefetch == PrefetchStats(issued=1, issued_bytes=a.nbytes, useful=1)
    assert [tier.hits for tier in memory.stats().tiers] == [2, 0]


def test_what_lies_near_already_or_nowhere_is_not_prefetched(new_chunk, make_memory):
    memory, _, b, _ = three_chunks(new_chunk, make_memory)
    memory.promote([b.id, "no such chunk"])
    assert memory.stats().prefetch == PrefetchStats()


def test_another_tenants_chunk_is_not_prefetched(new_chunk, make_memory):
    memory, a, *_ = three_chunks(new_chunk, make_memory)
    memory.promote([a.id], tenant="somebody else")
    assert memory.stats().prefetch.issued == 0


def test_a_prefetch_after_its_deadline_is_late_and_moves_nothing(new_chunk, make_memory):
    memory, a, *_ = three_chunks(new_chunk, make_memory)
    places = memory.lying()
    memory.promote([a.id], deadline=0.0)
    assert memory.lying() == places
    assert memory.stats().prefetch == PrefetchStats(issued=1, issued_bytes=a.nbytes, late=1)


def test_a_prefetched_chunk_that_leaves_before_anyone_asks_was_wasted(new_chunk, make_memory):
    memory, a, b, _ = three_chunks(new_chunk, make_memory)
    memory.promote([a.id])
    memory.demote([a.id])
    memory.fetch([a.id, b.id])
    assert memory.stats().prefetch == PrefetchStats(issued=1, issued_bytes=a.nbytes, wasted=1)


def test_a_damaged_chunk_cannot_be_prefetched(new_chunk, make_memory, damage):
    memory, a, *_ = three_chunks(new_chunk, make_memory)
    damage(memory.tiers[1], a.id)
    memory.promote([a.id])
    assert (memory.stats().prefetch.late, memory.stats().quarantined) == (1, 1)
    assert memory.fetch([a.id]) == [None]


def test_no_prefetch_takes_the_place_of_a_chunk_that_is_held(new_chunk, make_memory):
    memory, a, b, c = three_chunks(new_chunk, make_memory)
    with memory.pin([b.id, c.id]):
        memory.promote([a.id])
        assert memory.lying() == [[b.id, c.id], [a.id]]
    assert memory.stats().prefetch.late == 1
