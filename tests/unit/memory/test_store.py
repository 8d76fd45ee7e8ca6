from collections import Counter

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from worldkv.errors import CapacityError, ChunkNotFound
from worldkv.memory.store import ChunkMemory

CHUNKS = st.integers(0, 7)


def lying(memory: ChunkMemory) -> list[list[str]]:
    """Chunk ids per tier, least recently used first."""
    return [list(tier.ids()) for tier in memory.tiers]


def misses(memory: ChunkMemory) -> dict[str, int]:
    return {reason: count for reason, count in memory.stats().misses.items() if count}


def test_the_books_balance_after_any_sequence_of_calls(new_chunk, make_memory, damage):
    # Tier 1 cannot hold the largest chunks, and one chunk fits nowhere.
    chunks = [new_chunk(i, tokens=tokens) for i, tokens in enumerate((1, 2, 2, 3, 3, 4, 6, 9))]
    stale = new_chunk(0, tokens=2, epoch="weights-of-last-week")
    capacities = (sum(chunk.nbytes for chunk in chunks[:4]), 2 * chunks[3].nbytes)

    class Books(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.memory = make_memory(*capacities)
            self.references: Counter[str] = Counter()
            self.damaged: set[str] = set()

        @rule(i=CHUNKS)
        def admit(self, i: int) -> None:
            if not any(chunks[i].id in tier for tier in self.memory.tiers):
                self.damaged.discard(chunks[i].id)
            assert self.memory.admit(chunks[i]) == chunks[i].id
            self.references[chunks[i].id] += 1

        @rule()
        def admit_a_chunk_of_other_weights(self) -> None:
            self.memory.admit(stale)
            self.references[stale.id] += 1

        @rule(i=CHUNKS)
        def admit_dropped(self, i: int) -> None:
            self.memory.admit_dropped([chunks[i].id])
            self.references[chunks[i].id] += 1

        @precondition(lambda self: self.references)
        @rule(data=st.data())
        def retain(self, data: st.DataObject) -> None:
            chunk_id = data.draw(st.sampled_from(sorted(self.references)))
            self.memory.retain([chunk_id])
            self.references[chunk_id] += 1

        @precondition(lambda self: self.references)
        @rule(data=st.data())
        def release(self, data: st.DataObject) -> None:
            chunk_id = data.draw(st.sampled_from(sorted(self.references)))
            self.memory.release([chunk_id])
            self.references -= Counter([chunk_id])

        @rule(i=CHUNKS)
        def flip_a_byte_in_the_host_tier(self, i: int) -> None:
            host = self.memory.tiers[1]
            if chunks[i].id in host and chunks[i].id not in self.damaged:
                damage(host, chunks[i].id)
                self.damaged.add(chunks[i].id)

        @rule(wanted=st.lists(CHUNKS, max_size=4))
        def fetch(self, wanted: list[int]) -> None:
            for i in wanted:
                self._fetch_one(chunks[i])

        @rule()
        def fetch_a_chunk_of_other_weights(self) -> None:
            assert self.memory.fetch([stale.id]) == [None]

        @rule()
        def look_without_touching(self) -> None:
            before = lying(self.memory), self.memory.stats()
            held = {chunk.id for chunk in self.memory.held(self.references)}
            assert (lying(self.memory), self.memory.stats()) == before
            assert held.isdisjoint(self.damaged | {stale.id})

        def _fetch_one(self, chunk) -> None:
            lies_somewhere = any(chunk.id in tier for tier in self.memory.tiers)
            before = Counter(self.memory.stats().misses)
            found = self.memory.fetch([chunk.id])[0]
            missed = Counter(self.memory.stats().misses) - before
            if found is None:
                cause = "corrupt" if lies_somewhere else "evicted" if self.references[chunk.id] else "cold"
                assert missed == Counter([cause])
                self.damaged.discard(chunk.id)
            else:
                assert missed == Counter()
                found.verify()
                assert found.id == chunk.id

        @invariant()
        def audit_finds_nothing(self) -> None:
            assert self.memory.audit() == []

        @invariant()
        def no_tier_is_overfull(self) -> None:
            assert all(tier.used_bytes <= tier.capacity_bytes for tier in self.memory.tiers)

        @invariant()
        def every_lookup_is_a_hit_or_a_miss(self) -> None:
            stats = self.memory.stats()
            assert stats.lookups == stats.hits + sum(stats.misses.values())
            assert stats.hits == sum(tier.hits for tier in stats.tiers)

        def teardown(self) -> None:
            self.memory.release(self.references.elements())
            assert lying(self.memory) == [[], []]
            assert [tier.used_bytes for tier in self.memory.tiers] == [0, 0]

    run_state_machine_as_test(Books, settings=settings(max_examples=100, stateful_step_count=30))


def test_a_memory_without_tiers_is_refused():
    with pytest.raises(CapacityError, match="at least one tier"):
        ChunkMemory([], "weights-a")


def test_the_least_recently_used_chunk_is_demoted_first(new_chunk, make_memory):
    a, b, c, d = (new_chunk(i) for i in range(4))
    memory = make_memory(3 * a.nbytes, 3 * a.nbytes)
    for chunk in (a, b, c):
        memory.admit(chunk)
    memory.fetch([a.id])  # b is now the oldest
    memory.admit(d)
    assert lying(memory) == [[c.id, a.id, d.id], [b.id]]
    assert memory.stats().demoted == 1


def test_the_last_tier_drops_its_oldest_chunk(new_chunk, make_memory):
    chunks = [new_chunk(i) for i in range(4)]
    memory = make_memory(chunks[0].nbytes, 2 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    assert lying(memory) == [[chunks[3].id], [chunks[1].id, chunks[2].id]]
    stats = memory.stats()
    assert (stats.admitted, stats.demoted, stats.dropped) == (4, 3, 1)


def test_a_chunk_that_is_pushed_out_of_everything_is_dropped_not_demoted(new_chunk, make_memory):
    large, small = new_chunk(0, tokens=6), new_chunk(1, tokens=2)
    memory = make_memory(large.nbytes, small.nbytes)
    memory.admit(large)
    memory.admit(small)
    assert lying(memory) == [[small.id], []]
    assert (memory.stats().demoted, memory.stats().dropped) == (0, 1)


def test_a_hit_in_a_colder_tier_promotes_the_chunk(new_chunk, make_memory):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(a.nbytes, a.nbytes)
    memory.admit(a)
    memory.admit(b)
    assert lying(memory) == [[b.id], [a.id]]
    assert memory.fetch([a.id])[0] is memory.tiers[0].peek(a.id)
    assert lying(memory) == [[a.id], [b.id]]
    stats = memory.stats()
    assert (stats.promoted, [tier.hits for tier in stats.tiers]) == (1, [0, 1])


def test_a_chunk_too_large_for_tier_0_lives_and_hits_in_tier_1(new_chunk, make_memory):
    large, small = new_chunk(0, tokens=6), new_chunk(1, tokens=2)
    memory = make_memory(small.nbytes, large.nbytes)
    memory.admit(small)
    memory.admit(large)
    assert memory.fetch([large.id])[0].id == large.id
    assert lying(memory) == [[small.id], [large.id]]
    assert (memory.stats().promoted, memory.stats().demoted) == (0, 0)


def test_a_chunk_larger_than_every_tier_misses_as_evicted(new_chunk, make_memory):
    large, small = new_chunk(0, tokens=6), new_chunk(1, tokens=2)
    memory = make_memory(small.nbytes, small.nbytes)
    memory.admit(small)
    memory.admit(large)
    assert lying(memory) == [[small.id], []]
    assert memory.fetch([large.id]) == [None]
    assert misses(memory) == {"evicted": 1}
    assert memory.stats().dropped == 1


def test_a_chunk_that_nobody_admitted_misses_as_cold(make_memory):
    memory = make_memory(1000)
    assert memory.fetch(["0" * 32]) == [None]
    assert misses(memory) == {"cold": 1}


def test_a_chunk_of_other_weights_misses_as_stale_and_is_dropped(new_chunk, make_memory):
    chunk = new_chunk(0, epoch="weights-of-last-week")
    memory = make_memory(2 * chunk.nbytes)
    memory.admit(chunk)
    assert memory.fetch([chunk.id]) == [None]
    assert misses(memory) == {"stale_epoch": 1}
    assert lying(memory) == [[]]
    assert memory.stats().dropped == 1


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
def test_a_flipped_byte_in_the_host_tier_is_a_miss_never_a_chunk(new_chunk, make_memory, damage, codec):
    a, b = new_chunk(0, codec=codec), new_chunk(1, codec=codec)
    memory = make_memory(a.nbytes, 2 * a.nbytes)
    memory.admit(a)
    memory.admit(b)
    damage(memory.tiers[1], a.id)
    assert memory.fetch([a.id]) == [None]
    assert misses(memory) == {"corrupt": 1}
    assert lying(memory) == [[b.id], []]
    assert memory.fetch([a.id]) == [None]
    assert misses(memory) == {"corrupt": 1, "evicted": 1}


def test_a_corrupt_chunk_that_is_admitted_again_hits_again(new_chunk, make_memory, damage):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(a.nbytes, 2 * a.nbytes)
    memory.admit(a)
    memory.admit(b)
    damage(memory.tiers[1], a.id)
    memory.fetch([a.id])
    memory.admit(a)
    assert memory.fetch([a.id])[0].id == a.id


def test_fetch_answers_in_the_order_of_the_question(new_chunk, make_memory):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(4 * a.nbytes)
    memory.admit(a)
    memory.admit(b)
    found = memory.fetch([b.id, "0" * 32, a.id, b.id])
    assert [chunk and chunk.index for chunk in found] == [1, None, 0, 1]


def test_equal_content_is_stored_once_and_goes_with_its_last_holder(new_chunk, make_memory):
    chunk, twin = new_chunk(0), new_chunk(0)
    memory = make_memory(4 * chunk.nbytes)
    assert memory.admit(chunk) == memory.admit(twin)
    assert memory.tiers[0].used_bytes == chunk.nbytes
    memory.release([chunk.id])
    assert memory.fetch([chunk.id])[0] is not None
    memory.release([chunk.id])
    assert lying(memory) == [[]]
    assert memory.fetch([chunk.id]) == [None]
    assert misses(memory) == {"cold": 1}


def test_tenants_never_share_a_chunk(new_chunk, make_memory):
    ours, theirs = new_chunk(0, tenant="ours"), new_chunk(0, tenant="theirs")
    memory = make_memory(4 * ours.nbytes)
    memory.admit(ours)
    memory.admit(theirs)
    memory.release([theirs.id])
    assert lying(memory) == [[ours.id]]


def test_retaining_what_nobody_holds_is_refused(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory = make_memory(chunk.nbytes)
    with pytest.raises(ChunkNotFound, match=chunk.id):
        memory.retain([chunk.id])
    memory.admit(chunk)
    memory.retain([chunk.id])
    memory.release([chunk.id])
    assert memory.fetch([chunk.id])[0] is not None


def test_chunks_dropped_elsewhere_miss_as_evicted_until_released(make_memory):
    memory = make_memory(1000)
    memory.admit_dropped(["a"])
    memory.fetch(["a"])
    memory.release(["a"])
    memory.fetch(["a"])
    assert misses(memory) == {"evicted": 1, "cold": 1}
    assert memory.audit() == []


def test_held_lists_sound_chunks_coldest_first_and_moves_nothing(new_chunk, make_memory, damage):
    chunks = [new_chunk(i) for i in range(5)]
    memory = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    damage(memory.tiers[1], chunks[1].id)
    before = lying(memory), memory.stats()
    held = memory.held([chunk.id for chunk in chunks[:4]] + ["unknown"])
    assert [chunk.index for chunk in held] == [0, 2, 3]
    assert (lying(memory), memory.stats()) == before


def test_chunks_admitted_as_held_lists_them_lie_where_they_lay(new_chunk, make_memory):
    chunks = [new_chunk(i) for i in range(6)]
    memory = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in chunks:
        memory.admit(chunk)
    memory.fetch([chunks[2].id, chunks[4].id])
    twin = make_memory(2 * chunks[0].nbytes, 3 * chunks[0].nbytes)
    for chunk in memory.held(chunk.id for chunk in chunks):
        twin.admit(chunk)
    assert lying(twin) == lying(memory)


def test_audit_names_each_kind_of_fault(new_chunk, make_memory):
    a, b = new_chunk(0), new_chunk(1)
    memory = make_memory(4 * a.nbytes, 4 * a.nbytes)
    memory.admit(a)
    memory.tiers[1].put(a)
    memory.tiers[1].put(b)
    memory.tiers[0].used_bytes += 1
    faults = "\n".join(memory.audit())
    assert f"chunk {a.id} lies in 2 tiers" in faults
    assert f"chunk {b.id} is held by nobody" in faults
    assert f"tier tier0: {a.nbytes} bytes held, {a.nbytes + 1} booked" in faults


def test_stats_are_a_copy_of_that_moment(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory = make_memory(2 * chunk.nbytes)
    before = memory.stats()
    memory.admit(chunk)
    memory.fetch([chunk.id, "unknown"])
    after = memory.stats()
    assert (before.lookups, before.admitted, before.tiers[0].chunks) == (0, 0, 0)
    assert (after.lookups, after.hits, after.misses["cold"]) == (2, 1, 1)
    assert (after.admitted, after.admitted_bytes) == (1, chunk.nbytes)
    tier = after.tiers[0]
    assert (tier.chunks, tier.used_bytes, tier.capacity_bytes) == (1, chunk.nbytes, 2 * chunk.nbytes)


def test_what_is_fetched_is_what_was_admitted(new_chunk, make_memory):
    chunk = new_chunk(0)
    memory = make_memory(2 * chunk.nbytes)
    memory.admit(chunk)
    (found,) = memory.fetch([chunk.id])
    for name, tensor in chunk.encoded.tensors.items():
        assert torch.equal(found.encoded.tensors[name], tensor)
