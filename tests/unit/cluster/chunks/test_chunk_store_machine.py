"""The chunk memory over a node tier that others write to and evict from, put through the steps of all tiers.

The other worker has chunks of a tenant of its own, so that it takes room and nothing else.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldkv.memory.mover import VerifyingMover
from worldkv.memory.tiers.resident import ResidentTier

PAGE = 4096


def shared_world(machine, village, new_chunk, damage):
    """A world whose last tier is a node's, with another worker beside it."""
    town = village(16 * PAGE, nodes=("a", "b"))

    def open_tiers(size, clock):
        device = ResidentTier("device", machine.CPU, 3 * size)
        host = machine.FlakyResident("host", machine.CPU, 4 * size)
        mover = VerifyingMover(clock=clock, readers=machine.Patient())
        return [device, host, town.worker(capacity_bytes=12 * PAGE)], mover

    class SharedWorld(machine.World):
        def fetch_late(self, rng):
            for who in machine.TENANTS:  # what is found only now would lie in another place afterwards
                self.memory._adoption.look_around(who, [chunk.id for chunk in self.chunks[who]])
            super().fetch_late(rng)

        def others_press(self, rng):
            self.damaged = True  # what others evict goes whoever holds it
            chunk = self.of_others[rng.randrange(len(self.of_others))]
            if len(self.other) == 6:
                self.other.remove(next(self.other.ids()))
            self.other.put(chunk)

        def others_read(self, rng):
            for chunk_id in rng.sample(list(self.other.ids()), k=min(2, len(self.other))):
                try:
                    self.held_by_others.append(self.other.get(chunk_id))
                except KeyError:
                    self.other.remove(chunk_id)
            del self.held_by_others[: rng.randrange(3)]

        def server_dies(self, rng):
            self.damaged = True
            town.kill("a")
            if rng.random() < 0.5:
                self.fetch(rng)
            town.start("a")
            town.pass_time(1)

        def directory_dies(self, rng):
            town.kill_directory(rng.randrange(2))

        def end(self):
            for who in machine.TENANTS:  # what was found without anybody having a reference stays till it has had one
                ids = {chunk.id for chunk in self.chunks[who]} & {i for tier in self.memory.lying() for i in tier}
                self.memory.admit_dropped(ids, tenant=who)
                self.memory.release(ids, tenant=who)
            super().end()

        def check(self):
            super().check()
            town.pass_time(0.5)
            town.check()

    world = SharedWorld(new_chunk, damage, open_tiers)
    world.other, world.held_by_others = town.worker(pid=2, capacity_bytes=12 * PAGE), []
    world.of_others = [new_chunk(i, tenant="others", tokens=6) for i in range(30, 45)]
    return world


@pytest.fixture(scope="module")
def damage():
    def flip(tier, chunk_id):
        tier._chunks[chunk_id].encoded.payload_LN.view(-1)[0] ^= 1

    return flip


STEPS = {"others_press": 6, "others_read": 2, "server_dies": 1, "directory_dies": 1}


@pytest.fixture(scope="module")
def kinds(store_machine):
    return store_machine.KINDS + [name for name, weight in STEPS.items() for _ in range(weight)]


@given(choices=st.lists(st.tuples(st.integers(0, 10**6), st.randoms(use_true_random=False)), min_size=8, max_size=40))
@settings(max_examples=40)
def test_the_books_balance_after_any_sequence_of_calls(store_machine, village, new_chunk, damage, kinds, choices):
    world = shared_world(store_machine, village, new_chunk, damage)
    for number, rng in choices:
        getattr(world, kinds[number % len(kinds)])(rng)
        world.check()
    world.end()


@pytest.mark.parametrize("seed", range(2))
def test_the_books_balance_on_long_random_walks(store_machine, village, new_chunk, damage, kinds, seed):
    rng, world = random.Random(seed), shared_world(store_machine, village, new_chunk, damage)
    for _ in range(500):
        getattr(world, rng.choice(kinds))(rng)
        world.check()
    stats = world.memory.stats()
    assert stats.tiers[2].hits
    assert stats.tiers[2].misses["evicted"]
    assert all(n for reason, n in stats.misses.items() if reason != "late"), stats.misses  # that has a walk of its own
    world.end()
    world.memory.close()
