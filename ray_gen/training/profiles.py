"""Averages of weights by power functions, and any such average from snapshots of some of them
(Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3
and appendix C).

At time t the average of width σ weighs the weights of time τ by p(τ) = (γ + 1) τ^γ / t^(γ + 1), for
τ from 0 to t. Time counts images. σ is the standard deviation of p, relative to t:

    σ² = (γ + 1) / ((γ + 2)² (γ + 3))

So an average has the same shape at every time, and forgets the untrained start by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 1 / math.sqrt(12)
"""σ of γ = 0: all weights since the start count alike. A profile is narrower."""


def exponent_of(sigma: float) -> float:
    """γ of the profile of width `sigma`, which is above 0 and below `WIDEST`: the only root above 0
    of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻²."""
    inverse = sigma**-2
    root = 1 / sigma  # above the root; the cubic is convex there, so Newton's method comes down
    for _ in range(100):
        value = ((root + 7) * root + 16 - inverse) * root + 12 - inverse
        lower = root - value / ((3 * root + 14) * root + 16 - inverse)
        if lower >= root:
            break
        root = lower
    return root


def profile_decay(images: float, since: float, exponent: float) -> float:
    """Weight of the old average in an update that comes `since` images after the last one, after
    `images` images: (1 − since / images)^(γ + 1). The first update copies the weights.

    The updates multiply to the profile itself: with one every Δ images, the weights of update i of
    n weigh (i^(γ+1) − (i − 1)^(γ+1)) / n^(γ+1), the integral of p over their Δ images.
    """
    return (1 - since / images) ** (exponent + 1)


@dataclass(frozen=True)
class Profile:
    """An average of some width at some time."""

    sigma: float
    """Its width, relative to the time."""
    images: int
    """Its time."""


@dataclass(frozen=True)
class Combination:
    """A profile as a weighted sum of others."""

    weights: list[float]
    """They sum to 1. Some may be below 0."""
    error: float
    """‖sum − profile‖ / ‖profile‖, in [0, 1]: the norm is the root of the integral of the square
    over time."""


def combination(known: Sequence[Profile], wanted: Profile) -> Combination:
    """The sum of known profiles that is nearest to a wanted one: min ‖Σ xᵢ pᵢ − p‖² with Σ xᵢ = 1.

    Without the condition, x solves A x = b, where A holds the inner products of the known profiles
    and b those with the wanted one. The condition adds a multiple of A⁻¹ 1.
    """
    matrix = inner_products(known, known)
    target, ones = inner_products(known, [wanted])[:, 0], torch.ones(len(known)).double()
    # Unit diagonal: narrow profiles have large norms, and wide ones at late times small ones.
    scale = matrix.diagonal().rsqrt()
    right = torch.stack([target, ones], 1) * scale[:, None]
    free, along = (
        torch.linalg.solve(matrix * scale * scale[:, None], right) * scale[:, None]
    ).unbind(1)
    weights = free + along * (1 - free.sum()) / along.sum()
    size = inner_products([wanted], [wanted])[0, 0]
    square = weights @ matrix @ weights - 2 * weights @ target + size
    return Combination(weights.tolist(), math.sqrt(max(0.0, float(square / size))))


def inner_products(rows: Sequence[Profile], columns: Sequence[Profile]) -> Tensor:
    """∫ p q dτ of each profile p of the rows with each q of the columns: float64 (rows, columns).

    For s, t the earlier and the later time, and γ the exponent of the later profile, it is
    (γp + 1)(γq + 1) / (γp + γq + 1) · (s / t)^γ / t.
    """
    p, at_p = _numbers(rows)[..., None]
    q, at_q = _numbers(columns)[:, None]
    earlier, later = torch.minimum(at_p, at_q), torch.maximum(at_p, at_q)
    exponent = torch.where(at_p > at_q, p, q)
    return (p + 1) * (q + 1) / (p + q + 1) * (earlier / later) ** exponent / later


def _numbers(profiles: Sequence[Profile]) -> Tensor:
    """Exponents and times: float64 (2, profiles)."""
    exponents = [exponent_of(one.sigma) for one in profiles]
    times = [float(one.images) for one in profiles]
    return torch.tensor([exponents, times], dtype=torch.float64)
