"""PSNR and SSIM of uint8 video frames, per frame. Computed on raw frames, never on a decoded video.

Shapes: F video frames, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

# An identical frame would be infinitely good; 60 dB is beyond what eyes or eight bits can tell.
PSNR_CEILING_DB = 60.0
# Wang et al. 2004: an 11-tap Gaussian window of 1.5 pixels, and the two constants that keep flat areas stable.
SSIM_TAPS, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def psnr(frames_FHWC: NDArray[np.uint8], truth_FHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """dB per frame, [F], at most PSNR_CEILING_DB."""
    error_F = ((frames_FHWC.astype(np.float32) - truth_FHWC.astype(np.float32)) / 255) ** 2
    mean_F = error_F.mean(axis=(1, 2, 3), dtype=np.float64)
    floor = 10 ** (-PSNR_CEILING_DB / 10)
    return np.asarray(-10 * np.log10(np.maximum(mean_F, floor)), np.float32)


def ssim(frames_FHWC: NDArray[np.uint8], truth_FHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Structural similarity per frame, [F]: Gaussian window, mean over colours and the pixels it fits around."""
    x, y = (torch.from_numpy(a).permute(0, 3, 1, 2).float() / 255 for a in (frames_FHWC, truth_FHWC))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return np.asarray((luminance * structure).mean((1, 2, 3)).numpy(), np.float32)


def _blur(x_FCHW: Tensor) -> Tensor:
    place = torch.arange(SSIM_TAPS, dtype=torch.float32) - SSIM_TAPS // 2
    weight = torch.exp(-(place**2) / (2 * SSIM_SIGMA**2))
    weight = (weight / weight.sum()).repeat(x_FCHW.shape[1], 1, 1, 1)
    across = fn.conv2d(x_FCHW, weight, groups=x_FCHW.shape[1])
    return fn.conv2d(across, weight.transpose(2, 3), groups=x_FCHW.shape[1])
