"""Batches as bytes: whole and exact, or refused."""

import dataclasses

import numpy as np
import pytest

from cluster.parcel import (
    Finished,
    pack,
    pack_checkpoint,
    pack_finished,
    unpack,
    unpack_checkpoint,
    unpack_finished,
)
from worldkv.dataset import Episode
from worldkv.errors import JobError
from worldkv.rollout import ChunkRecord, StageSeconds
from worldkv.runs.batch import Took


def frames(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 4, 6, 3), np.uint8)


def episode(seed: int) -> Episode:
    numbers = np.random.default_rng(seed)
    return Episode(
        frames_FHWC=frames(seed),
        c2w_F44=numbers.random((3, 4, 4), np.float32),
        intrinsics_F4=numbers.random((3, 4), np.float32),
        action_FA=numbers.random((3, 2), np.float32),
        action_names=("right", "forward"),
        task="walk",
        fps=12,
        retrieved=((), (0, 2), (1,)),
        videos={"observation.images.truth": frames(seed + 1)},
        scalars={"psnr": numbers.random(3, np.float32)},
        metadata={"world": "rooms-3", "seed": 3, "share": 0.5},
    )


def assert_equal(one: object, other: object) -> None:
    for field in dataclasses.fields(one):
        here, there = getattr(one, field.name), getattr(other, field.name)
        if isinstance(here, dict):
            assert list(here) == list(there)
            for name in here:
                np.testing.assert_array_equal(here[name], there[name])
        elif isinstance(here, np.ndarray):
            assert here.dtype == there.dtype
            np.testing.assert_array_equal(here, there)
        else:
            assert here == there


def test_a_finished_batch_comes_back_exactly():
    took = Took(6, 0.25, StageSeconds({"denoise": 0.2}))
    found = unpack_finished(pack_finished(Finished("weights-a", (episode(0), episode(7)), took, "a line\n")))
    assert (found.epoch, found.took, found.trace) == ("weights-a", took, "a line\n")
    assert_equal(episode(0), found.episodes[0])
    assert_equal(episode(7), found.episodes[1])


def test_a_checkpoint_comes_back_exactly():
    records = [[ChunkRecord(i, frames(i), i > 0, (0,) * i, i, 64, 128, 256)] for i in range(3)]
    found = unpack_checkpoint(pack_checkpoint("weights-a", [b"session"], records))
    assert (found.epoch, found.sessions) == ("weights-a", (b"session",))
    for (here,), (there,) in zip(records, found.records, strict=True):
        assert_equal(here, there)


def test_whatever_byte_is_damaged_is_refused():
    whole = pack({"a": 1}, {"x": np.arange(5)})
    assert unpack(whole)[0] == {"a": 1}
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(JobError):
            unpack(bytes(damaged))
    for length in range(len(whole)):
        with pytest.raises(JobError):
            unpack(whole[:length])
