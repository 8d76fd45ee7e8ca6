from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldkv.camera import trajectory_from_notation
from worldkv.errors import ModelError
from worldkv.memory.policy import PRESETS, MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.lingbot.model import LingBotModel
from worldkv.rollout import rollout
from worldkv.session import Session, open_session
from worldkv.snapshot import restore, snapshot

MEMORY = MemoryPolicy("memory", sink_chunks=1, recent_chunks=1, retrieved_chunks=2, codec="fp32")
TRAJECTORY = trajectory_from_notation("WRSL60_109")


def memory_of(model: LingBotModel) -> ChunkMemory:
    return ChunkMemory([ResidentTier("device", torch.device("cpu"), 2**28, verifies=False)], model.epoch)


def session_of(model: LingBotModel, context, policy: MemoryPolicy = MEMORY, **options: object) -> Session:
    return open_session(model, memory_of(model), policy, TRAJECTORY, context=context, **options)


def frames_of(model: LingBotModel, *sessions: Session, chunks: int | None = None) -> list[list[np.ndarray]]:
    steps = []
    for records in rollout(model, sessions, levels=model.schedule):
        steps.append([record.frames_FHWC for record in records])
        if len(steps) == chunks:
            break
    return steps


def test_a_rollout_with_memory_retrieves_and_shows_every_video_frame_once(make_lingbot, context):
    model = make_lingbot()
    session = session_of(model, context)
    retrieved = []
    shown = []
    for (record,) in rollout(model, [session], levels=model.schedule):
        retrieved.append(record.retrieved)
        shown.append(len(record.frames_FHWC))
    assert len(shown) == len(TRAJECTORY) // 12
    assert shown == [9] + [12] * (len(shown) - 1)
    assert retrieved[-1] != ()


def test_a_restored_session_continues_bit_for_bit(make_lingbot, context):
    model = make_lingbot()
    session = session_of(model, context)
    frames_of(model, session, chunks=4)
    again = restore(snapshot(session), model, memory_of(model))
    expected, found = frames_of(model, session), frames_of(model, again)
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_a_fork_sees_its_own_noise_and_leaves_the_other_alone(make_lingbot, context):
    model = make_lingbot()
    session, undisturbed = session_of(model, context), session_of(model, context)
    frames_of(model, session, chunks=3)
    fork = session.fork(rollout=1)
    other = frames_of(model, fork)
    expected = frames_of(model, undisturbed)[3:]
    found = frames_of(model, session)
    np.testing.assert_array_equal(found[-1][0], expected[-1][0])
    assert not np.array_equal(found[-1][0], other[-1][0])


def test_sessions_of_a_batch_do_not_mix(make_lingbot, context):
    model = make_lingbot()
    other = context | {"prompt": context["prompt"].flip(0)}
    pair = session_of(model, context), session_of(model, other, rollout=1)
    alone = frames_of(model, session_of(model, context), chunks=3)
    for both, one in zip(frames_of(model, *pair, chunks=3), alone, strict=True):
        difference = np.abs(both[0].astype(int) - one[0])
        assert difference.max() <= 1  # matrix products of another batch size add up in another order
        assert np.abs(both[0].astype(int) - both[1]).max() > 1


def test_shown_frames_are_followed_by_frames_of_the_same_clip(make_lingbot, context):
    model = make_lingbot()
    session = session_of(model, context)
    given = np.random.default_rng(0).integers(0, 256, (24, *model.settings.picture, 3), np.uint8)
    records = [one[0] for one in rollout(model, [session], levels=model.schedule, given=[given])]
    assert [record.generated for record in records[:3]] == [False, False, True]
    assert len(records[2].frames_FHWC) == 12


def test_weights_in_half_precision_give_kv_in_half_precision(make_lingbot, context):
    model = make_lingbot(dtype=torch.bfloat16)
    session = session_of(model, context, replace(MEMORY, codec="int8"))
    frames_of(model, session, chunks=4)
    assert session.live[0].k_LTHD.dtype == torch.bfloat16
    assert len(session.stored) == 2


def test_positions_of_a_rebased_window_stay_inside_the_trained_range(make_lingbot, context):
    session = session_of(make_lingbot(), context)
    assert MEMORY.positions == PRESETS["worldkv"].positions == "rebased"
    frames_of(session.model, session)
    _, current = session.slots(session.retrieve())
    assert current + 3 <= session.model.geometry.trained_latent_frames


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": torch.zeros(5, 15)}, r"prompt has shape \[5, 15\], lingbot-tiny takes \[1 to 8, 16\]"),
            ({"prompt": torch.zeros(9, 16)}, r"prompt has shape \[9, 16\]"),
            ({"image": torch.zeros(32, 32, 3, dtype=torch.uint8)}, "32x32 pixels, the model makes 32x48"),
        ],
    )
    def test_a_context_of_another_shape_is_refused(self, make_lingbot: Callable, context, change, message: str):
        with pytest.raises(ModelError, match=message):
            session_of(make_lingbot(), context | change)

    @pytest.mark.parametrize("missing", ["prompt", "image"])
    def test_a_context_without_a_part_is_refused(self, make_lingbot: Callable, context, missing: str):
        rest = {name: part for name, part in context.items() if name != missing}
        with pytest.raises(ModelError, match=missing):
            session_of(make_lingbot(), rest)

    def test_poses_alone_do_not_move_weights_of_the_act_kind(self, make_lingbot: Callable, context):
        model = make_lingbot("act")
        assert model.control == "act"
        poses_only = replace(TRAJECTORY, actions=None)
        session = open_session(model, memory_of(model), MEMORY, poses_only, context=context)
        with pytest.raises(ModelError, match="actions"):
            frames_of(model, session, chunks=1)

    def test_an_image_without_a_vae_is_refused(self, make_lingbot: Callable, context):
        with pytest.raises(ModelError, match="without its VAE"):
            session_of(make_lingbot(vae=False), context)
