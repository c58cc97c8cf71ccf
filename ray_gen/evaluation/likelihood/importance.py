"""Bounds on log p(x) from importance weights, and their conversion to bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_gen.core import Bounds, Networks
from ray_gen.noise import draw, key_of
from ray_gen.pixels import LEVELS


def bernoulli_bits(nats: float, dimensions: int) -> float:
    """-log2 P(x) / D: bits per pixel. nats: log P(x) of D = `dimensions` pixels that are 0 or 1, or
    whose levels have probabilities."""
    return -nats / (dimensions * math.log(2))


def gaussian_bits(nats: float, dimensions: int, width: float = 1.0, levels: int = LEVELS) -> float:
    """An upper bound on -log2 P(v) / D, for D = `dimensions` levels v in 0 ... L - 1, L = `levels`:
    256 of 8 bits, 65,536 of 16 bits.

    nats: the mean log-density of x = (v + u) / L · width with noise u, uniform on [0, 1)^D.
    log P(v) = log ∫ p(x(v, u)) du + D log(width / L) >= E_u log p(x) - D log(L / width): Theis
    et al. 2016, "A note on the evaluation of generative models", section 3.1. Without the noise, a
    density could be arbitrarily high at the L levels, and would bound no probability.
    """
    return -nats / (dimensions * math.log(2)) + math.log2(levels / width)


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
    """Three values per image, float64 (N,), in nats, from K = `samples` draws of z: the mean of
    log p(x|z), the mean of log p(z) - log q(z|x), and the logarithm of the mean weight,
    log 1/K Σ p(x, z_k) / q(z_k|x).

    images: (N, C, H, W), from `Bounds.observed`. labels: int64 (N,) or None. numbers: int64 (N,),
    the images' numbers in the split. at_once: samples of z in memory. Earlier samples leave only
    sums.
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
