"""Density and coverage."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 2048


def density_coverage(
    generated: Tensor, reference: Tensor, *, neighbours: int
) -> tuple[float, float]:
    """How many balls of the reference hold a generated image, and how many balls hold any.

        density  = 1 / (k M) Σ_j Σ_i 1[Y_j ∈ B(X_i)],     coverage = 1 / N Σ_i 1[∃ j: Y_j ∈ B(X_i)]

    Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models", section 3;
    B(X_i) is open, as in the authors' code, and reaches to the k-th nearest neighbour of X_i.
    generated Y (M, D), reference X (N, D): float32; their device computes. Density in [0, N / k],
    coverage in [0, 1]; for equal distributions their expectations are 1 and (their Lemma 2)
    1 − (N − 1)···(N − k) / ((N + M − 1)···(N + M − k)), which is 1 − 2^−k for large N = M.
    """
    held = torch.zeros((), dtype=torch.int64, device=reference.device)
    covered = torch.zeros_like(held)
    for rows in reference.split(ROWS):
        # The nearest of the reference is the image itself.
        radius = torch.cdist(rows, reference).kthvalue(neighbours + 1).values
        inside = torch.cdist(rows, generated) < radius[:, None]
        held += inside.sum()
        covered += inside.any(1).sum()
    density = held.item() / (neighbours * len(generated))
    return density, covered.item() / len(reference)
