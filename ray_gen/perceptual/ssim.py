"""Structural similarity, at one scale and at several: a distance without a trained network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_gen.precision import without_autocast

WINDOW = 11
"""Side of the Gaussian window in pixels."""
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
"""(K L)² for pixels in [0, 1], so L = 1."""
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales, the finest first (Wang, Simoncelli and Bovik 2003, section 3.2)."""
LEAST_SIDE_OF_SCALE = 16
"""A scale counts if the shorter side has so many pixels at it. So images below 32 pixels have one
scale, and images from 256 pixels on all five."""
_LEAST = 0.01
"""Below this contrast and structure, the logarithm goes on as its tangent."""


class SsimDistance(nn.Module):
    """1 - MS-SSIM(x, y) of images in [-1, 1], in [0, 2]: 0 for equal images. All channels count
    alike, opacity too. For training without a perceptual network."""

    description = (
        "ssim, 1 - MS-SSIM with the weights of 2003 shared out among the scales that fit "
        f"(the coarsest has at least {LEAST_SIDE_OF_SCALE} pixels a side)"
    )

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N,). Gradients reach only the second."""
        x, y = (0.5 * (each + 1.0) for each in (images.detach(), again))
        return 1.0 - multiscale_similarity(x, y)


def scales_of(height: int, width: int) -> tuple[float, ...]:
    """The weights of the scales that fit, the finest first. Their sum is 1."""
    halvings = max(0, (min(height, width) // LEAST_SIDE_OF_SCALE).bit_length() - 1)
    weights = WEIGHTS[: halvings + 1]
    return tuple(weight / sum(weights) for weight in weights)


def multiscale_similarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """MS-SSIM of each pair of images:

        l_M^w_M Π_j cs_j^w_j,    l = (2 μ ν + C1) / (μ² + ν² + C1),
                                 cs = (2 σ_xy + C2) / (σ_x² + σ_y² + C2)

    Wang, Simoncelli and Bovik 2003, "Multiscale structural similarity for image quality
    assessment", equation 7. At scale j the images are means of 2^(j-1) x 2^(j-1) pixels, cs_j is
    the mean over windows and channels, and at the coarsest scale M it is the mean of l cs. The
    weights w_j are those of `scales_of`. (N, C, H, W) in [0, 1] to (N,), at most 1, in float32 at
    least. With one scale it is SSIM, which may be negative. With more, a factor below 0.01 goes
    towards 0 by the tangent of its logarithm: so it stays positive, and its gradient finite.
    """
    weights = scales_of(*ours.shape[2:])
    if len(weights) == 1:
        return structural_similarity(ours, theirs, window_for(*ours.shape[2:]))
    logarithm = None
    for number, weight in enumerate(weights):
        if number:
            ours, theirs = F.avg_pool2d(ours, 2), F.avg_pool2d(theirs, 2)
        luminance, contrast = _maps(ours, theirs, WINDOW)
        last = number == len(weights) - 1
        factor = (luminance * contrast if last else contrast).mean((1, 2, 3))
        term = weight * (factor.clamp(min=_LEAST).log() + (factor / _LEAST - 1.0).clamp(max=0.0))
        logarithm = term if logarithm is None else logarithm + term
    assert logarithm is not None
    return logarithm.exp()


def structural_similarity(ours: Tensor, theirs: Tensor, window: int = WINDOW) -> Tensor:
    """SSIM of each pair of images: the mean over channels and over all windows inside the image.

        (2 μ ν + C1) (2 σ_xy + C2) / ((μ² + ν² + C1) (σ_x² + σ_y² + C2))

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to
    structural similarity", equation 13: Gaussian windows of 11 x 11 with σ = 1.5, C1 = 0.01²,
    C2 = 0.03². Nothing is padded, so pixels at the borders lie in fewer windows. (N, C, H, W) in
    [0, 1] to (N,) in [-1, 1], higher is better, 1 for equal images. It computes in the type of the
    images, at least in float32; E[x²] - μ² loses digits, so a metric passes float64. window: side
    in pixels. Raises ValueError for smaller images.
    """
    luminance, contrast = _maps(ours, theirs, window)
    return (luminance * contrast).mean((1, 2, 3))


def window_for(height: int, width: int) -> int:
    """Side of the window: 11, or the largest odd number that fits into smaller images."""
    return min(WINDOW, min(height, width) - 1 + min(height, width) % 2)


def _maps(ours: Tensor, theirs: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of every window: (N, C, h, w) each."""
    height, width = ours.shape[-2:]
    if min(height, width) < window:
        raise ValueError(
            f"SSIM: images of {height} x {width} are smaller than its window, {window} x {window}"
        )
    dtype = torch.promote_types(torch.promote_types(ours.dtype, theirs.dtype), torch.float32)
    with without_autocast(ours):
        x, y = (images.to(dtype).flatten(0, 1)[:, None] for images in (ours, theirs))
        moments = _blurred(torch.cat([x, y, x * x, y * y, x * y], dim=1), window)
    mean_x, mean_y, xx, yy, xy = moments.unflatten(0, ours.shape[:2]).unbind(2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    covariance, variances = xy - mean_x * mean_y, xx - mean_x**2 + yy - mean_y**2
    return luminance, (2 * covariance + _C2) / (variances + _C2)


def _blurred(images: Tensor, window: int) -> Tensor:
    """Gaussian mean of every window inside the image: (N, C, H, W) to (N, C, H - window + 1,
    W - window + 1)."""
    distance = torch.arange(window, dtype=images.dtype, device=images.device) - window // 2
    weights = torch.exp(-0.5 * (distance / _SIGMA).square())
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, window)
    rows = F.conv2d(images, weights, groups=images.shape[1])
    return F.conv2d(rows, weights.mT, groups=images.shape[1])
