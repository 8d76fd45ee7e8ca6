"""What training on several GPUs is made of, as far as a CPU goes: flex attention has no backward there."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from worldkv.camera import Trajectory
from worldkv.models.rooms import clips, layout, weights
from worldkv.models.rooms import trainer as trainer_module
from worldkv.models.rooms.clips import Clips
from worldkv.models.rooms.network import LOG_DEPTH_RANGE, RoomsNetwork, Shape
from worldkv.models.rooms.scene import Scene
from worldkv.models.rooms.trainer import Settings, Trainer
from worldkv.window import rotary

SHAPE = Shape(image=20, patch=10, layers=4, heads=2, head_dim=24, trained_frames=12)
PER_CHUNK = SHAPE.frames_per_chunk
TOKENS = SHAPE.trained_frames * SHAPE.tokens_per_frame
CLIPS = 256


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def trainer() -> Trainer:
    with torch.random.fork_rng():
        return Trainer(Settings(1.0, 2, 1e-3, 1e-3, seed=0), SHAPE, torch.device("cpu"))


def test_a_pace_moves_the_frames_of_its_clip_apart_and_nothing_else(trainer):
    ids = rotary.grid_token_ids(SHAPE.trained_frames, SHAPE.side, SHAPE.side).double()
    slowness = torch.tensor([1.0, 1.5, 2.0])
    trainer.set_pace(slowness)
    assert trainer.cos.shape == trainer.sin.shape == (3, 2 * TOKENS, SHAPE.head_dim // 2)
    for b, factor in enumerate(slowness.tolist()):
        cos, sin = rotary.angles(ids * torch.tensor([factor, 1, 1]), SHAPE.head_dim)
        for half in (slice(TOKENS), slice(TOKENS, 2 * TOKENS)):
            assert torch.equal(trainer.cos[b, half], cos)
            assert torch.equal(trainer.sin[b, half], sin)
    time = rotary.axis_pairs(SHAPE.head_dim)[0]
    assert torch.equal(trainer.cos[0, :, time:], trainer.cos[2, :, time:])
    assert not torch.equal(trainer.cos[0, :, :time], trainer.cos[2, :, :time])


def test_the_next_pace_forgets_the_last(trainer):
    trainer.set_pace(torch.ones(2))
    before = trainer.cos, trainer.sin
    trainer.set_pace(torch.full((2,), 1.7))
    trainer.set_pace(torch.ones(2))
    assert torch.equal(trainer.cos, before[0])
    assert torch.equal(trainer.sin, before[1])


def test_frames_of_a_batch_are_the_true_pictures_and_depths_of_each_clip(trainer):
    batch = Clips(0, 2, SHAPE.trained_frames).make(0)
    clean, log_depth = trainer.frames(batch)
    assert clean.shape == (2, SHAPE.trained_frames, 3, 20, 20)
    assert log_depth.shape == (2, TOKENS, 4)
    for b in range(2):
        scene = Scene(b, SHAPE.image)
        poses = batch["c2w_BF44"][b].double().numpy()
        truth, depth = scene.truth(Trajectory(poses, np.tile(scene.view.intrinsics, (len(poses), 1))))
        pixels = (clean[b] + 1).permute(0, 2, 3, 1) * 127.5
        np.testing.assert_allclose(pixels, truth, atol=0.51)
        middles = [
            depth[frame, 10 * row + 5 * down + 2, 10 * column + 5 * right + 2]
            for frame in range(SHAPE.trained_frames)
            for row, column, down, right in itertools.product(range(2), repeat=4)
        ]
        expected = torch.stack(middles).log().clamp(*LOG_DEPTH_RANGE).reshape(TOKENS, 4)
        torch.testing.assert_close(log_depth[b], expected)


def test_held_out_clips_lie_in_worlds_kept_for_validation(trainer, monkeypatch):
    monkeypatch.setattr(clips, "VALIDATION_CLIPS", 3)
    held, again = clips.held_out(trainer.shape.trained_frames), clips.held_out(trainer.shape.trained_frames)
    assert list(held) == ["back", "patrol", "scattered"]
    worlds = layout.stack([layout.draw(clips.VALIDATION_SEED + n) for n in range(3)])
    for name, batch in held.items():
        assert batch["c2w_BF44"].shape == (3, SHAPE.trained_frames, 4, 4)
        for field, values in worlds.items():
            np.testing.assert_array_equal(batch[field], values)
        assert all(torch.equal(batch[field], again[name][field]) for field in batch)
    back, patrol, scattered = (batch["c2w_BF44"] for batch in held.values())
    assert torch.equal(back, back.flip(1))
    assert not torch.equal(patrol, patrol.flip(1))
    hops = torch.linalg.vector_norm(scattered[:, 1:, :3, 3] - scattered[:, :-1, :3, 3], dim=-1)
    assert hops[:, PER_CHUNK - 1 :: PER_CHUNK].mean() > 3 * hops[:, ::PER_CHUNK].mean(), "neighbours lie far apart"


def test_processes_draw_batches_of_their_own_and_together_all(monkeypatch):
    monkeypatch.setattr(Clips, "make", lambda self, number: number)
    rows = [list(itertools.islice(Clips(0, 4, 12, skip=5 + rank, stride=3), 4)) for rank in range(3)]
    assert rows[1] == [6, 9, 12, 15]
    assert sorted(itertools.chain(*rows)) == list(range(5, 17))


def test_loader_workers_of_a_process_share_its_batches_out(monkeypatch):
    monkeypatch.setattr(Clips, "make", lambda self, number: number)
    rows = []
    for worker in range(2):
        info = SimpleNamespace(id=worker, num_workers=2)
        monkeypatch.setattr(clips, "get_worker_info", lambda info=info: info)
        rows.append(list(itertools.islice(Clips(0, 4, 12, skip=1, stride=3), 3)))
    assert rows == [[1, 7, 13], [4, 10, 16]]


def given_gradients(network: RoomsNetwork) -> list[Tensor | None]:
    """A gradient of its own for every parameter but those of the head, which get none."""
    for number, (name, parameter) in enumerate(network.named_parameters()):
        parameter.grad = None if name.startswith("head.") else normal(*parameter.shape, seed=number)
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


def test_a_single_process_keeps_its_gradients(trainer):
    before = given_gradients(trainer.network)
    trainer._share_gradients()
    for parameter, grad in zip(trainer.network.parameters(), before, strict=True):
        assert parameter.grad is grad is None or torch.equal(parameter.grad, grad)


def test_processes_share_the_mean_of_each_gradient_in_one_message(trainer, monkeypatch):
    sent: list[object] = []

    def all_reduce(flat: Tensor, op: object) -> None:
        """As if the only other process had found no gradient anywhere."""
        sent.append(op)
        flat /= 2

    monkeypatch.setattr(trainer_module.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(trainer_module.distributed, "all_reduce", all_reduce)
    before = given_gradients(trainer.network)
    trainer._share_gradients()
    assert sent == [trainer_module.distributed.ReduceOp.AVG]
    for parameter, grad in zip(trainer.network.parameters(), before, strict=True):
        assert parameter.grad is grad is None or torch.equal(parameter.grad, grad / 2)


def test_a_run_can_start_from_the_weights_of_another(
    trainer, make_network: Callable[..., RoomsNetwork], tmp_path, monkeypatch
):
    earlier = make_network(SHAPE, seed=7)
    weights.save(earlier, tmp_path, tangent=1.0)
    trainer.start_from(tmp_path)
    for network in (trainer.network, trainer.averaged):
        for name, tensor in earlier.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor.half().float())
    assert trainer.step == 0
    assert all(parameter.requires_grad for parameter in trainer.network.parameters())
