"""Ways through latent space, as pure functions of latents (N, *latent_shape); no model takes part.

They compute in float64 and give the type that they are given, so that ends and centres are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.errors import Refused
from ray_gen.noise import draw, key_of


def truncated(z: Tensor, prior: Noise, truncation: float | None) -> Tensor:
    """Draws from a prior to draws from the same prior given |z| <= truncation.

    The truncation trick (Brock et al. 2019, BigGAN, section 3.1) trades variety for quality. The
    paper draws again what lies outside; here each number goes through the distribution function of
    the prior and the inverse of the truncated one, so that z is a continuous function of
    `truncation`, and itself at infinity (or None). For a uniform prior on [-1, 1] this is a scaling
    by min(1, truncation). Distances count from the prior's mean.
    """
    if truncation is None:
        return z
    if not truncation > 0:
        raise Refused(
            f"truncation: {truncation:g} is not positive; 0.5 to 2 are usual for a normal prior, "
            "below 1 for a uniform one on [-1, 1], and None truncates nothing"
        )
    if prior.distribution == "uniform":
        mean, half = (prior.low + prior.high) / 2, (prior.high - prior.low) / 2
        scale = min(1.0, truncation / half)
        return z if scale == 1.0 else ((z.double() - mean) * scale + mean).to(z.dtype)
    if math.isinf(truncation):
        return z
    # By the lower tail, which float64 holds to the last digit: P(Z < -|z|), then among |Z| <= t.
    tail = torch.special.ndtr(-z.double().abs())
    cut = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64, device=z.device))
    size = -torch.special.ndtri(cut + tail * (1.0 - 2.0 * cut))
    return (size.clamp(0.0, truncation) * z.sign()).to(z.dtype)


def interpolated(first: Tensor, last: Tensor, steps: int, *, spherical: bool) -> Tensor:
    """`steps` latents from each of `first` to its partner in `last`, both ends included:
    two times (N, *shape) to (N, steps, *shape).

    spherical: the direction along the great circle (slerp; Shoemake 1985, White 2016, section 2.1)
    and the norm linearly, so that no point on the way has a norm that the prior hardly knows: the
    middle of a straight line between two draws of N(0, I) is √2 times too short. Where there is no
    one great circle (parallel or opposite vectors, or zero) and without `spherical`: straight.
    """
    if steps < 2:
        raise Refused(f"steps: {steps} cannot hold both ends; take 2 or more")
    a, b = first.flatten(1).double()[:, None], last.flatten(1).double()[:, None]  # (N, 1, D)
    t = torch.linspace(0.0, 1.0, steps, dtype=torch.float64, device=a.device)[None, :, None]
    from_a, from_b = 1.0 - t, t
    if spherical:
        norm_a, norm_b = a.norm(dim=2, keepdim=True), b.norm(dim=2, keepdim=True)
        cosine = (a / norm_a * (b / norm_b)).sum(dim=2, keepdim=True)  # NaN for zero
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
    """The sum of the means of the groups in `plus` less that of those in `minus`: (1, *shape).

    Vector arithmetic on means of a few latents each (Radford et al. 2016, DCGAN, section 6.3.2):
    single ones were unstable. Each group is (N, *shape).
    """
    if not plus and not minus:
        raise Refused("plus, minus: no group of latents to add or subtract; give at least one")
    means = [group.double().mean(dim=0, keepdim=True) for group in (*plus, *minus)]
    signs = [1.0] * len(plus) + [-1.0] * len(minus)
    total = torch.stack([sign * mean for sign, mean in zip(signs, means, strict=True)]).sum(dim=0)
    return total.to((plus or minus)[0].dtype)


def traversed(base: Tensor, dimensions: Sequence[int], extent: float, steps: int) -> Tensor:
    """For each dimension, `steps` copies of `base` (1, *shape) with that number moved by -extent to
    extent: (dimensions, steps, *shape). An odd number of steps has `base` itself in its middle."""
    if steps < 2:
        raise Refused(f"steps: {steps} cannot hold both ends; take 2 or more")
    if not math.isfinite(extent):
        raise Refused(f"extent: {extent} is no distance; 3 is usual for a normal prior")
    size = base[0].numel()
    for dimension in dimensions:
        if not 0 <= dimension < size:
            raise Refused(
                f"dimension: {dimension} is none of this model's, which has {size}, 0 to {size - 1}"
            )
    # Not linspace, whose middle is 6e-17 where it should be 0.
    halves = torch.arange(1 - steps, steps, 2, dtype=torch.float64, device=base.device)
    moves = halves / (steps - 1) * extent
    way = base.flatten(1).double().repeat(len(dimensions), steps, 1).reshape(-1, steps, size)
    for row, dimension in enumerate(dimensions):
        way[row, :, dimension] += moves
    return way.reshape(len(dimensions), steps, *base.shape[1:]).to(base.dtype)


def neighbourhood(z: Tensor, seed: int, scale: float = 0.25) -> Tensor:
    """One latent, `z` (1, *shape), in the middle of eight whose numbers are moved by
    U[-scale, scale): (9, *shape).

    How Radford et al. 2016, section 6.3.2, show that the result of an arithmetic is no accident.
    """
    spec = Noise(tuple(z.shape[1:]), "uniform", -scale, scale)
    step, numbers = torch.zeros(1, dtype=torch.int64), torch.arange(8)
    around = z + draw(spec, key_of(seed, "neighbourhood"), step, numbers)[0].to(z)
    return torch.cat([around[:4], z, around[4:]])
