"""Structural similarity of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.pairs import PairMetric
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Ssim(PairMetric[Settings]):
    """`ssim`: the mean over images of `perceptual.ssim.structural_similarity`, at one scale."""

    scores = {"ssim": "higher"}

    def of_pairs(self, originals: Tensor, reconstructed: Tensor) -> Tensor:
        """In [-1, 1], float64 (N,)."""
        import torch

        from ray_gen.perceptual.ssim import structural_similarity, window_for
        from ray_gen.pixels import unit

        x, y = (unit(levels, torch.float64) for levels in (originals, reconstructed))
        return structural_similarity(x, y, window_for(*x.shape[2:]))

    def protocol(self) -> Mapping[str, Any]:
        """The window."""
        from ray_gen.perceptual.ssim import window_for

        side = window_for(*self.given.shape_of("originals")[1:])
        return {"window": f"{side} x {side}, Gaussian, sigma 1.5, inside the image; one scale"}
