from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from worldkv.denoise import denoise, gaussian, noise_levels

SHAPE = (3, 3, 20, 20)


class ExactModel:
    """Its estimate is the truth at every noise level; keeps what it was asked."""

    def __init__(self, clean: Tensor) -> None:
        self.clean, self.asked = clean, []

    def estimate(self, latents: Tensor, noise: float, condition: object, window: object) -> Tensor:
        self.asked.append((latents, noise, condition, window))
        return self.clean


def draw(**changes: int) -> Tensor:
    return gaussian(SHAPE, **{"seed": 1, "rollout": 2, "chunk": 3, **changes})


def test_levels_start_at_pure_noise_and_fall():
    for steps, shift in product((1, 2, 4, 7), (1.0, 3.0, 5.0)):
        levels = noise_levels(steps, shift)
        assert len(levels) == steps
        assert levels[0] == 1.0
        assert all(0 < later < earlier for earlier, later in pairwise(levels))


def test_levels_without_shift_are_even_and_a_shift_moves_them_towards_noise():
    assert noise_levels(4, 1.0) == (1.0, 0.75, 0.5, 0.25)
    assert noise_levels(4, 3.0) == pytest.approx((1.0, 0.9, 0.75, 0.5))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_exact_model_is_reached_exactly(steps):
    clean, noise = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    out = denoise(ExactModel(clean), noise, None, None, noise_levels(steps, 3.0))
    assert torch.equal(out, clean)


def test_between_levels_the_noise_stays_and_its_share_falls():
    clean, noise = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    model, condition, window = ExactModel(clean), object(), object()
    denoise(model, noise, condition, window, noise_levels(4, 3.0))
    assert [asked[1] for asked in model.asked] == list(noise_levels(4, 3.0))
    for latents, level, *others in model.asked:
        torch.testing.assert_close(latents, (1 - level) * clean + level * noise, atol=1e-5, rtol=0)
        assert others == [condition, window]


def test_the_start_noise_is_left_as_it_was():
    clean, noise = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    before = noise.clone()
    denoise(ExactModel(clean), noise, None, None, noise_levels(3, 1.0))
    assert torch.equal(noise, before)


def test_noise_is_a_function_of_its_counters_alone():
    first = draw()
    for chunk in range(5):
        draw(chunk=chunk)
    torch.manual_seed(99)
    assert torch.equal(draw(), first)


def test_each_counter_gives_other_noise():
    counters = [{}, {"seed": 2}, {"rollout": 1}, {"chunk": 4}, {"step": 1}]
    draws = [draw(**changes).flatten()[:64] for changes in counters]
    # Swapped counters are other counters, too.
    draws.append(gaussian(SHAPE, seed=2, rollout=1, chunk=3).flatten()[:64])
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.6


def test_noise_is_standard_normal():
    sample = torch.cat([draw(chunk=chunk).flatten() for chunk in range(30)])
    assert sample.dtype == torch.float32
    assert abs(float(sample.mean())) < 0.01
    assert abs(float(sample.std()) - 1) < 0.01


def test_noise_is_the_same_on_every_machine():
    expected = [-0.28924983739852905, -0.6383583545684814, 0.014808973297476768, 0.24442806839942932]
    assert draw().flatten()[:4].tolist() == expected
