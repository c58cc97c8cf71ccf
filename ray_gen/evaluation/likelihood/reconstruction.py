"""How close reconstructions are to their images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
"""Side of the window of SSIM in pixels. Smaller images have no SSIM."""
_SIGMA = 1.5


def mean_squared_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Σ (x - y)² / CHW of each image: (N, C, H, W) in [0, 1] to float64 (N,) in [0, 1]."""
    return (ours.double() - theirs.double()).square().flatten(1).mean(1)


def structural_similarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """SSIM of each pair of images: the mean over channels and over all windows inside the image.

        (2 μ ν + C1) (2 σ_xy + C2) / ((μ² + ν² + C1) (σ_x² + σ_y² + C2))

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to
    structural similarity", equation 13: Gaussian windows of 11 x 11 with σ = 1.5, C1 = 0.01²,
    C2 = 0.03². (N, C, H, W) in [0, 1] to float64 (N,) in [-1, 1], higher is better, 1 for equal
    images. float64, because E[x²] - μ² loses digits. Raises ValueError for sides below 11.
    """
    height, width = ours.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(
            f"SSIM: images of {height} x {width} are smaller than its window, {WINDOW} x {WINDOW}"
        )
    x, y = (images.double().flatten(0, 1)[:, None] for images in (ours, theirs))
    moments = _blurred(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, xx, yy, xy = moments.unbind(1)
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    covariance, variances = xy - mean_x * mean_y, xx - mean_x**2 + yy - mean_y**2
    similarity = luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)
    return similarity.unflatten(0, ours.shape[:2]).flatten(1).mean(1)


def _blurred(images: Tensor) -> Tensor:
    """Gaussian mean of every window inside the image: (N, C, H, W) to (N, C, H - 10, W - 10)."""
    distance = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (distance / _SIGMA).square())
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(images, weights, groups=images.shape[1])
    return F.conv2d(rows, weights.mT, groups=images.shape[1])
