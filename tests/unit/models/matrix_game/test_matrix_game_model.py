import numpy as np
import pytest
import torch
from torch import Tensor

from worldkv.camera import Action, PictureSize, Trajectory, parse_action
from worldkv.errors import ModelError, TrajectoryError
from worldkv.memory.policy import MemoryPolicy, parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.matrix_game.model import MatrixGameModel
from worldkv.models.matrix_game.schedule import matrix_game_schedule
from worldkv.models.matrix_game.vocabulary import VOCABULARIES, trajectory_of
from worldkv.models.wan.model import WanSettings
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.pictures import Pictures
from worldkv.models.wan.random_weights import randomise
from worldkv.models.wan.shape import ActionShape, ImageShape, MouseShape, WanShape
from worldkv.models.wan.vae import VAEShape, WanVAE
from worldkv.rollout import rollout
from worldkv.session import Session, open_session
from worldkv.snapshot import restore, snapshot

SIZE = PictureSize(32, 48)
TOKENS, TOKEN_WIDTH = 5, 16
MEMORY = MemoryPolicy("memory", sink_chunks=1, recent_chunks=1, retrieved_chunks=2, codec="fp32", ranking="yaw")


def matrix_game(mode: str = "universal", *, reach: int = 6) -> MatrixGameModel:
    vocabulary = VOCABULARIES[mode]
    actions = ActionShape(
        layers=(0,),
        heads=2,
        keys=len(vocabulary.keys),
        embedding=8,
        keyboard_width=32,
        mouse=MouseShape(2, 32) if vocabulary.mouse else None,
        window=3,
        rows_per_latent=4,
        time_pairs=4,
        theta=256.0,
        reach=reach,
    )
    shape = WanShape(48, 64, 2, 2, 16, 36, 16, ImageShape(TOKEN_WIDTH), actions=actions)
    network, vae = WanNetwork(shape).requires_grad_(False), WanVAE(VAEShape(width=2)).requires_grad_(False)
    randomise(vae, 0)
    settings = WanSettings(f"matrix-game-{mode}", SIZE, 3, 15, matrix_game_schedule((1000, 500), 5.0))
    return MatrixGameModel(network, settings, randomise(network, 0), Pictures(vae, SIZE), vocabulary)


@pytest.fixture(scope="module")
def model() -> MatrixGameModel:
    return matrix_game()


@pytest.fixture(scope="module")
def context() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    image_latents = torch.randn(16, 4, SIZE.height // 8, SIZE.width // 8, generator=draw)
    return {"image_tokens": torch.randn(TOKENS, TOKEN_WIDTH, generator=draw), "image_latents": image_latents}


def walk(*words: str) -> Trajectory:
    """Each action held for a chunk of 12 video frames."""
    return trajectory_of([parse_action(word) for word in words for _ in range(12)])


def session_of(model: MatrixGameModel, context, trajectory: Trajectory, policy: MemoryPolicy = MEMORY) -> Session:
    memory = ChunkMemory([ResidentTier("device", torch.device("cpu"), 2**28, verifies=False)], model.epoch)
    return open_session(model, memory, policy, trajectory, context=context)


def play(*sessions: Session, chunks: int | None = None) -> list[list]:
    steps = []
    for records in rollout(sessions[0].model, sessions, levels=sessions[0].model.schedule):
        steps.append(records)
        if len(steps) == chunks:
            break
    return steps


def test_turning_back_retrieves_what_was_seen_there(model, context):
    # Six chunks to the right, three back: at the end the camera looks where chunk 3 began.
    session = session_of(model, context, walk(*["R"] * 6, *["L"] * 3))
    last = play(session)[-1][0]
    assert 3 in last.retrieved
    assert last.window_tokens == 5 * model.geometry.tokens_per_chunk


def test_a_restored_session_continues_bit_for_bit_with_all_its_caches(model, context):
    session = session_of(model, context, walk("W", "WR", "R", "S", "A", "L"))
    play(session, chunks=4)
    memory = ChunkMemory([ResidentTier("device", torch.device("cpu"), 2**28, verifies=False)], model.epoch)
    again = restore(snapshot(session), model, memory)
    assert {"mouse_k/0", "keyboard_v/0", "action_rows"} <= again.state.tensors.keys()
    for (expected,), (found,) in zip(play(session), play(again), strict=True):
        np.testing.assert_array_equal(found.frames_FHWC, expected.frames_FHWC)


def test_sessions_of_a_batch_do_not_mix(model, context):
    pair = session_of(model, context, walk("W", "R", "W")), session_of(model, context, walk("S", "L", "A"))
    alone = play(session_of(model, context, walk("W", "R", "W")))
    for (both, other), (one,) in zip(play(*pair), alone, strict=True):
        assert np.abs(both.frames_FHWC.astype(int) - one.frames_FHWC).max() <= 1
        assert np.abs(both.frames_FHWC.astype(int) - other.frames_FHWC).max() > 1


@pytest.mark.parametrize(("reach", "kept"), [(6, 3), (4, 1), (3, 0)])
def test_action_caches_keep_what_the_next_chunk_sees(context, reach: int, kept: int):
    model = matrix_game(reach=reach)
    session = session_of(model, context, walk("W", "R", "S"))
    play(session)
    state = session.state.tensors
    assert state["keyboard_k/0"].shape[-3] == kept
    assert state["mouse_v/0"].shape[-3] == kept


def test_the_published_window_of_gta_driving_holds_one_latent_frame_of_the_past(context):
    policy = parse_policy("sliding/sink_chunks=0/recent_chunks=1/live_latent_frames=4/positions=original")
    model = matrix_game("gta_drive", reach=4)
    records = play(session_of(model, context, walk("W", "R", "L"), policy))
    per_frame = model.geometry.tokens_per_latent_frame
    assert [record.window_tokens for (record,) in records] == [3 * per_frame, 4 * per_frame, 4 * per_frame]


@pytest.mark.parametrize("mode", ["gta_drive", "templerun"])
def test_the_other_modes_play(context, mode: str):
    session = session_of(matrix_game(mode), context, walk("W", "R", "L"))
    assert len(play(session)) == 3


class TestVocabulary:
    def rows(self, mode: str, word: str) -> tuple[list, list]:
        trajectory = trajectory_of([parse_action(word)])
        keys = np.array([[float(key in word) for key in "WSADRL"]], np.float32)
        assert trajectory.actions == (parse_action(word),)
        keyboard, mouse = VOCABULARIES[mode].rows(keys)
        return keyboard[0].tolist(), mouse[0].tolist()

    def test_keys_and_mouse_of_each_mode(self):
        assert self.rows("universal", "WD") == ([1, 0, 0, 1], [0, 0])
        assert self.rows("universal", "SR") == ([0, 1, 0, 0], [0, pytest.approx(0.1)])
        assert self.rows("gta_drive", "SL") == ([0, 1], [0, pytest.approx(-0.1)])
        assert self.rows("templerun", "_") == ([1, 0, 0, 0, 0, 0, 0], [0, 0])
        assert self.rows("templerun", "R")[0] == [0, 0, 0, 0, 1, 0, 0]
        assert self.rows("templerun", "A")[0] == [0, 0, 0, 0, 0, 1, 0]

    def test_an_action_outside_of_it_is_refused_with_its_frame(self, context):
        with pytest.raises(TrajectoryError, match="frame 0: action A is held, these weights know W S R L"):
            session_of(matrix_game("gta_drive"), context, walk("A"))

    def test_poses_alone_move_nothing(self, model, context):
        still = Trajectory(np.tile(np.eye(4), (12, 1, 1)), np.ones((12, 4)))
        with pytest.raises(ModelError, match="moved by actions"):
            session_of(model, context, still)

    def test_poses_of_actions_lead_back_when_the_actions_do(self):
        there_and_back = trajectory_of([Action.R] * 5 + [Action.L] * 5 + [Action.NOOP])
        np.testing.assert_array_equal(there_and_back.c2w_F44[0], there_and_back.c2w_F44[-1])


def test_image_tokens_of_another_width_are_refused(model, context):
    with pytest.raises(ModelError, match=r"image_tokens have shape \[5, 7\].*takes \[tokens, 16\]"):
        session_of(model, context | {"image_tokens": torch.zeros(5, 7)}, walk("W"))
