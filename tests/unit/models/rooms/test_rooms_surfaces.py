"""Guessed surfaces: from the depths of a token's quarters to places in the world.

Pictures of 20 x 20 pixels, tokens of 10 x 10, quarters of 5 x 5; F frames, S = 4 tokens per frame, Q quarters.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.camera import Trajectory
from worldkv.models.rooms.network import (
    LOG_DEPTH_RANGE,
    QUARTERS,
    REACH_FEATURES,
    SURFACE_FEATURES,
    SURFACE_LAYERS,
    Shape,
    Surface,
    quarter_rays,
    quarters,
    ray_features,
    reach_features,
    surface_features,
)
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene

SIDE, PATCH, QUARTER = 2, 10, 5
SHAPE = Shape(image=SIDE * PATCH, patch=PATCH, layers=4, heads=2, head_dim=24, trained_frames=12)
WAVES = (16, 8, 4, 2, 1)  # cells; the first is longer than any world is wide


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    return Scene(3, SIDE * PATCH).trajectory("wander", 12, Pace(25.0, 0.3))


@pytest.fixture(scope="module")
def depth_FHW(trajectory) -> Tensor:
    return Scene(3, SIDE * PATCH).truth(trajectory)[1]


@pytest.fixture(scope="module")
def eye_and_ray(trajectory) -> tuple[Tensor, Tensor]:
    return quarter_rays(torch.tensor(trajectory.c2w_F44).float()[None], SIDE, tangent=1.0)


@pytest.fixture(scope="module")
def true_log_depth(depth_FHW) -> Tensor:
    """Of the middle pixel of every quarter, [1, F * S, Q]."""
    middles = depth_FHW[:, QUARTER // 2 :: QUARTER, QUARTER // 2 :: QUARTER]
    return quarters(middles, SIDE).flatten(0, 1).log()[None]


def unprojected(trajectory: Trajectory, depth_FHW: Tensor) -> np.ndarray:
    """World points [F * S, Q, 3] behind the middle pixel of every quarter, one by one."""
    places = []
    focal = middle = SIDE * PATCH / 2
    for c2w, depth in zip(trajectory.c2w_F44, depth_FHW.double().numpy(), strict=True):
        for row in range(0, SIDE * PATCH, PATCH):
            for column in range(0, SIDE * PATCH, PATCH):
                for down in (QUARTER // 2, QUARTER + QUARTER // 2):
                    for right in (QUARTER // 2, QUARTER + QUARTER // 2):
                        y, x = row + down, column + right
                        ray = np.array([(x + 0.5 - middle) / focal, (y + 0.5 - middle) / focal, 1.0])
                        places.append(c2w[:3, :3] @ (ray * depth[y, x]) + c2w[:3, 3])
    return np.array(places).reshape(-1, QUARTERS, 3)


def within_range(log_depth: Tensor) -> np.ndarray:
    low, high = LOG_DEPTH_RANGE
    return ((log_depth > low) & (log_depth < high))[0].numpy()


def test_quarters_are_those_of_each_token_row_by_row():
    side = 3
    grid = torch.arange(2 * 36).reshape(2, 6, 6)
    found = quarters(grid, side)
    assert found.shape == (2, side * side, QUARTERS)
    for outer in range(2):
        for token in range(side * side):
            row, column = divmod(token, side)
            expected = grid[outer, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
            assert torch.equal(found[outer, token], expected)


def test_quarter_rays_start_at_the_camera_and_go_one_unit_deep(trajectory, eye_and_ray):
    eye, ray = eye_and_ray
    c2w = trajectory.c2w_F44.repeat(SIDE * SIDE, axis=0)
    np.testing.assert_allclose(eye[0], c2w[:, :3, 3], atol=1e-5)
    deep = np.einsum("ti,tqi->tq", c2w[:, :3, 2], ray[0].double().numpy())
    np.testing.assert_allclose(deep, 1, atol=1e-5)


def test_the_rays_of_its_quarters_lie_around_the_ray_of_their_token(trajectory, eye_and_ray):
    tokens = ray_features(torch.tensor(trajectory.c2w_F44)[None], SIDE, tangent=1.0)[..., 28:31]
    torch.testing.assert_close(fn.normalize(eye_and_ray[1].mean(2), dim=-1), tokens)


def test_along_its_ray_at_the_true_depth_lies_the_surface_that_the_pixel_shows(
    trajectory, depth_FHW, eye_and_ray, true_log_depth
):
    eye, ray = eye_and_ray
    found = eye[..., None, :] + true_log_depth.exp()[..., None] * ray
    # The sky lies ten thousand cells away.
    np.testing.assert_allclose(found[0], unprojected(trajectory, depth_FHW), rtol=1e-4, atol=1e-4)


def test_the_place_of_a_surface_can_be_read_off_its_features(trajectory, depth_FHW, eye_and_ray, true_log_depth):
    features = surface_features(true_log_depth, *eye_and_ray)[0].unflatten(-1, (QUARTERS, SURFACE_FEATURES)).numpy()
    near = within_range(true_log_depth)
    assert near.mean() > 0.5
    places, features = unprojected(trajectory, depth_FHW)[near], features[near]
    sines, cosines, height, guess = np.split(features, [10, 20, 21], axis=-1)
    for start, axis in ((0, 0), (5, 2)):
        for number, wave in enumerate(WAVES, start):
            found = np.arctan2(sines[:, number], cosines[:, number]) / (2 * np.pi) * wave
            off = (found - places[:, axis] + wave / 2) % wave - wave / 2
            np.testing.assert_allclose(off, 0, atol=1e-3)
    np.testing.assert_allclose(height[:, 0], places[:, 1], atol=1e-4)
    np.testing.assert_allclose(guess[:, 0], true_log_depth[0].numpy()[near])


def test_a_surface_has_the_same_features_but_its_depth_from_wherever_it_is_seen():
    places = torch.tensor([[3.0, -0.2, 7.5], [8.25, 0.5, 1.5], [6.0, 0.1, 6.0], [1.0, 0.3, 10.0]])
    eyes = torch.tensor([[[2.0, 0.0, 3.0], [9.0, 0.0, 9.0]]])
    log_depth = torch.tensor([[[0.1, 1.2, 0.4, 2.0], [1.5, 0.3, 0.8, 1.1]]])
    ray = (places - eyes[..., None, :]) / log_depth.exp()[..., None]
    here, there = surface_features(log_depth, eyes, ray)[0].unflatten(-1, (QUARTERS, SURFACE_FEATURES))
    torch.testing.assert_close(here[:, :-1], there[:, :-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack([here[:, -1], there[:, -1]]), log_depth[0])


@pytest.mark.parametrize(("end", "beyond"), list(zip(LOG_DEPTH_RANGE, (-40.0, 40.0), strict=True)))
def test_a_guess_out_of_range_is_taken_for_the_end_of_the_range(eye_and_ray, end, beyond):
    eye, ray = eye_and_ray
    features = [surface_features(torch.full(ray.shape[:-1], value), eye, ray) for value in (end, beyond)]
    assert torch.equal(*features)
    inside = surface_features(torch.full(ray.shape[:-1], end - np.sign(end) * 0.1), eye, ray)
    assert not torch.equal(inside, features[0])


def test_the_sky_lies_at_the_far_end_of_the_range(eye_and_ray, true_log_depth):
    guess = surface_features(true_log_depth, *eye_and_ray)[0].unflatten(-1, (QUARTERS, SURFACE_FEATURES))[..., -1]
    sky = true_log_depth[0] > 9
    assert sky.any()
    assert (guess[sky] == LOG_DEPTH_RANGE[1]).all()


@pytest.fixture
def surface() -> Surface:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Surface(SHAPE)


def test_a_surface_adds_its_place_to_a_token_and_nothing_else(surface, eye_and_ray):
    x = normal(1, 48, SHAPE.width)
    after, log_depth = surface(x, *eye_and_ray)
    assert log_depth.shape == (1, 48, QUARTERS)
    assert torch.equal(after, x + surface.place(surface_features(log_depth, *eye_and_ray)))
    torch.nn.init.zeros_(surface.place.weight)
    torch.nn.init.zeros_(surface.place.bias)
    assert torch.equal(surface(x, *eye_and_ray)[0], x)


def test_a_guess_is_made_from_what_the_token_holds_and_not_from_the_camera(surface, eye_and_ray):
    x = normal(1, 48, SHAPE.width)
    eye, ray = eye_and_ray
    after, log_depth = surface(x, eye, ray)
    moved, guessed_again = surface(x, eye + 1.3, ray.flip(1))
    assert torch.equal(guessed_again, log_depth)
    assert not torch.equal(moved, after)


def test_no_gradient_runs_through_the_guess_into_the_place(surface, eye_and_ray):
    x = normal(1, 48, SHAPE.width).requires_grad_()
    surface(x, *eye_and_ray)[0].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert surface.depth.weight.grad is surface.depth.bias.grad is None
    assert surface.place.weight.grad.any()


def test_the_true_depth_teaches_the_guess_and_what_it_is_made_from(surface, eye_and_ray):
    x = normal(1, 48, SHAPE.width).requires_grad_()
    surface(x, *eye_and_ray)[1].sum().backward()
    assert x.grad.any()
    assert surface.depth.weight.grad.any()
    assert surface.place.weight.grad is None


@pytest.mark.parametrize(("end", "beyond"), list(zip(LOG_DEPTH_RANGE, (-40.0, 40.0), strict=True)))
def test_a_guess_far_out_has_a_place_in_range_and_can_still_be_corrected(surface, eye_and_ray, end, beyond):
    x = normal(1, 48, SHAPE.width)
    torch.nn.init.zeros_(surface.depth.weight)
    after = []
    for value in (end, beyond):
        torch.nn.init.constant_(surface.depth.bias, value)
        placed, log_depth = surface(x, *eye_and_ray)
        assert torch.equal(log_depth, torch.full_like(log_depth, value))
        after.append(placed)
    assert torch.equal(*after)
    log_depth.sum().backward()
    assert surface.depth.bias.grad.all()


def test_depths_are_guessed_after_each_surface_layer_that_the_network_has(make_network):
    shallow = Shape(image=20, patch=10, layers=2, heads=2, head_dim=24)
    layers = {shape.layers: list(make_network(shape).surfaces) for shape in (shallow, SHAPE, Shape())}
    assert layers == {2: [], 4: ["2"], 10: [str(layer) for layer in SURFACE_LAYERS]}
    network = make_network(SHAPE)
    cameras = network.cameras(torch.eye(4).expand(2, 3, 4, 4), 1.0)
    _, log_depths = network(normal(2, 3, 3, 20, 20), torch.zeros(2, 3), cameras, lambda _layer, q, k, v: v)
    assert [(guess.shape, guess.dtype) for guess in log_depths] == [((2, 12, QUARTERS), torch.float32)]


def test_a_surface_at_a_reach_has_the_place_that_its_ray_asks_for(trajectory):
    """The waves of a key's surface and of a query's reach are the same: alike where they meet, at any pose."""
    c2w = torch.tensor(trajectory.c2w_F44).float()[None]
    reach = reach_features(c2w, SIDE, tangent=1.0)
    assert reach.shape == (1, 12 * SIDE**2, REACH_FEATURES)
    sines, cosines = (x.reshape(1, -1, 5, 10) for x in reach.chunk(2, -1))
    eye, ray = quarter_rays(c2w, SIDE, tangent=1.0)
    middle = ray.mean(2, keepdim=True)  # the token's own ray lies amid those of its quarters
    for place, depth in enumerate((0.4, 0.8, 1.6, 3.2, 6.4)):
        log_depth = torch.full((*middle.shape[:2], 1), depth).log()
        surface = surface_features(log_depth, eye, middle)
        torch.testing.assert_close(sines[:, :, place], surface[..., :10], atol=1e-4, rtol=0)
        torch.testing.assert_close(cosines[:, :, place], surface[..., 10:20], atol=1e-4, rtol=0)
