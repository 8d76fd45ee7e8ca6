"""A worker for tests of the shared chunk tier: a process with a chunk memory, for which numbers stand for chunks."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from cluster.chunks import runtime
from cluster.chunks.connect import open_node_tier
from cluster.chunks.settings import MIB, ChunkSettings
from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.placement import TierRules
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier

# [L, T, H, D] of int8: one MiB and a page.
SHAPE = (4, 256, 8, 64)


class Worker:
    """In a process of its own; numbers stand for chunks."""

    def __init__(self, settings: ChunkSettings) -> None:
        torch.set_num_threads(1)
        self.tier = open_node_tier(settings)
        device = ResidentTier("device", torch.device("cpu"), 2 * MIB)
        rules = [TierRules(), TierRules(keeps_copies=True, keeps_released=True, copies_at_once=True)]
        mover = VerifyingMover(readers=ThreadPoolExecutor(2))
        self.memory = ChunkMemory([device, self.tier], "weights-a", rules, mover)

    def make(self, number: int) -> KVChunk:
        generator = torch.Generator().manual_seed(number)
        kv = torch.randn(2, *SHAPE, generator=generator)
        poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
        return make_chunk(
            tenant="default", epoch="weights-a", index=number, c2w_F44=poses, encoded=CODECS["int8"].encode(*kv)
        )

    def admit(self, numbers: list[int]) -> list[str]:
        return [self.memory.admit(self.make(number)) for number in numbers]

    def take_over(self, ids: list[str]) -> None:
        """As a session does that was moved here."""
        self.memory.admit_dropped(ids)

    def flush(self) -> set[str]:
        return self.tier.flush(20)

    def fetch(self, numbers: list[int], tenant: str = "default") -> list[bool]:
        """Which of them are here; raises where any has other bytes than it was made with."""
        ids = [self.make(number).id for number in numbers]
        found = []
        for number, chunk_id in zip(numbers, ids, strict=True):
            (chunk,) = self.memory.fetch([chunk_id], tenant=tenant)
            if chunk is not None:
                assert chunk.encoded.payload_LN.equal(self.make(number).encoded.payload_LN)
            found.append(chunk is not None)
        return found

    def prefetch(self, numbers: list[int]) -> tuple[int, int]:
        """Look ahead, and then fetch: chunks that were sent for, and those of them that were of use or late."""
        before = self.memory.stats().prefetch
        expected = self.memory.prefetch([self.make(number).id for number in numbers])
        assert self.fetch(numbers) == [True] * len(numbers)
        expected.let_go()
        after = self.memory.stats().prefetch
        came = after.useful + after.late - before.useful - before.late
        return after.issued - before.issued, came

    def misses(self) -> dict[str, int]:
        stats = self.memory.stats()
        assert stats.lookups == stats.hits + sum(stats.misses.values())
        assert self.memory.check_integrity() == []
        return {reason: n for reason, n in stats.misses.items() if n}

    def change_weights(self, epoch: str) -> None:
        self.memory.set_epoch(epoch)

    def hurry(self) -> None:
        """Wait for answers for one or two seconds only."""
        runtime.ANSWER_SECONDS, runtime.BYTES_SECONDS = 1.0, 2.0

    def pid(self) -> int:
        return os.getpid()
