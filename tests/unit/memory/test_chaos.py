"""The fault campaign in its short form; `benchmarks/chaos.py` runs 10^6 operations of it, and tests/e2e its deaths."""

import os
import tempfile
from pathlib import Path

import pytest
from campaign.harm import HARMS
from campaign.pool import Pool, WrongBytes
from campaign.run import run

SEED, OPERATIONS = 5, 4000


@pytest.fixture
def folder(tmp_path):
    """In memory where that can be had: campaigns wait for the medium thousands of times."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture
def place(folder):
    """A fresh folder in it."""

    def make(name):
        (folder / name).mkdir()
        return folder / name

    return make


def test_under_any_fault_a_fetch_gives_the_admitted_bytes_or_a_miss_with_a_reason(place):
    waits = []
    tally = run(SEED, OPERATIONS, place("campaign"), waits.append)
    assert tally.operations == OPERATIONS
    assert tally.checked_chunks > 500
    # A campaign that never came past these would prove little.
    assert all(tally.faults[harm.__name__] for harm in HARMS), tally.faults
    assert tally.faults["power cuts that came"]
    assert all(tally.hits[tier] for tier in ("device", "host", "disk", "durable")), tally.hits
    assert all(tally.misses.values()), tally.misses
    assert all(tally.moves.values()), tally.moves
    assert tally.names_checked
    assert waits


def test_the_same_seed_gives_the_same_campaign_and_another_seed_another(place):
    digests = [run(seed, 500, place(name)).digest for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert digests[0] == digests[1] != digests[2]


def test_the_oracle_tells_a_flipped_bit_another_chunk_and_another_tenants():
    pool = Pool()
    one, other = pool.chunks["free", "weights-a"][0], pool.chunks["free", "weights-a"][5]
    pool.check(one.id, pool.copy(one.id), "free")
    flipped = pool.copy(one.id)
    flipped.encoded.payload_LN[1, 7] ^= 1
    for found, tenant in ((flipped, "free"), (pool.copy(other.id), "free"), (pool.copy(one.id), "limited")):
        with pytest.raises(WrongBytes):
            pool.check(one.id, found, tenant)
