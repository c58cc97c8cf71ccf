"""Styles of a generator (`ray_gen.core.Styled`) as latents: their name, their mean and spread over
the prior, and offsets from the mean in which images are projected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ray_gen.core import Networks, Objective, Styled
from ray_gen.sampling import latents_of

STYLES = "styles"
"""The name of styles (N, L, W) in a mapping of latents: {"styles": ...} stands for the latents of a
generator with styles."""

Space = Literal["z", "w", "w+"]
"""Where to look for an image. z: the latents. w: styles that differ from the mean style by the same
vector in all layers, as those of samples do. w+: styles of each layer on its own."""

DRAWS = 10_000
"""Of z, for the mean and the spread of styles (Karras et al. 2020, appendix D)."""
_NOISE, _QUIET = 0.05, 0.75
"""Strength of the noise, and the share of the steps after which there is none."""
_PART = 256


def styled(networks: Networks) -> Styled | None:
    """The network with styles, if there is one."""
    return next((one for one in networks.values() if isinstance(one, Styled)), None)


@torch.no_grad()
def moments(
    objective: Objective,
    generator: Styled,
    labels: Tensor | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, float]:
    """The mean style (L, W) and s, the standard deviation of a number of a style, over draws from
    the prior. σ_w of Karras et al. 2020, appendix D, is s √W.

    labels: of each of the `DRAWS` draws, as the networks get them. Sums are in float64.
    """
    name = next(iter(objective.latents))
    sums, squares = 0.0, 0.0
    for first in range(0, DRAWS, _PART):
        numbers = torch.arange(first, min(first + _PART, DRAWS), device=device)
        z = latents_of(objective.latents, seed, "project", numbers, dtype)[name]
        label = None if labels is None else labels[first : first + _PART]
        found = generator.styles(z, label, {}).double()
        sums, squares = sums + found.sum(0), squares + found.square().sum(0)
    assert isinstance(sums, Tensor) and isinstance(squares, Tensor)
    mean = sums / DRAWS
    variance = float((squares / DRAWS - mean.square()).mean())
    return mean.to(dtype), math.sqrt(max(variance, 0.0))


@dataclass(frozen=True)
class Offsets:
    """Styles w of N images as offsets u from the mean style μ, in standard deviations:
    w = μ + s u. So a step of Adam does not depend on the scale of styles, and u of a sample has
    numbers of size 1, like z."""

    mean: Tensor
    """(N, L, W)"""
    deviation: Tensor
    """s: (N, 1, 1)"""
    layers: int
    """In which u may differ: L of w+, 1 of w."""

    @classmethod
    def of(
        cls,
        objective: Objective,
        generator: Styled,
        labels: Tensor | None,
        space: Space,
        seed: int,
        like: Tensor,
    ) -> Offsets:
        """labels: of the images, each of which has the mean style of its own label. like: the
        images, (N, ...)."""
        count = len(like)
        if labels is None:
            kinds, of_image = [None], [0] * count
        else:
            kinds, inverse = labels.unique(dim=0, return_inverse=True)
            of_image = inverse.tolist()
        found: list[tuple[Tensor, float]] = []
        for kind in kinds:
            each = None if kind is None else kind.expand(DRAWS, *kind.shape)
            found.append(moments(objective, generator, each, seed, like.device, like.dtype))
        mean = torch.stack([found[kind][0] for kind in of_image])
        deviation = mean.new_tensor([found[kind][1] for kind in of_image])
        layers = mean.shape[1] if space == "w+" else 1
        return cls(mean, deviation[:, None, None], layers)

    def styles(self, offsets: Tensor) -> Tensor:
        """u (N, 1 or L, W) to w (N, L, W)."""
        return self.mean + self.deviation * offsets

    def nearest(self, styles: Tensor) -> Tensor:
        """w (N, L, W) to the u whose styles are nearest."""
        offsets = (styles - self.mean) / self.deviation.clamp_min(1e-12)
        return offsets if self.layers > 1 else offsets.mean(1, keepdim=True)

    @property
    def zero(self) -> Tensor:
        """u of the mean style."""
        return torch.zeros_like(self.mean[:, : self.layers])

    def noise_at(self, step: int, steps: int) -> float:
        """The standard deviation of the noise on u at a step: 0.05 √W t², where t falls from 1 to 0
        in the first three quarters of the steps. On w this is the 0.05 σ_w t² of Karras et al.
        2020, appendix D."""
        t = max(0.0, 1.0 - step / (_QUIET * steps))
        return _NOISE * math.sqrt(self.mean.shape[2]) * t**2


def are_styles(latents: Mapping[str, object]) -> bool:
    """Whether latents are styles."""
    return set(latents) == {STYLES}
