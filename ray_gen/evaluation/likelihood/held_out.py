"""Held-out images in the forms that the scores need. All noise depends on (seed, image number)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ray_gen.core import DENSITIES, Bounds, Noise
from ray_gen.noise import draw_one, key_of
from ray_gen.pixels import levels_of, stretched, unit


@dataclass(frozen=True)
class HeldOutImages:
    """Some held-out images in all forms. All tensors are on one device."""

    numbers: Tensor
    """int64 (N,): numbers of the images in the split."""
    labels: Tensor | None
    """int64 (N,). None: the model takes no labels."""
    grey: Tensor
    """bool (N,): whether an image has pixels that are neither black nor white."""
    unit: Tensor
    """(N, C, H, W) in [0, 1]."""
    plain: Tensor
    """(N, C, H, W) in the objective's range."""
    observed: Tensor
    """(N, C, H, W): the pixels that the likelihood describes, e.g. binarised."""
    dequantised: Tensor | None
    """(N, C, H, W) in the objective's range, with uniform noise one level wide. None unless the
    likelihood is a density, and for maps: they have no levels."""

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
        """levels_NHWC: stored images (N, H, W, C). labels, numbers: int64 (N,). All on one device.
        dtype: type of the images."""

        def drawn(noise: Noise, name: str) -> Tensor:
            return draw_one(noise, key_of(seed, "held out", name), numbers).to(dtype)

        levels, count = levels_NHWC.permute(0, 3, 1, 2), levels_of(levels_NHWC.dtype)
        in_unit = unit(levels, dtype)
        plain = stretched(in_unit, objective.image_range)
        noise = objective.pixel_noise
        dequantised = None
        if objective.likelihood in DENSITIES and count is not None:
            uniform = drawn(Noise(tuple(levels.shape[1:]), "uniform"), "dequantisation")
            dequantised = stretched((levels.to(dtype) + uniform) / count, objective.image_range)
        return cls(
            numbers=numbers,
            labels=labels,
            grey=((in_unit > 0) & (in_unit < 1)).flatten(1).any(1),
            unit=in_unit,
            plain=plain,
            observed=objective.observed(plain, None if noise is None else drawn(noise, "pixels")),
            dequantised=dequantised,
        )
