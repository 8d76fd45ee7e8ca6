"""Several workers of two tenants on three nodes, whose servers and directories die and come back, at random.

Whatever happens: nobody sees wrong bytes or another tenant's chunk, nothing is booked twice, no capacity is passed,
every lookup is a hit or a miss with a reason; and once all is quiet every directory knows exactly what servers hold.
"""

import gc

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tenants import Share, Shares
from worldkv.memory.tiers.resident import ResidentTier

NODES, TENANTS, CHUNKS, SIZE = ("a", "b", "c"), ("red", "blue"), 8, 8192
SHARED = TierRules(keeps_copies=True, keeps_released=True, copies_at_once=True)

workers = st.integers(0, 3)
tenants = st.sampled_from(TENANTS)
numbers = st.integers(0, CHUNKS - 1)
nodes = st.sampled_from(NODES)


class Villagers(RuleBasedStateMachine):
    @initialize(copies=st.integers(1, 2))
    def found(self, copies):
        shares = Shares({"red": Share(SIZE, None), "blue": Share(0, 3 * SIZE)})
        self.town = self.village(6 * SIZE, NODES, copies, shares=shares)
        self.chunks = {who: [self.chunk_of(i, tenant=who) for i in range(CHUNKS)] for who in TENANTS}
        self.memories = [self.memory(i) for i in range(4)]
        self.readers = []

    def memory(self, i):
        device = ResidentTier("device", torch.device("cpu"), 1792)
        tier = self.town.worker(NODES[i % 3], pid=1000 + i)
        return ChunkMemory([device, tier], "weights-a", [TierRules(), SHARED])

    @rule(i=workers, who=tenants, number=numbers)
    def admit(self, i, who, number):
        self.memories[i].admit(self.chunks[who][number], tenant=who)

    @rule(i=workers, who=tenants, wanted=st.lists(numbers, min_size=1, max_size=3), keep=st.booleans())
    def fetch(self, i, who, wanted, keep):
        memory = self.memories[i]
        before = memory.stats()
        found = memory.fetch([self.chunks[who][number].id for number in wanted], tenant=who)
        for number, chunk in zip(wanted, found, strict=True):
            if chunk is not None:
                original = self.chunks[who][number]
                assert (chunk.id, chunk.tenant) == (original.id, who)
                assert chunk.encoded.payload_LN.equal(original.encoded.payload_LN)
                if keep:
                    self.readers.append((chunk, original))
        stats = memory.stats()
        assert stats.lookups - before.lookups == len(wanted)
        assert stats.hits - before.hits == sum(chunk is not None for chunk in found)

    @rule(i=workers, who=tenants, number=numbers)
    def fetch_as_another(self, i, who, number):
        other = TENANTS[1 - TENANTS.index(who)]
        assert self.memories[i].fetch([self.chunks[other][number].id], tenant=who) == [None]

    @rule()
    def stop_reading(self):
        self.readers = self.readers[1:]
        gc.collect(0)

    @rule(i=workers, who=tenants, number=numbers)
    def release(self, i, who, number):
        memory, chunk_id = self.memories[i], self.chunks[who][number].id
        entry = memory._catalogue.find(who, chunk_id)
        if entry is not None and entry.references:
            memory.release([chunk_id], tenant=who)

    @rule(i=workers)
    def worker_dies(self, i):
        """And another comes in its place."""
        for server in self.town.servers.values():
            server.sweep(lambda process: process.pid != self.memories[i].tiers[1]._client.me.pid)
        self.memories[i] = self.memory(i)

    @precondition(lambda self: len(self.town.servers) > 1)
    @rule(node=nodes)
    def server_dies(self, node):
        self.town.servers.pop(node, None)

    @rule(node=nodes)
    def server_comes_back(self, node):
        if node not in self.town.servers:
            self.town.start(node)

    @rule(number=st.integers(0, 1))
    def directory_dies(self, number):
        self.town.kill_directory(number)

    @rule(seconds=st.sampled_from([0.5, 2.0, 8.0]))
    def pass_time(self, seconds):
        self.town.pass_time(seconds)

    @rule()
    def be_quiet(self):
        self.town.pass_time(8)
        lying = {key: set() for server in self.town.servers.values() for key in server._books.held}
        for node, server in self.town.servers.items():
            for key in server._books.held:
                lying[key].add(node)
        for directory in self.town.replicas:
            told = {}
            for (tenant, chunk_id), places in lying.items():
                where = directory.find(tenant, [chunk_id], self.town.time)
                told[tenant, chunk_id] = set(where.places[chunk_id][1])
                assert len(places) >= 1
            assert told == lying
            assert sum(directory.nodes().values()) == sum(map(len, lying.values()))

    @invariant()
    def all_books_balance(self):
        self.town.check()
        for memory in self.memories:
            assert memory.check_integrity() == []
        for server in self.town.servers.values():
            assert server._books.tenant_bytes("blue") <= 3 * SIZE
        for chunk, original in self.readers:
            assert chunk.encoded.payload_LN.equal(original.encoded.payload_LN)


def test_whatever_dies_nobody_sees_wrong_bytes_and_all_books_balance(village, new_chunk):
    Villagers.village, Villagers.chunk_of = village, staticmethod(new_chunk)
    run_state_machine_as_test(Villagers, settings=settings(max_examples=40, stateful_step_count=40))
