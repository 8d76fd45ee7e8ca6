import numpy as np
import pytest
import torch
from torch import Tensor

from worldkv.models.rooms.clips import Clips
from worldkv.models.rooms.history import EXACT, MADE, NOISY, compose, play_on
from worldkv.models.rooms.network import MADE_LEVEL, Shape
from worldkv.models.rooms.trainer import PARTS_PER_LESSON, Settings, Trainer

SHAPE = Shape(image=20, patch=10, layers=4, heads=2, head_dim=24, trained_frames=12)
PER_CHUNK = SHAPE.frames_per_chunk
CHUNKS = SHAPE.trained_frames // PER_CHUNK
MANY = 4000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def trainer(make_network) -> Trainer:
    """With a player that has a picture of its own: as initialised, a network makes the same of everything."""
    made = Trainer(Settings(1.0, 2, 1e-3, 1e-3, seed=0), SHAPE, torch.device("cpu"))
    for network in (made.network, made.averaged):
        network.load_state_dict(make_network(SHAPE).state_dict())
    return made


@pytest.fixture
def composed() -> tuple[Tensor, Tensor, Tensor]:
    """(shown to be made, noise, told) per clip and chunk, of clips that were shown black and made white."""
    clean = torch.zeros(MANY, 3 * CHUNKS, 1, 1, 1)
    start_B = torch.arange(MANY) % (CHUNKS - 1) + 1
    past = compose(clean, clean + 1, start_B, 3, seeded())
    rows = past.pixels_BFCHW[..., 0, 0, 0], past.noise_BF, past.level_BF
    for row in rows:
        assert torch.equal(row[:, ::3], row[:, 1::3])
        assert torch.equal(row[:, ::3], row[:, 2::3])
    return tuple(row[:, ::3] for row in rows)


def test_each_kind_of_history_has_its_share_of_the_clips(composed):
    made, noise, told = composed
    kinds = {
        "made": (made > 0).any(1),
        "noisy": (noise > 0).any(1),
        "told": (told[:, 0] == MADE_LEVEL),
    }
    assert not (kinds["made"] & kinds["noisy"]).any()
    shares = {name: float(kind.float().mean()) for name, kind in kinds.items()}
    assert shares == pytest.approx({"made": MADE, "noisy": NOISY, "told": 1 - EXACT - MADE - NOISY}, abs=0.03)


def test_made_chunks_begin_at_the_start_of_their_clip_and_are_told(composed):
    made, _, told = composed
    start_B = torch.arange(MANY) % (CHUNKS - 1) + 1
    some = (made > 0).any(1)
    expected = torch.arange(CHUNKS) >= start_B[:, None]
    assert torch.equal(made[some] > 0, expected[some])
    torch.testing.assert_close(told[some], MADE_LEVEL * expected[some].float())


def test_noise_takes_the_end_of_a_clip_at_a_level_that_is_told(composed):
    _, noise, told = composed
    some = (noise > 0).any(1)
    lost = noise[some] > 0
    assert (lost.diff(dim=1).int() >= 0).all(), "once noise has begun it stays"
    assert not lost[:, 0].any()
    torch.testing.assert_close(told[some], noise[some])
    assert noise[some][lost].min() >= 0.2


def test_playing_on_keeps_what_was_shown_and_makes_the_rest(trainer):
    lesson = trainer.prepare(Clips(0, 8, SHAPE.trained_frames).make(0))
    assert len(set(lesson.start.tolist())) > 1
    trainer.set_pace(lesson.slowness)
    played = trainer.play_on(lesson.clean, lesson.c2w, lesson.start, steps=1)
    for made, clean, start in zip(played, lesson.clean, lesson.start.tolist(), strict=True):
        frames = start * PER_CHUNK
        assert torch.equal(made[:frames], clean[:frames])
        assert not torch.isclose(made[frames:], clean[frames:]).flatten(1).all(1).any()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_the_model_estimates_of_a_part_is_what_its_next_history_takes_for_made(trainer):
    lesson = trainer.prepare(Clips(0, 2 * PARTS_PER_LESSON, SHAPE.trained_frames).make(0))
    assert torch.equal(lesson.made, lesson.clean)
    with torch.no_grad():
        trainer.loss(lesson.part(1))
    mine = torch.arange(2 * PARTS_PER_LESSON) % PARTS_PER_LESSON == 1
    assert torch.equal(lesson.made[~mine], lesson.clean[~mine])
    assert not torch.isclose(lesson.made[mine], lesson.clean[mine]).flatten(2).all(2).any()
    assert lesson.made.abs().max() <= 1


@pytest.mark.parametrize("number", range(PARTS_PER_LESSON))
def test_a_part_of_a_lesson_is_some_of_its_clips_with_all_that_belongs_to_them(trainer, number):
    lesson = trainer.prepare(Clips(0, 2 * PARTS_PER_LESSON, SHAPE.trained_frames).make(0))
    part = lesson.part(number)
    for name in ("clean", "log_depth", "c2w", "made", "start", "slowness"):
        assert torch.equal(getattr(part, name), getattr(lesson, name)[[number, number + PARTS_PER_LESSON]])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_playing_on_chunk_by_chunk_is_what_training_sees_in_one_pass(trainer):
    """The same weights, history and noise: once with keys kept from chunk to chunk, once under the forcing mask."""
    batch = Clips(0, 2, SHAPE.trained_frames).make(0)
    clean, _ = trainer.frames(batch)
    trainer.set_pace(torch.tensor([1.0, 1.6]))
    c2w, start_B = batch["c2w_BF44"], torch.tensor([1, 2])
    cameras = trainer.player.cameras(c2w, tangent=1.0)
    made = play_on(trainer.player, clean, cameras, trainer.angles, start_B, [1.0], seeded(3))

    first = int(start_B.min())
    again = seeded(3)
    noise = [torch.randn(2, PER_CHUNK, *clean.shape[2:], generator=again) for _ in range(first, CHUNKS)]
    gaussian = torch.cat([torch.zeros_like(noise[0])] * first + noise, 1)
    made_BF = torch.from_numpy(np.arange(SHAPE.trained_frames) // PER_CHUNK) >= start_B[:, None]
    told = torch.cat([MADE_LEVEL * made_BF, torch.ones_like(made_BF)], 1).float()
    estimate, _ = trainer.estimate(trainer.averaged, torch.cat([made, gaussian], 1), told, c2w)
    expected = torch.where(made_BF[..., None, None, None], estimate.clamp(-1, 1), clean)
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=0)


def test_the_player_has_the_averaged_weights_themselves(trainer):
    for mine, averaged in zip(trainer.player.parameters(), trainer.averaged.parameters(), strict=True):
        assert mine.data_ptr() == averaged.data_ptr()
