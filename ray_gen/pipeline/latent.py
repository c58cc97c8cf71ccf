"""Ways through latent space: pure functions of latents (N, *latent_shape), without a model.

They compute in float64 and return the type of their input, so that ends and centres are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.errors import Refused
from ray_gen.noise import draw_one, key_of


def truncated(z: Tensor, prior: Noise, truncation: float | None) -> Tensor:
    """Turns draws z from a prior into draws from the same prior under the condition |z| <=
    truncation.

    The truncation trick (Brock et al. 2019, BigGAN, section 3.1) trades variety for quality. The
    paper redraws the numbers outside. Here each number goes through the distribution function of
    the prior, then through the inverse of the truncated one. So the result is a continuous function
    of `truncation`, and equals z at infinity (or None). For a uniform prior on [-1, 1] this is a
    scaling by min(1, truncation). Distances count from the prior's mean.
    """
    if truncation is None:
        return z
    if not truncation > 0:
        raise Refused(
            f"truncation: {truncation:g} is not positive; set e.g. 0.5 to 2 for a normal prior, "
            "less than 1 for a uniform prior on [-1, 1], or None for no truncation"
        )
    if prior.distribution == "uniform":
        mean, half = (prior.low + prior.high) / 2, (prior.high - prior.low) / 2
        scale = min(1.0, truncation / half)
        return z if scale == 1.0 else ((z.double() - mean) * scale + mean).to(z.dtype)
    if math.isinf(truncation):
        return z
    # Uses the lower tail P(Z < -|z|), exact in float64, then the condition |Z| <= t.
    tail = torch.special.ndtr(-z.double().abs())
    cut = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64, device=z.device))
    size = -torch.special.ndtri(cut + tail * (1.0 - 2.0 * cut))
    return (size.clamp(0.0, truncation) * z.sign()).to(z.dtype)


def interpolated(first: Tensor, last: Tensor, steps: int, *, spherical: bool) -> Tensor:
    """`steps` latents from each of `first` to its partner in `last`, both ends included:
    two times (N, *shape) to (N, steps, *shape).

    spherical: the direction follows the great circle (slerp; Shoemake 1985, White 2016, section
    2.1) and the norm changes linearly. So no point has a norm that is rare under the prior: the
    middle of a straight line between two draws of N(0, I) is √2 times too short. The way is
    straight without `spherical`, and where no unique great circle exists (parallel or opposite
    vectors, or zero).
    """
    if steps < 2:
        raise Refused(f"steps: {steps} cannot hold both ends; take 2 or more")
    a, b = first.flatten(1).double()[:, None], last.flatten(1).double()[:, None]  # (N, 1, D)
    t = torch.linspace(0.0, 1.0, steps, dtype=torch.float64, device=a.device)[None, :, None]
    from_a, from_b = 1.0 - t, t
    if spherical:
        norm_a, norm_b = a.norm(dim=2, keepdim=True), b.norm(dim=2, keepdim=True)
        cosine = (a / norm_a * (b / norm_b)).sum(dim=2, keepdim=True)  # NaN for a zero vector
        angle = cosine.clamp(-1.0, 1.0).acos()
        norm = (1.0 - t) * norm_a + t * norm_b
        round_a = ((1.0 - t) * angle).sin() / angle.sin() * norm / norm_a
        round_b = (t * angle).sin() / angle.sin() * norm / norm_b
        one_circle = angle.sin() > 1e-6  # False for NaN
        from_a, from_b = (
            torch.where(one_circle, bent, straight)
            for bent, straight in ((round_a, from_a), (round_b, from_b))
        )
    way = from_a * a + from_b * b
    return way.reshape(len(first), steps, *first.shape[1:]).to(first.dtype)


def combined(plus: Sequence[Tensor], minus: Sequence[Tensor]) -> Tensor:
    """Σ mean(group in `plus`) - Σ mean(group in `minus`): (1, *shape). Each group is (N, *shape).

    Vector arithmetic on means of a few latents each (Radford et al. 2016, DCGAN, section 6.3.2):
    the paper found it unstable on single latents.
    """
    if not plus and not minus:
        raise Refused("plus, minus: no group of latents to add or subtract; give at least one")
    means = [group.double().mean(dim=0, keepdim=True) for group in (*plus, *minus)]
    signs = [1.0] * len(plus) + [-1.0] * len(minus)
    total = torch.stack([sign * mean for sign, mean in zip(signs, means, strict=True)]).sum(dim=0)
    return total.to((plus or minus)[0].dtype)


def traversed(base: Tensor, dimensions: Sequence[int], extent: float, steps: int) -> Tensor:
    """For each dimension, `steps` copies of `base` (1, *shape): (dimensions, steps, *shape). The
    number at that dimension is moved by -extent in the first copy, up to extent in the last. With
    an odd number of steps, the middle copy is `base` itself."""
    if steps < 2:
        raise Refused(f"steps: {steps} cannot hold both ends; take 2 or more")
    if not math.isfinite(extent):
        raise Refused(f"extent: {extent} is not finite; set e.g. 3 for a normal prior")
    size = base[0].numel()
    for dimension in dimensions:
        if not 0 <= dimension < size:
            raise Refused(
                f"dimension: {dimension} does not exist; this model has {size} dimensions, 0 to "
                f"{size - 1}"
            )
    # Not linspace: its middle would be 6e-17 instead of 0.
    halves = torch.arange(1 - steps, steps, 2, dtype=torch.float64, device=base.device)
    moves = halves / (steps - 1) * extent
    way = base.flatten(1).double().repeat(len(dimensions), steps, 1).reshape(-1, steps, size)
    for row, dimension in enumerate(dimensions):
        way[row, :, dimension] += moves
    return way.reshape(len(dimensions), steps, *base.shape[1:]).to(base.dtype)


def neighbourhood(z: Tensor, seed: int, scale: float = 0.25) -> Tensor:
    """`z` (1, *shape) in the middle of eight neighbours: (9, *shape). Each number of a neighbour is
    moved by U[-scale, scale).

    Radford et al. 2016, section 6.3.2, show in this way that the result of vector arithmetic is no
    accident.
    """
    spec = Noise(tuple(z.shape[1:]), "uniform", -scale, scale)
    moves = draw_one(spec, key_of(seed, "neighbourhood"), torch.arange(8))
    around = z + moves.to(z)
    return torch.cat([around[:4], z, around[4:]])
