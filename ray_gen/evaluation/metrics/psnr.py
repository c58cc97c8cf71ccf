"""Peak signal-to-noise ratio of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.pairs import PairMetric
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

MOST = 100.0
"""dB of a reconstruction that equals its image. Without a bound it would be infinite."""


class Psnr(PairMetric[Settings]):
    """`psnr`: the mean over images of -10 log10 of the mean squared difference."""

    scores = {"psnr": "higher"}

    def of_pairs(self, originals: Tensor, reconstructed: Tensor) -> Tensor:
        """In dB, float64 (N,)."""
        import torch

        from ray_gen.pixels import unit

        x, y = (unit(levels, torch.float64) for levels in (originals, reconstructed))
        return signal_to_noise(x, y)

    def protocol(self) -> Mapping[str, Any]:
        """Unit, and what is averaged."""
        value = f"mean over images of the ratio of each image, at most {MOST:g}"
        return {"unit": "dB", "value": value}


def signal_to_noise(ours: Tensor, theirs: Tensor) -> Tensor:
    """-10 log10(mean (x - y)²) of each pair, (N, C, H, W) in [0, 1] to (N,), in dB. Higher is
    better; 100 for equal images. The mean is over channels and pixels. Papers average these values
    over images; a ratio of the mean of all errors is smaller."""
    errors = (ours - theirs).square().flatten(1).mean(1)
    return -10 * errors.clamp(min=10 ** (-MOST / 10)).log10()
