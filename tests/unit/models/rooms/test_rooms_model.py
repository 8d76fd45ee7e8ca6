import copy
import inspect
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.errors import ModelError
from worldkv.models.base import ModelState, View, WorldModel
from worldkv.models.rooms.model import RoomsModel
from worldkv.models.rooms.network import Cameras
from worldkv.models.rooms.paths import to_poses
from worldkv.models.rooms.scene import Scene
from worldkv.window import rotary
from worldkv.window.buffer import WindowBuffer

FRAMES = 3


def view_of(states: Sequence[tuple[float, float, float]] = ((0, 0, 0),) * FRAMES, **changes: object) -> View:
    """Three video frames at (x, z, yaw in radians) with the model's own camera."""
    poses = to_poses(np.array(states, float))
    return replace(View(poses, np.tile(np.float32([10, 10, 10, 10]), (len(poses), 1))), **changes)


def alone(model: RoomsModel):
    """A window without a past, at latent frame 0."""
    return WindowBuffer(model.geometry, model.device, model.kv_dtype).assemble([[]], [0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def session_of(cameras: Cameras, b: int) -> Cameras:
    """Session `b` of a batch, as a batch of its own."""
    return Cameras(cameras.terms_LBTE[:, b : b + 1], cameras.eye_BT3[b : b + 1], cameras.ray_BTQ3[b : b + 1])


def assert_alike(found: Cameras, expected: Cameras, tolerance: float) -> None:
    for field in fields(Cameras):
        pair = getattr(found, field.name), getattr(expected, field.name)
        torch.testing.assert_close(*pair, atol=tolerance, rtol=tolerance)


def test_the_rooms_model_is_a_world_model(tiny):
    # Types are mypy's part: it sees rooms models handed to `rollout` in `worldkv.eval`.
    model: WorldModel = tiny.model
    for name, member in vars(WorldModel).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            expected = list(inspect.signature(member).parameters)[1:]
            assert list(inspect.signature(getattr(model, name)).parameters) == expected, name
        elif isinstance(member, property):
            assert hasattr(model, name), name


def test_geometry_and_latent_shape_are_those_of_the_network(tiny):
    geometry = tiny.model.geometry
    assert (geometry.layers, geometry.heads, geometry.head_dim) == (2, 2, 24)
    assert (geometry.tokens_per_latent_frame, geometry.tokens_per_chunk) == (4, 12)
    assert tiny.model.latent_shape == (3, 20, 20)
    assert geometry.kv_bytes(12) == 2 * 2 * 12 * 2 * 24 * 2
    assert tiny.model.intrinsics == (10, 10, 10, 10)


def test_another_camera_is_refused_with_both(tiny):
    model = tiny.model
    zoomed = view_of(intrinsics_F4=np.tile(np.float32([20, 20, 10, 10]), (FRAMES, 1)))
    with pytest.raises(ModelError, match=r"10\.0, 10\.0, 10.*20\.0, 20\.0, 10"):
        model.condition([model.open(zoomed, {})], [zoomed])


def test_a_camera_that_zooms_later_is_refused_with_what_it_zooms_to(tiny):
    model = tiny.model
    intrinsics = np.tile(np.float32([10, 10, 10, 10]), (FRAMES, 1))
    intrinsics[2, :2] = 15
    zooming = view_of(intrinsics_F4=intrinsics)
    with pytest.raises(ModelError, match=r"15\.0, 15\.0"):
        model.condition([model.open(zooming, {})], [zooming])


@pytest.mark.parametrize("axis", ["pitch", "roll"])
def test_a_tilted_camera_is_refused(tiny, axis):
    model = tiny.model
    tilted = view_of()
    cosine, sine = np.cos(0.1), np.sin(0.1)
    one, other = (1, 2) if axis == "pitch" else (0, 1)
    tilted.c2w_F44[2, [one, other], [one, other]] = cosine
    tilted.c2w_F44[2, one, other], tilted.c2w_F44[2, other, one] = -sine, sine
    with pytest.raises(ModelError, match="level cameras only"):
        model.condition([model.open(view_of(), {})], [tilted])


def test_a_context_is_refused_by_name(tiny):
    with pytest.raises(ModelError, match="takes no context, got prompt"):
        tiny.model.open(view_of(), {"prompt": torch.zeros(1)})


def test_bytes_survive_encode_and_decode(tiny):
    frames = torch.arange(256).repeat(20 * 20 * 3 * 3 // 256 + 1)[: 3 * 20 * 20 * 3]
    frames = frames.to(torch.uint8).reshape(1, 3, 20, 20, 3)
    latents = tiny.model.encode(frames, [ModelState()])
    assert latents.shape == (1, 3, 3, 20, 20)
    assert (float(latents.min()), float(latents.max())) == (-1, 1)
    assert torch.equal(tiny.model.decode(latents, [ModelState()]), frames)


def test_decode_clamps_and_rounds(tiny):
    latents = torch.tensor([-7.0, -1.0, 0.0, 0.999, 1.0, 7.0]).reshape(1, 1, 1, 1, 6)
    assert tiny.model.decode(latents, []).flatten().tolist() == [0, 0, 128, 255, 255, 255]


def test_the_condition_of_a_batch_is_that_of_each_session(deep):
    model = deep.model
    views = [view_of([(x, 1, x / 3)] * FRAMES) for x in range(3)]
    states = [model.open(view_of([(0, 0, x / 2)] * FRAMES), {}) for x in range(3)]
    together = model.condition(states, views)
    for b in range(3):
        one = model.condition(states[b : b + 1], views[b : b + 1])
        assert_alike(session_of(together, b), one, tolerance=1e-6)


def test_only_the_pose_relative_to_the_first_matters(deep):
    model = deep.model
    here = model.condition([model.open(view_of(), {})], [view_of([(1, 0, 0)] * FRAMES)])
    turned = view_of([(5, 5, np.pi / 2)] * FRAMES)
    there = model.condition([model.open(turned, {})], [view_of([(5, 4, np.pi / 2)] * FRAMES)])
    assert_alike(here, there, tolerance=1e-5)


def test_a_sessions_state_is_left_as_it_is_by_forwards(deep):
    model = deep.model
    state = model.open(view_of(), {})
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    condition = model.condition([state], [view_of()])
    model.estimate(normal(1, 3, 3, 20, 20), 0.5, condition, alone(model))
    model.clean_pass(normal(1, 3, 3, 20, 20), condition, alone(model), [state], generated=False)
    assert set(state.tensors) == set(before)
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in before.items())


def test_an_estimate_depends_on_noise_level_camera_and_past(deep):
    model = deep.model
    state, latents = model.open(view_of(), {}), normal(1, 3, 3, 20, 20)
    condition = model.condition([state], [view_of()])
    before = model.estimate(latents, 0.5, condition, alone(model))
    assert before.dtype == torch.float32
    other_level = model.estimate(latents, 0.9, condition, alone(model))
    other_camera = model.estimate(latents, 0.5, model.condition([state], [view_of([(1, 2, 3)] * 3)]), alone(model))
    assert (before - other_level).abs().max() > 1e-3
    assert (before - other_camera).abs().max() > 1e-3
    assert torch.equal(before, model.estimate(latents, 0.5, condition, alone(model)))


def test_keys_come_before_rotation(deep):
    """Wherever the chunk stands, its keys and values are the same but for rounding."""
    model = deep.model
    state, latents = model.open(view_of(), {}), normal(1, 3, 3, 20, 20)
    condition = model.condition([state], [view_of()])
    windows = [WindowBuffer(model.geometry, model.device, model.kv_dtype).assemble([[]], [first]) for first in (0, 30)]
    here, there = (model.clean_pass(latents, condition, window, [state], generated=False) for window in windows)
    assert here.k_LBTHD.shape == (4, 1, 12, 2, 24)
    assert torch.equal(here.k_LBTHD[0], there.k_LBTHD[0])
    torch.testing.assert_close(here.k_LBTHD, there.k_LBTHD, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(here.v_LBTHD, there.v_LBTHD, atol=1e-4, rtol=1e-4)


def test_the_kv_of_a_chunk_says_whether_it_was_shown_or_made(deep):
    model, session = deep.model, deep.open("full", 4)
    state, latents = model.open(view_of(), {}), normal(1, 3, 3, 20, 20)
    condition = model.condition([state], [view_of()])
    shown, made = (
        model.clean_pass(latents, condition, alone(model), [state], generated=generated) for generated in (False, True)
    )
    assert (shown.k_LBTHD - made.k_LBTHD).abs().max() > 1e-3
    # A session says it of each of its chunks.
    frames, _ = Scene(0, 20).truth(session.trajectory)
    told = []
    spy = replace(deep, model=copy.copy(model))
    spy.model.clean_pass = lambda *args, generated: (
        told.append(generated) or model.clean_pass(*args, generated=generated)
    )
    spy.finish(session, given=[frames[:6]])
    assert told == [False, False, True, True]


def test_chunk_by_chunk_inference_writes_the_kv_of_one_pass_over_the_clip(deep):
    """What training computes under its block-causal mask is what a session computes window by window."""
    model, session = deep.model, deep.open("full", 4)
    frames, _ = Scene(0, 20).truth(session.trajectory)
    deep.finish(session, given=[frames])
    whole_k, whole_v = [], []
    chunk = torch.arange(4).repeat_interleave(12)
    allowed_TT = chunk[:, None] >= chunk[None]
    angles = rotary.angles(rotary.grid_token_ids(12, 2, 2), 24)

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole_k.append(k)
        whole_v.append(v)
        q, k = rotary.rotate(q, *angles), rotary.rotate(k, *angles)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return fn.scaled_dot_product_attention(q, k, v, attn_mask=allowed_TT).transpose(1, 2)

    poses, intrinsics = session.trajectory.c2w_F44, session.trajectory.intrinsics_F4
    clip = View(poses.astype(np.float32), intrinsics.astype(np.float32))
    condition = model.condition([session.state], [clip])
    latents = model.encode(torch.from_numpy(frames[None]), [session.state])
    model.network(latents, torch.zeros(1, 12), condition, attend)
    k, v = (torch.cat([getattr(live, name) for live in session.live], 1) for name in ("k_LTHD", "v_LTHD"))
    torch.testing.assert_close(k, torch.cat(whole_k), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(v, torch.cat(whole_v), atol=1e-4, rtol=1e-4)
