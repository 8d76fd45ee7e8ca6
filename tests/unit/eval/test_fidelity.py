import numpy as np
import pytest

from worldkv.eval.fidelity import PSNR_CEILING_DB, psnr, ssim


@pytest.fixture
def frames() -> np.ndarray:
    """Three smooth pictures, none alike."""
    y, x = np.mgrid[0:24, 0:32] / 8
    waves = [np.sin(x * f + c) + np.cos(y * (f + 1) - c) for f in (1, 2, 3) for c in range(3)]
    return np.asarray((np.array(waves).reshape(3, 3, 24, 32).transpose(0, 2, 3, 1) + 2) / 4 * 255, np.uint8)


def noisy(frames: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, frames.shape)
    return np.clip(frames + noise, 0, 255).round().astype(np.uint8)


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One frame by the formula of the paper: every 11 x 11 place by itself, float64."""
    place = np.arange(11) - 5
    tap = np.exp(-(place**2) / (2 * 1.5**2))
    weight = np.outer(tap, tap) / np.outer(tap, tap).sum()
    values = []
    for colour in range(3):
        x, y = a[..., colour] / 255.0, b[..., colour] / 255.0
        for row in range(x.shape[0] - 10):
            for column in range(x.shape[1] - 10):
                p, q = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
                mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
                var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
                covariance = (weight * (p - mean_p) * (q - mean_q)).sum()
                luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
                values.append(luminance * (2 * covariance + 9e-4) / (var_p + var_q + 9e-4))
    return float(np.mean(values))


def test_a_frame_equals_itself_completely(frames):
    assert psnr(frames, frames).tolist() == [PSNR_CEILING_DB] * 3
    np.testing.assert_allclose(ssim(frames, frames), 1, atol=1e-6)


@pytest.mark.parametrize(("off", "decibel"), [(255, 0.0), (51, 13.9794), (1, 48.1308)])
def test_psnr_of_a_constant_difference_is_what_the_formula_says(off, decibel):
    black = np.zeros((2, 12, 12, 3), np.uint8)
    np.testing.assert_allclose(psnr(black + np.uint8(off), black), decibel, atol=1e-3)


def test_psnr_stays_below_its_ceiling():
    truth = np.zeros((1, 80, 80, 3), np.uint8)
    almost = truth.copy()
    almost[0, 0, 0, 0] = 1
    assert psnr(almost, truth).tolist() == [PSNR_CEILING_DB]


def test_ssim_of_two_flat_pictures_is_their_luminance_term():
    dark, bright = np.full((1, 12, 12, 3), 51, np.uint8), np.full((1, 12, 12, 3), 204, np.uint8)
    np.testing.assert_allclose(ssim(dark, bright), (2 * 0.2 * 0.8 + 1e-4) / (0.04 + 0.64 + 1e-4), atol=1e-4)


@pytest.mark.parametrize("sigma", [3, 20, 80])
def test_ssim_equals_a_straightforward_float64_implementation(frames, sigma):
    other = noisy(frames, sigma)
    expected = [reference_ssim(a, b) for a, b in zip(frames, other, strict=True)]
    np.testing.assert_allclose(ssim(frames, other), expected, atol=2e-5)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_fidelity_is_symmetric(frames, measure):
    other = noisy(frames, 25)
    np.testing.assert_allclose(measure(frames, other), measure(other, frames), rtol=1e-5)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_fidelity_falls_as_noise_grows(frames, measure):
    values = np.stack([measure(noisy(frames, sigma), frames) for sigma in (2, 5, 12, 30, 75)])
    assert (np.diff(values, axis=0) < 0).all()


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_each_frame_is_measured_by_itself(frames, measure):
    other = frames.copy()
    other[1] = noisy(frames, 40)[1]
    together, equal = measure(frames, other), measure(frames, frames)
    assert together[1] < equal[1]
    np.testing.assert_array_equal(together[[0, 2]], equal[[0, 2]])


def test_ssim_punishes_lost_structure_that_psnr_forgives(frames):
    shifted = np.clip(frames.astype(int) + 12, 0, 255).astype(np.uint8)
    grainy = noisy(frames, 12)
    assert psnr(shifted, frames)[0] < psnr(grainy, frames)[0] + 1
    assert ssim(shifted, frames)[0] > ssim(grainy, frames)[0] + 0.1
