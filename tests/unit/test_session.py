from dataclasses import replace

import numpy as np
import pytest
import torch

from worldkv.errors import ChunkNotFound, ConfigError, ModelError, TrajectoryError
from worldkv.memory.compression import Pruning
from worldkv.memory.policy import PRESETS, MemoryPolicy
from worldkv.session import Session, open_session

WORLDKV = PRESETS["worldkv"]
LOSSLESS = MemoryPolicy("lossless", retrieved_chunks=16, positions="original", codec="fp32")


def live_indices(session) -> list[int]:
    return [live.index for live in session.live]


def push_blank(session) -> int | None:
    """Push a chunk of zeros; returns the index of the one that left the window."""
    geometry = session.model.geometry
    kv = torch.zeros(2, geometry.layers, geometry.tokens_per_chunk, geometry.heads, geometry.head_dim)
    left = session.push(*kv)
    return None if left is None else left.index


def test_a_trajectory_shorter_than_a_chunk_is_refused_by_name(tiny, make_walk, make_memory):
    whole = make_walk(1)
    short = replace(whole, c2w_F44=whole.c2w_F44[:2], intrinsics_F4=whole.intrinsics_F4[:2])
    with pytest.raises(TrajectoryError, match=r"rooms-0-wander-3: 2 poses, but one chunk of rooms takes 3"):
        open_session(tiny.model, make_memory(1000), WORLDKV, short)


def test_a_memory_of_another_model_is_refused_with_both_epochs(tiny, make_memory, make_walk):
    memory = make_memory(1000)
    memory.set_epoch("another-model")
    with pytest.raises(
        ModelError, match="epoch 'weights-a': the memory is of epoch 'another-model'; give each model a"
    ):
        open_session(tiny.model, memory, WORLDKV, make_walk(12))


def test_poses_beyond_the_last_whole_chunk_are_left_out(tiny, make_walk, make_memory):
    whole = make_walk(3)
    ragged = replace(whole, c2w_F44=whole.c2w_F44[:8], intrinsics_F4=whole.intrinsics_F4[:8])
    session = open_session(tiny.model, make_memory(1000), WORLDKV, ragged)
    assert (session.chunks, session.finished) == (2, False)


def test_each_chunk_sees_its_own_part_of_the_trajectory(tiny):
    session = tiny.open("full", 3)
    seen = []
    while not session.finished:
        seen.append(session.view())
        push_blank(session)
    np.testing.assert_array_equal(
        np.concatenate([view.c2w_F44 for view in seen]), session.trajectory.c2w_F44.astype(np.float32)
    )
    assert all(len(view.intrinsics_F4) == 3 for view in seen)


@pytest.mark.parametrize(
    ("sink", "recent", "window", "left"),
    [
        (1, 2, [0, 4, 5], [None, None, None, 1, 2, 3]),
        (2, 1, [0, 1, 5], [None, None, None, 2, 3, 4]),
        (0, 2, [4, 5], [None, None, 0, 1, 2, 3]),
        (1, 0, [0], [None, 1, 2, 3, 4, 5]),
        (1, None, [0, 1, 2, 3, 4, 5], [None] * 6),
    ],
)
def test_the_oldest_chunk_that_is_no_sink_leaves_the_window(tiny, sink, recent, window, left):
    session = tiny.open(MemoryPolicy("p", sink_chunks=sink, recent_chunks=recent), 6)
    assert [push_blank(session) for _ in range(6)] == left
    assert live_indices(session) == window


def test_the_window_lists_sink_then_retrieved_then_recent(tiny):
    session = tiny.open(LOSSLESS, 8)
    for _ in range(7):
        tiny.step([session])
    found = session.retrieve()
    slots, current = session.slots(found)
    assert [chunk.index for chunk in found.chunks] == [1, 2, 3, 4]
    assert [slot.first_frame for slot in slots] == [0, 3, 6, 9, 12, 15, 18]
    assert current == 21
    assert len({slot.key for slot in slots}) == 7


def test_rebased_positions_are_contiguous(tiny):
    session = tiny.open(replace(WORLDKV, retrieved_chunks=2), 10)
    for _ in range(9):
        tiny.step([session])
    slots, current = session.slots(session.retrieve())
    assert [slot.first_frame for slot in slots] == [0, 3, 6, 9, 12]
    assert current == 15


def test_a_rebased_window_beyond_the_trained_clip_is_refused(tiny):
    session = tiny.open(replace(WORLDKV, retrieved_chunks=16), 24)
    with pytest.raises(ConfigError, match="trained_latent_frames=48"):
        tiny.finish(session)


def test_sink_and_recent_chunks_are_never_retrieved(tiny):
    session = tiny.open(replace(LOSSLESS, sink_chunks=2, recent_chunks=3), 12)
    for records in iter(lambda: tiny.step([session]) if not session.finished else None, None):
        (record,) = records
        assert list(record.retrieved) == list(range(2, max(2, record.chunk - 3)))


def test_at_most_k_chunks_are_retrieved_oldest_first(tiny):
    records = tiny.finish(tiny.open(replace(WORLDKV, retrieved_chunks=3), 12))[0]
    for record in records:
        assert len(record.retrieved) == min(3, max(0, record.chunk - 3))
        assert list(record.retrieved) == sorted(record.retrieved)


def test_an_exact_return_retrieves_the_chunk_that_saw_it(tiny, make_walk, make_memory):
    out_and_back = make_walk(12, kind="back")
    session = open_session(tiny.model, make_memory(2**30), replace(WORLDKV, retrieved_chunks=1), out_and_back)
    records = tiny.finish(session)[0]
    # Chunk c of the way back shows what chunk 11 - c showed; sink and recent chunks are in the window anyway.
    assert [record.retrieved for record in records[8:11]] == [(3,), (2,), (1,)]


def test_parity_leaves_out_the_chunk_just_before_the_recent_ones(tiny):
    records = tiny.finish(tiny.open(replace(LOSSLESS, parity=True), 8))[0]
    assert [record.retrieved for record in records[3:6]] == [(), (), (1,)]


@pytest.mark.parametrize("ranking", ["pose", "overlap", "yaw"])
def test_every_ranking_finds_the_view_it_comes_back_to(tiny, make_memory, make_walk, ranking):
    policy = replace(WORLDKV, ranking=ranking, retrieved_chunks=1)
    session = open_session(tiny.model, make_memory(2**30), policy, make_walk(12, kind="back"))
    assert [record.retrieved for record in tiny.finish(session)[0][8:11]] == [(3,), (2,), (1,)]


def test_random_ranking_is_the_same_in_every_run_and_differs_by_rollout(tiny):
    policy = replace(WORLDKV, ranking="random", retrieved_chunks=2)
    first, again, other = (
        [record.retrieved for record in tiny.finish(tiny.open(policy, 12, rollout=rollout))[0]] for rollout in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_policy_without_retrieval_stores_nothing(tiny):
    session = tiny.open("sliding", 8)
    tiny.finish(session)
    assert (session.stored, session.stored_bytes) == ({}, 0)
    assert session.memory.stats().admitted == 0
    assert session.memory.stats().lookups == 0


def test_what_leaves_the_window_is_stored_whole_and_counted(tiny):
    session = tiny.open(LOSSLESS, 8)
    tiny.finish(session)
    assert list(session.stored) == [1, 2, 3, 4, 5]
    assert session.stored_bytes == session.memory.tiers[0].used_bytes
    assert session.stored_bytes == session.memory.stats().admitted_bytes


def test_live_bytes_are_those_of_sink_and_recent(tiny):
    session = tiny.open("sliding", 8)
    tiny.finish(session)
    assert session.live_bytes == tiny.model.geometry.kv_bytes(3 * 12, torch.float32)


@pytest.mark.parametrize("rule", ["centroid", "nearest"])
def test_pruned_chunks_hold_the_kept_tokens_bit_for_bit(tiny, rule):
    pruning = Pruning(keep_ratio=0.5, rule=rule, joint=True)
    full, pruned = tiny.open("full", 5), tiny.open(replace(LOSSLESS, pruning=pruning), 5)
    tiny.finish(full)
    tiny.finish(pruned)
    (chunk,) = pruned.memory.fetch([pruned.stored[1]])
    k, v = (torch.empty(2, chunk.tokens, 2, 24) for _ in range(2))
    chunk.load(k, v)
    frame, row, column = torch.from_numpy(chunk.token_ids_T3).long().T
    kept = frame * 4 + row * 2 + column
    assert chunk.tokens == 4 + 2 + 2
    assert torch.equal(k, full.live[1].k_LTHD[:, kept])
    assert torch.equal(v, full.live[1].v_LTHD[:, kept])


def test_a_fork_shares_all_chunks_and_goes_with_noise_of_its_own(tiny):
    parent = tiny.open(LOSSLESS, 10)
    for _ in range(6):
        tiny.step([parent])
    used = parent.memory.tiers[0].used_bytes
    fork = parent.fork(rollout=1)
    assert fork.serial != parent.serial
    assert parent.memory.tiers[0].used_bytes == used
    assert fork.stored == parent.stored
    shared = [live.k_LTHD for live in fork.live]
    mine, theirs = tiny.step([parent])[0], tiny.step([fork])[0]
    assert mine.retrieved == theirs.retrieved
    assert not np.array_equal(mine.frames_FHWC, theirs.frames_FHWC)
    assert all(torch.equal(a, live.k_LTHD) for a, live in zip(shared[2:], fork.live[1:], strict=False))


def test_a_fork_with_the_parents_rollout_number_repeats_the_parent(tiny):
    parent = tiny.open(WORLDKV, 10)
    for _ in range(6):
        tiny.step([parent])
    fork = parent.fork(rollout=parent.rollout)
    for mine, theirs in zip(tiny.finish(parent)[0], tiny.finish(fork)[0], strict=True):
        np.testing.assert_array_equal(mine.frames_FHWC, theirs.frames_FHWC)
    assert fork.stored == parent.stored


def test_a_fork_leaves_its_parent_unaffected(tiny):
    alone = tiny.finish(tiny.open(WORLDKV, 10))[0]
    parent = tiny.open(WORLDKV, 10)
    records = [tiny.step([parent])[0] for _ in range(6)]
    fork = parent.fork(rollout=1)
    tiny.finish(fork)
    fork.state.tensors["first_c2w"].zero_()
    fork.close()
    assert len(parent.index) == len(parent.stored) == 3
    records += tiny.finish(parent)[0]
    for mine, expected in zip(records, alone, strict=True):
        np.testing.assert_array_equal(mine.frames_FHWC, expected.frames_FHWC)
        assert mine.retrieved == expected.retrieved


def test_closing_all_sessions_leaves_an_empty_memory(tiny, make_memory):
    memory = make_memory(2**20, 2**20)
    first, second = tiny.open(WORLDKV, 8, memory=memory), tiny.open(WORLDKV, 8, memory=memory, world=1)
    tiny.finish(first, second)
    forks = [first.fork(rollout=1), second.fork(rollout=2)]
    for session in (first, *forks):
        session.close()
        session.close()
        assert memory.check_integrity() == []
    assert memory.tiers[0].used_bytes > 0
    second.close()
    assert [(len(tier), tier.used_bytes) for tier in memory.tiers] == [(0, 0), (0, 0)]


def test_the_last_holder_keeps_a_shared_chunk_alive(tiny):
    parent = tiny.open(LOSSLESS, 8)
    for _ in range(7):
        tiny.step([parent])
    fork = parent.fork(rollout=1)
    parent.close()
    (record,) = tiny.step([fork])
    assert (record.retrieved, record.missed) == ((1, 2, 3, 4), 0)


def test_chunks_that_no_tier_could_keep_are_gone_without_and_counted(tiny, make_memory):
    plenty = tiny.open(LOSSLESS, 10)
    tiny.finish(plenty)
    one_chunk = plenty.stored_bytes // len(plenty.stored)
    session = tiny.open(LOSSLESS, 10, memory=make_memory(2 * one_chunk + 1))
    records = tiny.finish(session)[0]
    assert [record.retrieved for record in records[4:]] == [(1,), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    # Each dropped chunk is missed once; afterwards the next nearest takes its place.
    assert [record.missed for record in records[4:]] == [0, 0, 1, 1, 1, 1]
    stats = session.memory.stats()
    assert stats.misses["evicted"] == sum(record.missed for record in records) == 4
    assert stats.hits == sum(len(record.retrieved) for record in records)


def test_a_session_without_any_memory_to_speak_of_equals_a_sliding_window(tiny, make_memory):
    sliding = tiny.finish(tiny.open("sliding", 8))[0]
    forgetful = tiny.finish(tiny.open(WORLDKV, 8, memory=make_memory(1)))[0]
    for a, b in zip(sliding, forgetful, strict=True):
        np.testing.assert_array_equal(a.frames_FHWC, b.frames_FHWC)
    assert [record.missed for record in forgetful[4:]] == [1, 1, 1, 1]


def test_a_closed_session_cannot_be_forked_from_memory_it_let_go(tiny):
    session = tiny.open(LOSSLESS, 8)
    tiny.finish(session)
    session.close()
    with pytest.raises(ChunkNotFound):
        session.fork(rollout=1)


def test_looking_ahead_changes_where_chunks_are_found_and_nothing_else(tiny, make_memory, make_walk, monkeypatch):
    walk, policy = make_walk(16, kind="back"), replace(WORLDKV, retrieved_chunks=2)
    whole = tiny.open(policy, chunks=16)
    tiny.finish(whole)
    size = whole.stored_bytes // len(whole.stored)
    made, memories = [], []
    for looks_ahead in (True, False):
        if not looks_ahead:
            monkeypatch.setattr(Session, "look_ahead", lambda self: None)
        memories.append(make_memory(4 * size, 40 * size))
        session = open_session(tiny.model, memories[-1], policy, walk)
        made.append(tiny.finish(session)[0])
        session.close()
        assert memories[-1].lying() == [[], []]
    for one, other in zip(*made, strict=True):
        assert one.retrieved == other.retrieved
        assert np.array_equal(one.frames_FHWC, other.frames_FHWC)
    ahead, behind = (memory.stats() for memory in memories)
    assert ahead.tiers[0].hits > behind.tiers[0].hits
    assert ahead.prefetch.useful > behind.prefetch.issued == 0
