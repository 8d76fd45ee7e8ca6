from dataclasses import replace

import numpy as np
import pytest
import torch

from worldkv.camera import Trajectory
from worldkv.errors import ModelError
from worldkv.memory.compression import Pruning
from worldkv.memory.crossing import Crossing
from worldkv.memory.mover import VerifyingMover
from worldkv.memory.policy import PRESETS, MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.memory.tiers.slab import GRAIN_BYTES
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.rollout import ChunkRecord, StageSeconds
from worldkv.session import open_session
from worldkv.window.buffer import WindowBuffer

CPU = torch.device("cpu")
LOSSLESS = MemoryPolicy("lossless", retrieved_chunks=16, positions="original", codec="fp32")
PRUNED = replace(PRESETS["worldkv"], name="pruned", pruning=Pruning(0.5, joint=True))
# Matrix products of another batch size, or of another row of a batch, add up in another order.
ACROSS_BATCHES = 1e-5
# Of the pixels, those so near the edge between two values that such rounding moves them to the other one.
PIXELS_ON_EDGE_RATIO = 1e-3


def assert_same_video(a: list[ChunkRecord], b: list[ChunkRecord]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.frames_FHWC, other.frames_FHWC)


def assert_same_kv(a, b, *, tolerance: float = 0.0) -> None:
    """Live chunks of `b` are those of `a` with the same index."""
    ours = {live.index: live for live in a.live}
    assert b.live
    for live in b.live:
        for x, y in ((ours[live.index].k_LTHD, live.k_LTHD), (ours[live.index].v_LTHD, live.v_LTHD)):
            torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def assert_same_but_for_rounding(a, records_a: list[ChunkRecord], b, records_b: list[ChunkRecord]) -> None:
    """The same chunks retrieved, the same live KV and the same video, as far as two batches can agree."""
    assert [record.retrieved for record in records_a] == [record.retrieved for record in records_b]
    assert_same_kv(a, b, tolerance=ACROSS_BATCHES)
    video_a, video_b = (np.stack([r.frames_FHWC for r in records]).astype(int) for records in (records_a, records_b))
    difference = np.abs(video_a - video_b)
    assert difference.max() <= 1
    assert difference.mean() <= PIXELS_ON_EDGE_RATIO


@pytest.mark.parametrize("policy", ["sliding", "worldkv"])
def test_until_something_is_evicted_every_policy_equals_full_kv_bit_for_bit(tiny, policy):
    full, other = tiny.open("full", 4), tiny.open(policy, 4)
    assert_same_video(*tiny.finish(full), *tiny.finish(other))
    assert_same_kv(full, other)


def test_a_sliding_window_forgets_once_something_is_evicted(tiny):
    full, sliding = (tiny.finish(tiny.open(policy, 5))[0] for policy in ("full", "sliding"))
    assert not np.array_equal(full[4].frames_FHWC, sliding[4].frames_FHWC)


def test_an_unbounded_lossless_memory_equals_full_kv_bit_for_bit(tiny):
    full, lossless = tiny.open("full", 12), tiny.open(LOSSLESS, 12)
    expected, records = tiny.finish(full)[0], tiny.finish(lossless)[0]
    assert records[-1].retrieved == (1, 2, 3, 4, 5, 6, 7, 8)
    assert_same_video(records, expected)
    assert_same_kv(full, lossless)


def test_lossless_memory_equals_full_kv_while_chunks_move_between_tiers(tiny, make_memory):
    full, lossless = tiny.open("full", 12), tiny.open(LOSSLESS, 12)
    tiny.finish(lossless)
    one_chunk = lossless.stored_bytes // len(lossless.stored)
    tiered = tiny.open(LOSSLESS, 12, memory=make_memory(3 * one_chunk, 2**20))
    assert_same_video(tiny.finish(full)[0], tiny.finish(tiered)[0])
    assert tiered.memory.stats().promoted > 0


@pytest.mark.parametrize("together", [1, 2])
def test_slabs_give_the_same_video_as_resident_tiers_of_the_same_capacity(tiny, tmp_path, together):
    """Bit for bit, and with the same chunks in the same places, while both tiers are full and chunks are dropped."""
    policy = replace(PRESETS["worldkv"], name="exact", codec="fp32", retrieved_chunks=3)
    probe = tiny.open(policy, 12)
    tiny.finish(probe)
    size = GRAIN_BYTES * -(-probe.stored_bytes // len(probe.stored) // GRAIN_BYTES)
    capacities = [3 * size, 3 * size]  # of either kind of tier: room for three chunks
    slabs = DeviceTier.open("tier0", CPU, capacities[0]), HostTier.open("tier1", capacities[1])
    residents = [ResidentTier(f"tier{i}", CPU, capacity) for i, capacity in enumerate(capacities)]
    crossing = Crossing.open(CPU, *slabs)
    memories = (
        ChunkMemory(residents, tiny.model.epoch),
        ChunkMemory(slabs, tiny.model.epoch),
        ChunkMemory(slabs, tiny.model.epoch, mover=VerifyingMover(crossing)),
    )
    seen = []
    for memory in memories:
        sessions = [tiny.open(policy, 12, world=i, rollout=i, memory=memory) for i in range(together)]
        records = tiny.finish(*sessions)
        stats = memory.stats()
        assert memory.check_integrity([session.stored for session in sessions]) == []
        seen.append((records, memory.lying(), stats.dropped, stats.promoted, stats.hits, stats.misses))
        for session in sessions:
            session.close()
        assert [tier.used_bytes for tier in memory.tiers] == [0, 0]
    assert crossing.engine.stats().up.done > 0
    memories[-1].close()
    first = seen[0]
    assert min(first[2:5]) > 0
    for other in seen[1:]:
        assert other[1:] == first[1:]
        for ours, theirs in zip(other[0], first[0], strict=True):
            assert_same_video(ours, theirs)


def test_a_rollout_that_fails_leaves_no_chunk_pinned(tiny, make_memory, monkeypatch):
    session = tiny.open(LOSSLESS, 8, memory=make_memory(2**24))
    for _ in range(6):
        tiny.step([session])
    monkeypatch.setattr(type(tiny.model), "condition", lambda *_: _fail())
    with pytest.raises(ModelError, match="on purpose"):
        tiny.step([session])
    assert session.memory.stats().tiers[0].pinned_bytes == 0


def _fail():
    raise ModelError("on purpose")


def test_int4_memory_stays_near_full_kv_and_is_not_it(tiny):
    full, int4 = tiny.open("full", 12), tiny.open(replace(LOSSLESS, codec="int4"), 12)
    expected, records = tiny.finish(full)[0], tiny.finish(int4)[0]
    difference = records[4].frames_FHWC.astype(float) - expected[4].frames_FHWC
    assert 0 < np.abs(difference).mean() < 4


@pytest.mark.parametrize("policy", [*PRESETS.values(), PRUNED], ids=lambda policy: policy.name)
def test_a_batch_equals_each_session_alone(tiny, policy):
    batch = [tiny.open(policy, 10, world=world, rollout=world) for world in range(3)]
    together = tiny.finish(*batch)
    for world, session in enumerate(batch):
        alone = tiny.open(policy, 10, world=world, rollout=world)
        assert_same_but_for_rounding(alone, tiny.finish(alone)[0], session, together[world])


def test_the_order_of_a_batch_does_not_matter(tiny):
    forwards, backwards = ([tiny.open("worldkv", 6, world=w, rollout=w) for w in range(3)] for _ in range(2))
    made_forwards, made_backwards = tiny.finish(*forwards), tiny.finish(*backwards[::-1])[::-1]
    for world in range(3):
        assert_same_but_for_rounding(forwards[world], made_forwards[world], backwards[world], made_backwards[world])


def test_a_rollout_repeats_itself_bit_for_bit(tiny):
    first, again = tiny.open("worldkv", 8), tiny.open("worldkv", 8)
    assert_same_video(*tiny.finish(first), *tiny.finish(again))
    assert_same_kv(first, again)


@pytest.mark.parametrize("counter", ["seed", "rollout"])
def test_another_seed_or_rollout_is_another_video(tiny, counter):
    first, other = tiny.open("sliding", 1), tiny.open("sliding", 1, **{counter: 7})
    assert not np.array_equal(tiny.step([first])[0].frames_FHWC, tiny.step([other])[0].frames_FHWC)


def test_a_rollout_may_pause_after_any_chunk(tiny):
    whole, paused = tiny.open("worldkv", 8), tiny.open("worldkv", 8)
    expected = tiny.finish(whole)[0]
    assert_same_video(expected, [tiny.step([paused])[0] for _ in range(8)])


def test_a_miss_in_one_session_does_not_disturb_its_batch(tiny, make_memory):
    alone = tiny.open(LOSSLESS, 10, world=1, rollout=1)
    expected = tiny.finish(alone)[0]
    one_chunk = alone.stored_bytes // len(alone.stored)
    poor = tiny.open(LOSSLESS, 10, memory=make_memory(one_chunk))
    rich, other = (tiny.open(LOSSLESS, 10, world=1, rollout=rollout) for rollout in (1, 2))
    records_rich, records_poor, records_other = tiny.finish(rich, poor, other)
    assert sum(record.missed for record in records_poor) > 0
    assert sum(record.missed for record in records_other) == 0
    assert sum(record.missed for record in records_rich) == 0
    assert [record.window_tokens for record in records_rich] == [record.window_tokens for record in expected]
    assert records_poor[-1].window_tokens < records_rich[-1].window_tokens
    assert_same_kv(alone, rich, tolerance=ACROSS_BATCHES)


def test_given_frames_are_shown_not_made(tiny):
    session = tiny.open("full", 4)
    shown, _ = Scene(0, 20).truth(session.trajectory)
    records = tiny.finish(session, given=[shown[:6]])[0]
    assert [record.generated for record in records] == [False, False, True, True]
    np.testing.assert_array_equal(np.concatenate([r.frames_FHWC for r in records[:2]]), shown[:6])
    assert not np.array_equal(records[2].frames_FHWC, shown[6:9])


def test_given_frames_are_remembered(tiny):
    shown, _ = Scene(0, 20).truth(tiny.open("full", 4).trajectory)
    made_after = []
    for history in (shown[:6], 255 - shown[:6]):
        session = tiny.open("full", 4)
        made_after.append(tiny.finish(session, given=[history])[0][2].frames_FHWC)
    assert not np.array_equal(*made_after)


def test_each_session_of_a_batch_is_shown_its_own_frames(tiny):
    worlds = range(2)
    batch, alone = ([tiny.open("full", 3, world=w, rollout=w) for w in worlds] for _ in range(2))
    shown = [Scene(w, 20).truth(batch[w].trajectory)[0][:6] for w in worlds]
    together = tiny.finish(*batch, given=shown)
    for w in worlds:
        np.testing.assert_array_equal(np.concatenate([r.frames_FHWC for r in together[w][:2]]), shown[w])
        tiny.finish(alone[w], given=[shown[w]])
        assert_same_kv(alone[w], batch[w], tolerance=ACROSS_BATCHES)


def test_what_comes_later_never_changes_an_earlier_chunk(tiny):
    shown, _ = Scene(0, 20).truth(tiny.open("full", 4).trajectory)
    changed = shown.copy()
    changed[9:] = 255 - changed[9:]
    first, second = tiny.open("full", 4), tiny.open("full", 4)
    tiny.finish(first, given=[shown])
    tiny.finish(second, given=[changed])
    for a, b in zip(first.live[:3], second.live[:3], strict=True):
        assert torch.equal(a.k_LTHD, b.k_LTHD)
        assert torch.equal(a.v_LTHD, b.v_LTHD)
    assert not torch.equal(first.live[3].v_LTHD, second.live[3].v_LTHD)


def test_records_tell_the_window_and_what_it_holds(tiny):
    session = tiny.open("worldkv", 10)
    records = tiny.finish(session)[0]
    assert [record.chunk for record in records] == list(range(10))
    for record in records:
        live_before = min(record.chunk, 3)
        assert record.window_tokens == 12 * (live_before + len(record.retrieved) + 1)
        assert record.frames_FHWC.shape == (3, 20, 20, 3)
        assert record.frames_FHWC.dtype == np.uint8
    assert records[-1].live_bytes == session.live_bytes
    assert [record.stored_bytes for record in records] == sorted(record.stored_bytes for record in records)
    assert records[-1].stored_bytes == session.stored_bytes > 0


def test_every_stage_is_on_the_clock(tiny):
    clock = StageSeconds()
    tiny.finish(tiny.open("worldkv", 5), clock=clock)
    stages = {"retrieve", "assemble", "look ahead", "denoise", "clean pass", "compress and admit", "decode"}
    assert set(clock.seconds) == stages
    assert all(seconds > 0 for seconds in clock.seconds.values())


def test_sessions_out_of_step_are_refused(tiny):
    ahead, behind = tiny.open("sliding", 4), tiny.open("sliding", 4)
    tiny.step([ahead])
    with pytest.raises(ValueError, match="got 1 of 4, 0 of 4"):
        tiny.step([ahead, behind])
    with pytest.raises(ValueError, match="got 0 of 4, 0 of 5"):
        tiny.step([behind, tiny.open("sliding", 5)])


def test_a_finished_session_makes_nothing_more(tiny):
    session = tiny.open("sliding", 2)
    tiny.finish(session)
    assert tiny.finish(session) == [[]]


def test_a_pose_of_the_far_future_has_no_say(tiny, make_walk, make_memory):
    walk = make_walk(4)
    bent = walk.c2w_F44.copy()
    bent[9:] = bent[:1]
    bent_walk = Trajectory(c2w_F44=bent, intrinsics_F4=walk.intrinsics_F4)
    sessions = [open_session(tiny.model, make_memory(2**20), PRESETS["full"], t) for t in (walk, bent_walk)]
    first, second = (tiny.finish(session)[0] for session in sessions)
    assert_same_video(first[:3], second[:3])
    assert not np.array_equal(first[3].frames_FHWC, second[3].frames_FHWC)


def test_the_model_thinks_in_coordinates_of_the_first_pose(tiny, make_memory):
    scene = Scene(0, 20)
    walk = scene.trajectory("wander", 9, Pace(17.0, 0.1))
    move = np.eye(4)
    move[0, 0] = move[2, 2] = 0.0
    move[0, 2], move[2, 0] = 1.0, -1.0
    move[:3, 3] = (3.0, 0.0, -2.0)
    moved = Trajectory(c2w_F44=move @ walk.c2w_F44, intrinsics_F4=walk.intrinsics_F4)
    sessions = [open_session(tiny.model, make_memory(2**20), PRESETS["full"], t) for t in (walk, moved)]
    for session in sessions:
        tiny.finish(session)
    assert_same_kv(*sessions, tolerance=1e-3)


@pytest.mark.parametrize(("policy", "latent_frames"), [("sliding", 12), ("worldkv", 24), ("full", 48)])
def test_the_window_buffer_is_as_long_as_the_policy_needs_and_no_longer(tiny, monkeypatch, policy, latent_frames):
    made = []

    class Watched(WindowBuffer):
        def __init__(self, *of: object, **options: object) -> None:
            super().__init__(*of, **options)
            made.append(self)

    monkeypatch.setattr("worldkv.rollout.WindowBuffer", Watched)
    tiny.finish(tiny.open(policy, 12))
    (buffer,) = made
    geometry = tiny.model.geometry
    assert buffer.nbytes == geometry.kv_bytes(latent_frames * geometry.tokens_per_latent_frame, buffer.dtype)
