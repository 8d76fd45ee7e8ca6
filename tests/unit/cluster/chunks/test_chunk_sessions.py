"""Sessions that move between workers, and forks of them, over a shared tier."""

import numpy as np
import torch

from worldkv.memory.placement import TierRules
from worldkv.memory.policy import parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.snapshot import restore, snapshot

MIB = 2**20
SHARED = TierRules(keeps_copies=True, keeps_released=True, copies_at_once=True)
POLICY = parse_policy("worldkv/recent_chunks=1/retrieved_chunks=2")
CHUNKS, BEFORE = 8, 5


def memory_of(tier) -> ChunkMemory:
    device = ResidentTier("device", torch.device("cpu"), MIB)
    return ChunkMemory([device, tier], "weights-a", [TierRules(), SHARED])


def same_record(one, other) -> bool:
    return one.retrieved == other.retrieved and np.array_equal(one.frames_FHWC, other.frames_FHWC)


def test_a_session_that_moved_goes_on_bit_for_bit_and_its_chunks_come_when_they_are_read(tiny, village):
    (undisturbed,) = tiny.finish(tiny.open(POLICY, CHUNKS))
    town = village(64 * MIB, nodes=("a", "b"))
    here, there = memory_of(town.worker()), memory_of(town.worker("b", 2))
    session = tiny.open(POLICY, CHUNKS, memory=here)
    first = [tiny.step([session])[0] for _ in range(BEFORE)]
    stored = set(session.stored.values())
    assert here.tiers[1].flush(5) == stored
    whole, light = snapshot(session), snapshot(session, stored)
    assert len(light) < len(whole) - sum(chunk.nbytes for chunk in here.held(stored).values())
    moved = restore(light, tiny.model, there)
    session.close()
    assert (there.stats().tiers[1].chunks, town.servers["a"].figures()["lent_bytes"]) == (0, 0)
    (rest,) = tiny.finish(moved)
    made = [*first, *rest]
    assert len(made) == len(undisturbed) == CHUNKS
    for one, other in zip(made, undisturbed, strict=True):
        assert same_record(one, other)
    assert there.stats().hits > 0
    assert sum(there.stats().misses.values()) == 0
    moved.close()
    for memory in (here, there):
        assert memory.check_integrity([]) == []
    town.check()


def test_a_fork_on_another_worker_shares_the_chunks_of_its_parent(tiny, village):
    town = village(64 * MIB, nodes=("a",))
    here, there = memory_of(town.worker()), memory_of(town.worker("a", 2))
    parent = tiny.open(POLICY, CHUNKS, memory=here)
    for _ in range(BEFORE):
        tiny.step([parent])
    shared = here.tiers[1].flush(5)
    before = town.servers["a"].figures()["chunks"]
    fork = restore(snapshot(parent, shared), tiny.model, there)
    fork.rollout = 7
    (forked,) = tiny.finish(fork)
    (parents,) = tiny.finish(parent)
    assert not any(same_record(*pair) for pair in zip(forked, parents, strict=True))
    assert sum(there.stats().misses.values()) == sum(here.stats().misses.values()) == 0
    chunks = {*fork.stored.values(), *parent.stored.values()}
    assert town.servers["a"].figures()["chunks"] == len(chunks) < before + len(fork.stored) + len(parent.stored)
