from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.models.rooms.network import (
    Cameras,
    RoomsNetwork,
    Shape,
    noise_features,
    patchify,
    ray_features,
    unpatchify,
)
from worldkv.models.rooms.paths import to_poses
from worldkv.models.rooms.trainer import forcing_mask
from worldkv.window import rotary

# A surface is guessed after layer 2; layer 3 attends with its place.
SHAPE = Shape(image=20, patch=10, layers=4, heads=2, head_dim=24, trained_frames=12)
PER_CHUNK = SHAPE.frames_per_chunk * SHAPE.tokens_per_frame


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_attention(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return fn.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def cameras_of(network: RoomsNetwork, frames: int, seed: int = 0) -> Cameras:
    walk = normal(1, frames, 3, seed=seed).numpy()
    return network.cameras(torch.from_numpy(to_poses(walk)), 1.0)


def test_patches_go_in_and_out_unchanged():
    pixels = normal(2, 3, 3, 40, 40)
    tokens = patchify(pixels, 10)
    assert tokens.shape == (2, 3 * 16, 300)
    assert torch.equal(unpatchify(tokens, 3, 10), pixels)


def test_tokens_run_by_frame_then_row_then_column():
    pixels = torch.zeros(1, 2, 3, 20, 20)
    pixels[0, 1, :, 10:, :10] = 1  # frame 1, row 1, column 0
    marked = patchify(pixels, 10)[0].amax(-1)
    frame, row, column = rotary.grid_token_ids(2, 2, 2)[int(marked.argmax())].tolist()
    assert (frame, row, column) == (1, 1, 0)
    assert marked.sum() == 1


def test_as_initialised_the_output_is_zero_and_no_block_adds_anything():
    torch.manual_seed(0)
    network = RoomsNetwork(SHAPE)
    pixels, noise = normal(1, 3, 3, 20, 20), torch.full((1, 3), 0.5)
    cameras = cameras_of(network, 3)
    clean, _ = network(pixels, noise, cameras, plain_attention)
    assert torch.equal(clean, torch.zeros_like(pixels))
    x = normal(1, 12, SHAPE.width)
    shared = normal(1, 3, 6, SHAPE.width)
    for layer, block in enumerate(network.blocks):
        assert torch.equal(block(x, shared, cameras.terms_LBTE[layer], layer, plain_attention), x)


def test_cameras_are_a_term_per_layer_and_an_eye_and_four_rays_per_token(make_network):
    network = make_network(SHAPE)
    cameras = network.cameras(torch.from_numpy(to_poses(normal(2, 3, 3).numpy())), 1.0)
    assert cameras.terms_LBTE.shape == (4, 2, 12, 48)
    assert cameras.eye_BT3.shape == (2, 12, 3)
    assert cameras.ray_BTQ3.shape == (2, 12, 4, 3)


def test_cameras_twice_have_one_copy_of_every_token_behind_the_other(make_network):
    cameras = cameras_of(make_network(SHAPE), 3)
    twice = cameras.twice()
    for copy in (slice(12), slice(12, 24)):
        assert torch.equal(twice.terms_LBTE[:, :, copy], cameras.terms_LBTE)
        assert torch.equal(twice.eye_BT3[:, copy], cameras.eye_BT3)
        assert torch.equal(twice.ray_BTQ3[:, copy], cameras.ray_BTQ3)
    assert twice.terms_LBTE.shape[2] == twice.eye_BT3.shape[1] == twice.ray_BTQ3.shape[1] == 24


@pytest.mark.parametrize("changed", ["pixels", "noise", "cameras", "terms_LBTE", "eye_BT3", "ray_BTQ3", "attended"])
def test_the_output_depends_on_every_input(make_network, changed):
    network = make_network(SHAPE)
    pixels, noise, cameras = normal(1, 3, 3, 20, 20), torch.full((1, 3), 0.5), cameras_of(network, 3)
    before, _ = network(pixels, noise, cameras, plain_attention)
    attend = plain_attention
    if changed == "pixels":
        pixels = pixels + 0.1
    elif changed == "noise":
        noise = noise + 0.1
    elif changed == "cameras":
        cameras = cameras_of(network, 3, seed=1)
    elif changed != "attended":
        cameras = replace(cameras, **{changed: getattr(cameras_of(network, 3, seed=1), changed)})
    else:

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return plain_attention(layer, q, k, v) + 0.1

    after, _ = network(pixels, noise, cameras, attend)
    assert (after - before).abs().max() > 1e-4


def test_the_network_leaves_all_attention_to_its_caller(make_network):
    """Frames do not touch each other but through `attend`."""
    network = make_network(SHAPE)
    pixels, noise, cameras = normal(1, 3, 3, 20, 20), torch.full((1, 3), 0.5), cameras_of(network, 3)

    def own_value(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v

    before, [guessed] = network(pixels, noise, cameras, own_value)
    changed = pixels.clone()
    changed[:, 2] += 1
    after, [guessed_after] = network(changed, noise, cameras, own_value)
    assert torch.equal(after[:, :2], before[:, :2])
    assert not torch.equal(after[:, 2], before[:, 2])
    same_frames = 2 * SHAPE.tokens_per_frame
    assert torch.equal(guessed_after[:, :same_frames], guessed[:, :same_frames])
    assert not torch.equal(guessed_after[:, same_frames:], guessed[:, same_frames:])


def masked_attention(mask_TT: Tensor, frames: int) -> object:
    """Attention over a whole clip, rotated at its own positions, where `mask_TT` allows it."""
    ids = rotary.grid_token_ids(frames, SHAPE.side, SHAPE.side)
    angles = rotary.angles(ids.repeat(len(mask_TT) // len(ids), 1), SHAPE.head_dim)

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotary.rotate(q, *angles), rotary.rotate(k, *angles)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return fn.scaled_dot_product_attention(q, k, v, attn_mask=mask_TT).transpose(1, 2)

    return attend


def training_mask() -> Tensor:
    """The mask of training over a clean and a noisy clip, dense [2T, 2T]."""
    tokens = 2 * SHAPE.trained_frames * SHAPE.tokens_per_frame
    q, k = torch.meshgrid(torch.arange(tokens), torch.arange(tokens), indexing="ij")
    zero = torch.zeros((), dtype=torch.int64)
    return forcing_mask(SHAPE, torch.device("cpu")).mask_mod(zero, zero, q, k)


def test_training_never_lets_a_chunk_see_what_inference_will_not_show_it():
    mask = training_mask()
    clip = len(mask) // 2
    chunks = clip // PER_CHUNK
    clean, noisy = (torch.arange(chunks).repeat_interleave(PER_CHUNK) for _ in range(2))
    assert torch.equal(mask[:clip, :clip], clean[:, None] >= clean[None])
    assert not mask[:clip, clip:].any()
    assert torch.equal(mask[clip:, :clip], noisy[:, None] > clean[None])
    assert torch.equal(mask[clip:, clip:], noisy[:, None] == noisy[None])


def test_in_training_a_later_chunk_never_changes_an_earlier_one(make_network):
    network = make_network(SHAPE)
    frames = SHAPE.trained_frames
    attend = masked_attention(training_mask(), frames)
    pixels, noise = normal(1, 2 * frames, 3, 20, 20), torch.full((1, 2 * frames), 0.3)
    cameras = cameras_of(network, frames).twice()
    before, _ = network(pixels, noise, cameras, attend)
    changed = pixels.clone()
    changed[:, [6, 7, 8]] += 1  # the clean side of chunk 2
    after, _ = network(changed, noise, cameras, attend)
    difference = (after - before).abs().amax((0, 2, 3, 4)).reshape(2, -1, 3).amax(-1)
    clean, noisy = difference > 1e-6
    assert clean.tolist() == [False, False, True, True]
    assert noisy.tolist() == [False, False, False, True]


def test_noise_and_ray_features_have_the_announced_widths(make_network):
    assert noise_features(torch.zeros(2, 3)).shape == (2, 3, 64)
    poses = torch.from_numpy(to_poses(normal(2, 3, 3).numpy()))
    rays = ray_features(poses, 2, 1.0)
    assert rays.shape[:2] == (2, 3 * 4)
    assert rays.isfinite().all()


def test_rays_pass_through_the_middle_of_their_tokens():
    ahead = ray_features(torch.eye(4)[None, None], 2, 1.0)[0]
    direction = ahead[:, 28:31]
    expected = torch.tensor([[-0.5, -0.5, 1.0], [0.5, -0.5, 1.0], [-0.5, 0.5, 1.0], [0.5, 0.5, 1.0]])
    torch.testing.assert_close(direction, fn.normalize(expected, dim=-1))


def test_noise_levels_close_together_have_features_close_together():
    level = torch.tensor([[0.0, 0.001, 0.5, 1.0]])
    features = noise_features(level)[0]
    assert (features[0] - features[1]).norm() < (features[0] - features[2]).norm()
