"""Held-out images as a likelihood sees them, a function of (seed, number of the image)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ray_gen.core import Bounds, Noise
from ray_gen.noise import draw_one, key_of
from ray_gen.pixels import LEVELS, stretched, unit


@dataclass(frozen=True)
class HeldOutImages:
    """Some images, in the forms that scores are of."""

    numbers: Tensor
    """int64 (N,), in the split."""
    labels: Tensor | None
    grey: Tensor
    """bool (N,): has pixels between black and white."""
    unit: Tensor
    """In [0, 1]."""
    plain: Tensor
    """In the objective's range."""
    observed: Tensor
    """The pixels that the likelihood is of."""
    dequantised: Tensor | None
    """With uniform noise of one level, in the objective's range; None but for a Gaussian."""

    @classmethod
    def of(
        cls,
        objective: Bounds,
        levels_NHWC: Tensor,
        labels: Tensor | None,
        numbers: Tensor,
        seed: int,
        dtype: torch.dtype,
    ) -> HeldOutImages:
        """levels_NHWC: uint8; all on one device."""

        def drawn(noise: Noise, name: str) -> Tensor:
            return draw_one(noise, key_of(seed, "held out", name), numbers).to(dtype)

        levels = levels_NHWC.permute(0, 3, 1, 2)
        in_unit = unit(levels, dtype)
        plain = stretched(in_unit, objective.image_range)
        noise = objective.pixel_noise
        dequantised = None
        if objective.likelihood == "gaussian":
            uniform = drawn(Noise(tuple(levels.shape[1:]), "uniform"), "dequantisation")
            dequantised = stretched((levels.to(dtype) + uniform) / LEVELS, objective.image_range)
        return cls(
            numbers=numbers,
            labels=labels,
            grey=((levels > 0) & (levels < LEVELS - 1)).flatten(1).any(1),
            unit=in_unit,
            plain=plain,
            observed=objective.observed(plain, None if noise is None else drawn(noise, "pixels")),
            dequantised=dequantised,
        )
