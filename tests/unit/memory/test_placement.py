"""How chunks are moved when moving one of them moves, fails or takes away another."""

import pytest
import torch

from worldkv.errors import ModelError, TransferError
from worldkv.memory.detail import Detail, Ladder
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tenants import Share, Shares
from worldkv.memory.tiers.resident import ResidentTier

CPU = torch.device("cpu")


class Brittle(ResidentTier):
    """A tier whose verbs do what the test says."""

    fault: Exception | None = None
    removals = 0
    unremovable: frozenset[str] = frozenset()

    def put(self, chunk):
        if self.fault is not None:
            raise self.fault
        super().put(chunk)

    def remove(self, chunk_id):
        self.removals += 1
        if chunk_id in self.unremovable:
            raise TransferError(f"chunk {chunk_id} cannot be removed")
        super().remove(chunk_id)


def memory_of(chunk, *counts: int, rules=None) -> ChunkMemory:
    """Tiers with room for so many chunks like this one."""
    tiers = [Brittle(f"tier{i}", CPU, n * chunk.nbytes) for i, n in enumerate(counts)]
    return ChunkMemory(tiers, "weights-a", rules)


def test_an_error_on_the_way_leaves_no_chunk_on_its_way(new_chunk):
    a = new_chunk(0)
    memory = memory_of(a, 1)
    memory.tiers[0].fault = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        memory.admit(a)
    assert memory._placement._arriving == set()


def test_chunks_that_go_with_another_one_are_no_error(new_chunk, monkeypatch):
    """What was stale goes from all tiers when one of them needs its room, from the one being emptied too."""
    ladder = Ladder((Detail("int8"),))
    rules = [TierRules(low_ratio=0.1, ladder=ladder), TierRules(keeps_copies=True)]
    fresh, stale, more = new_chunk(0), new_chunk(1, epoch="weights-b"), new_chunk(2)
    memory = memory_of(fresh, 2, 1, rules=rules)
    memory.admit(fresh)
    memory.set_epoch("weights-b")
    memory.admit(stale)
    memory.set_epoch("weights-a")
    entry = memory._catalogue.find("default", stale.id)
    memory.tiers[1].put(stale)
    memory._catalogue.enter(entry, 1, stale.nbytes)
    monkeypatch.setattr(Ladder, "reduce", lambda *_: _refuse())
    monkeypatch.setattr(memory._placement, "_reclaim", _only_below(memory._placement))
    memory.admit(more)
    assert memory.lying() == [[more.id], [fresh.id]]
    assert memory.check_integrity() == []


def _refuse():
    raise ModelError("cannot be reduced")


def _only_below(placement):
    """As if another tier had asked first: tier 0 finds nothing to reclaim for itself."""
    reclaim = placement._reclaim
    return lambda level, need: reclaim(level, need) if level else None


def test_what_cannot_be_removed_is_tried_anew_a_few_times_per_admission_however_much_there_is(new_chunk):
    chunks = [new_chunk(i) for i in range(60)]
    memory = memory_of(chunks[0], 20)
    for chunk in chunks[:20]:
        memory.admit(chunk)
    tier, gone = memory.tiers[0], [chunk.id for chunk in chunks[:19]]
    tier.unremovable = frozenset(gone)
    memory.release(gone)
    for chunk in chunks[20:30]:
        before = tier.removals
        memory.admit(chunk)
        assert tier.removals - before <= 3  # of them, and one that makes room
    assert memory._placement.access.stuck[0] == set(gone)
    tier.unremovable = frozenset(gone[1:])
    for chunk in chunks[30:50]:
        memory.admit(chunk)
    assert memory._placement.access.stuck[0] == set(gone[1:])
    tier.unremovable = frozenset()
    for chunk in chunks[50:]:
        memory.admit(chunk)
    assert memory._placement.access.stuck[0] == set()
    assert memory.check_integrity() == []


def test_what_comes_to_be_held_while_room_is_made_of_it_makes_nobody_pass_a_limit(new_chunk, damage):
    """A chunk that loses detail may turn out to be one that is pinned, though damaged and taken out."""
    whole, other, ladder = new_chunk(0), new_chunk(1), Ladder((Detail("int8"),))
    reduced = ladder.reduce(whole, ladder.rungs[0])
    rules = TierRules(ladder=ladder, shares=Shares({"default": Share(0, whole.nbytes)}))
    memory = ChunkMemory([ResidentTier("host", CPU, 2 * whole.nbytes, verifies=True)], "weights-a", [rules])
    memory.admit(reduced)
    with memory.pin([reduced.id]):
        damage(memory.tiers[0], reduced.id)
        assert memory.fetch([reduced.id]) == [None]
        memory.admit(whole)
        memory.admit(other)
        assert memory.lying() == [[reduced.id]]
        assert memory.check_integrity() == []
        assert memory.fetch([other.id]) == [None]
        assert memory.stats().misses["quota"] == 1
