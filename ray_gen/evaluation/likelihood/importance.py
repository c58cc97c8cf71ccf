"""Bounds on log p(x) from importance weights, and what they are in bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_gen.core import Bounds, Networks
from ray_gen.noise import draw, key_of
from ray_gen.pixels import LEVELS


def bernoulli_bits(nats: float, dimensions: int) -> float:
    """-log2 P(x) / D for log P(x) in nats of D pixels that are 0 or 1."""
    return -nats / (dimensions * math.log(2))


def gaussian_bits(nats: float, dimensions: int, width: float = 1.0) -> float:
    """-log2 P(v) / D at most, for the mean log-density in nats of x = (v + u) / 256 · width, u
    uniform on [0, 1)^D, with v in 0 ... 255.

    log P(v) = log ∫ p(x(v, u)) du + D log(width / 256) >= E_u log p(x) - D log(256 / width): Theis
    et al. 2016, "A note on the evaluation of generative models", section 3.1. Without the noise a
    density may be as high as one likes at 256 points, and says nothing of probabilities.
    """
    return -nats / (dimensions * math.log(2)) + math.log2(LEVELS / width)


def importance_weighted(
    objective: Bounds,
    networks: Networks,
    images: Tensor,
    labels: Tensor | None,
    numbers: Tensor,
    *,
    samples: int,
    at_once: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over K = `samples` z of log p(x|z) and of log p(z) - log q(z|x), and the logarithm of
    the mean weight, log 1/K Σ p(x, z_k) / q(z_k|x): each float64 (N,), in nats.

    images: (N, C, H, W), as observed; numbers: int64 (N,), theirs in the split. `at_once` samples
    are in memory; the logarithm of the sum of those before is all that is kept of them.
    """
    likelihood = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    ratio, total = torch.zeros_like(likelihood), torch.full_like(likelihood, -math.inf)
    key = key_of(seed, "held out", "epsilon")
    for first in range(0, samples, at_once):
        steps = torch.arange(first, min(samples, first + at_once), device=images.device)
        epsilon = draw(objective.posterior_noise, key, steps, numbers).to(images.dtype)
        parts = objective.log_weights(networks, images, labels, epsilon)
        likelihood += parts[0].sum(0)
        ratio += parts[1].sum(0)
        total = torch.logaddexp(total, (parts[0] + parts[1]).logsumexp(0))
    return likelihood / samples, ratio / samples, total - math.log(samples)
