"""How close reconstructions are to their images."""

from __future__ import annotations

from torch import Tensor


def mean_squared_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Σ (x - y)² / CHW of each image: (N, C, H, W) in [0, 1] to float64 (N,) in [0, 1]."""
    return (ours.double() - theirs.double()).square().flatten(1).mean(1)
