import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.memory.eviction import (
    COMPARED,
    EVICTION_POLICIES,
    Candidate,
    CostAware,
    LeastRecentlyUsed,
    PoseRedundancy,
    Refetch,
    choose,
)
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory


def candidate(
    name: str, *, x: float = 0.0, cost: int = 10, last_use: int = 0, uses: int = 0, group: object = 1, back=None
):
    return Candidate(name, "tenant", cost, last_use, uses, (x, 0.0, 0.0, 0.0, 0.0, 1.0), group, back)


def order(policy, *candidates: Candidate, now: int = 100) -> str:
    return "".join(one.id for one in policy.victims(candidates, now))


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        tenant=st.sampled_from("ab"),
        cost_bytes=st.integers(1, 50),
        last_use=st.integers(0, 100),
        uses=st.integers(0, 5),
        seen_from=st.none() | st.tuples(*[st.floats(-5, 5)] * 6),
        group=st.sampled_from([None, 1, 2]),
        refetch_seconds=st.none() | st.floats(0, 5),
    ),
    max_size=12,
    unique_by=lambda one: one.id,
)


@pytest.mark.parametrize("name", EVICTION_POLICIES)
@given(candidates=CANDIDATES)
def test_a_policy_orders_all_candidates_each_once_and_the_same_way_each_time(name, candidates):
    policy = EVICTION_POLICIES[name]()
    ordered = list(policy.victims(candidates, 100))
    assert sorted(one.id for one in ordered) == sorted(one.id for one in candidates)
    assert ordered == list(policy.victims(candidates, 100))


@given(
    candidates=CANDIDATES, need=st.integers(-5, 300), spare=st.dictionaries(st.sampled_from("ab"), st.integers(1, 200))
)
def test_what_is_chosen_never_exceeds_what_each_tenant_can_spare_nor_goes_on_when_it_is_enough(candidates, need, spare):
    chosen = choose(candidates, need, spare)
    for tenant in "ab":
        assert sum(one.cost_bytes for one in chosen if one.tenant == tenant) <= spare.get(tenant, 0)
    if chosen:
        assert sum(one.cost_bytes for one in chosen[:-1]) < need


def test_least_recently_used_takes_no_more_candidates_than_are_needed():
    endless = (candidate(str(i)) for i in iter(int, 1))
    assert len(choose(LeastRecentlyUsed().victims(endless, 0), 25, {"tenant": 1000})) == 3


def test_cost_aware_keeps_what_was_used_often_and_lately():
    policy = CostAware()
    assert order(policy, candidate("a", uses=9), candidate("b"), candidate("c", last_use=90)) == "bca"


def test_cost_aware_drops_the_larger_of_two_when_latency_rules_and_neither_when_it_does_not():
    for latency_seconds, gone in ((1.0, "ls"), (0.0, "sl")):
        back = Refetch(latency_seconds, bytes_per_second=2.0**30).seconds
        small, large = (candidate(name, cost=cost, back=back(cost)) for name, cost in (("s", 2**10), ("l", 2**17)))
        assert order(CostAware(), small, large) == gone


def test_cost_aware_keeps_longest_what_comes_back_slowly_and_what_never_does():
    fast, slow, never = candidate("f", back=0.001), candidate("s", back=0.5), candidate("n", back=None)
    assert order(CostAware(), never, slow, fast) == "fsn"
    # Not at any price: what is never used again is not worth its bytes.
    assert order(CostAware(), candidate("n", last_use=0), candidate("f", last_use=99, uses=10**5, back=0.001)) == "nf"


def test_a_store_tells_its_policy_what_bringing_each_chunk_back_would_take(new_chunk, make_memory):
    seen: dict[str, list[float | None]] = {}

    class Watching(LeastRecentlyUsed):
        def victims(self, candidates, now):
            candidates = list(candidates)
            seen.setdefault(candidates[0].id, []).append(candidates[0].refetch_seconds)
            return super().victims(candidates, now)

    chunks = [new_chunk(i) for i in range(5)]
    size = chunks[0].nbytes
    near = TierRules(Watching())
    slow = TierRules(Watching(), refetch=Refetch(latency_seconds=1.0, bytes_per_second=size))
    last = TierRules(Watching(), refetch=Refetch(latency_seconds=7.0, bytes_per_second=size), keeps_copies=True)
    memory = ChunkMemory(make_memory(size, size, 2 * size).tiers, "weights-a", [near, slow, last])
    for chunk in chunks:
        memory.admit(chunk)
    # From the second tier, then the last, then nowhere.
    assert list(dict.fromkeys(seen[chunks[0].id])) == [2.0, 8.0, None]
    memory.fetch([chunks[2].id])  # leaves its copy in the last tier
    memory.admit(new_chunk(5))
    assert seen[chunks[2].id][-1] == 8.0


def test_pose_redundancy_drops_the_older_of_the_closest_pair_first_and_the_lonely_last():
    chunks = [
        candidate("a", x=9),
        candidate("b", x=0),
        candidate("c", x=0.1),
        candidate("d", x=5),
        candidate("e", x=4.5),
    ]
    assert order(PoseRedundancy(), *chunks).startswith("bd")
    assert order(PoseRedundancy(), *chunks)[-1] in "ace"


def test_chunks_of_different_worlds_never_stand_in_for_each_other():
    same = [candidate("a", group=1), candidate("b", group=2), candidate("c", group=None), candidate("d", group=None)]
    near = [candidate("e", group=3), candidate("f", x=0.5, group=3)]
    assert order(PoseRedundancy(), *same, *near)[0] == "e"


def test_looking_the_other_way_is_far_apart():
    turned = Candidate("b", "tenant", 10, 0, 0, (0.0, 0.0, 0.0, 0.0, 0.0, -1.0), 1)
    assert order(PoseRedundancy(), candidate("a"), turned, candidate("c", x=0.5))[0] == "a"


def test_policies_that_compare_look_at_a_bounded_number():
    many = [candidate(str(i), x=i) for i in range(COMPARED)]
    late = candidate("late", x=0.0)
    assert next(PoseRedundancy().victims([*many, late], 0)).id == "0"
    assert [one.id for one in CostAware().victims([*many, late], 100)][-1] == "late"


def test_with_pose_redundancy_a_store_keeps_what_sees_alone(new_chunk, make_memory):
    alone, seen, again, other = new_chunk(5), new_chunk(0), new_chunk(0, seed=7), new_chunk(9)
    memory = ChunkMemory(make_memory(3 * alone.nbytes).tiers, "weights-a", [TierRules(PoseRedundancy())])
    for chunk in (alone, seen, again, other):
        memory.admit(chunk, group="one world")
    # The least recently used would be `alone`; what `again` sees too goes instead.
    assert memory.lying() == [[alone.id, again.id, other.id]]


def test_watermarks_empty_the_tier_in_one_go(new_chunk, make_memory):
    chunks = [new_chunk(i) for i in range(11)]
    size = chunks[0].nbytes
    rules = [TierRules(high_ratio=1.0, low_ratio=0.5), TierRules()]
    memory = ChunkMemory(make_memory(10 * size, 10 * size).tiers, "weights-a", rules)
    for chunk in chunks[:10]:
        memory.admit(chunk)
    assert memory.stats().demoted == 0
    memory.admit(chunks[10])
    assert [len(ids) for ids in memory.lying()] == [5, 6]
