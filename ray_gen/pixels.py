"""Pixels in their three forms: the 256 levels of a file, [0, 1], and the range of an objective."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256
"""Number of values that a pixel in a file can have: uint8, 0 to 255."""


def to_range(
    images_NHWC: Tensor, image_range: tuple[float, float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 (N, H, W, C) to floats (N, C, H, W), channels-last: 0 becomes `low`, 255 `high`."""
    low, high = image_range
    floats = images_NHWC.permute(0, 3, 1, 2).to(dtype)
    return floats.mul_((high - low) / 255.0).add_(low) if low else floats.mul_(high / 255.0)


def unit(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels 0 to 255 to [0, 1], of the same shape."""
    return levels.to(dtype) / (LEVELS - 1)


def stretched(images: Tensor, image_range: tuple[float, float]) -> Tensor:
    """[0, 1] to [low, high], of the same shape."""
    low, high = image_range
    return images * (high - low) + low


def unstretched(images: Tensor, image_range: tuple[float, float]) -> Tensor:
    """[low, high] to [0, 1], of the same shape."""
    low, high = image_range
    return images.sub(low).mul(1 / (high - low))


def quantised(images: Tensor) -> Tensor:
    """[0, 1] to uint8 on the same device, as an image file would hold them.

    Clamped and rounded to the nearest of 256 levels, never stretched to the range that a sample
    happens to have.
    """
    return images.detach().float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
