"""The distance of pixels."""

from __future__ import annotations

from torch import Tensor, nn


class L1Distance(nn.Module):
    """mean |x - y| over channels and pixels."""

    description = "l1, the mean absolute difference of pixels"

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        """(N, C, H, W) twice to (N,). Gradients reach only the second."""
        return (images.detach() - again).abs().flatten(1).mean(1)
