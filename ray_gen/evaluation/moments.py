"""Mean and covariance of features: streamed in float64 on the device. No feature is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.distributed import World


class Moments:
    """Count, mean μ (D,) and scatter Σ (x − μ)(x − μ)ᵀ (D, D) of the vectors seen so far.

    Two sets are merged about their own means (Chan, Golub and LeVeque 1983, "Algorithms for
    computing the sample variance", the pairwise update). Raw sums of squares would lose digits if
    the features lie far from zero.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        """size: D. Nothing has been seen yet."""
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(size, size, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, vectors_ND: Tensor) -> Moments:
        """The moments of one whole set of vectors, (N, D)."""
        moments = cls(vectors_ND.shape[1], vectors_ND.device)
        moments.add(vectors_ND)
        return moments

    @property
    def covariance(self) -> Tensor:
        """Unbiased, float64 (D, D). Needs at least two vectors."""
        return self.scatter / (self.count - 1)

    def add(self, vectors_ND: Tensor) -> None:
        """Adds a batch: one matrix product, without waiting for the device."""
        vectors = vectors_ND.double()
        mean = vectors.mean(0)
        total = self.count + len(vectors)
        apart = mean - self.mean
        between = apart * (self.count * len(vectors) / total) ** 0.5
        rows = torch.cat([vectors - mean, between[None]])
        self.scatter.addmm_(rows.T, rows)
        self.mean += apart * (len(vectors) / total)
        self.count = total

    def combine(self, world: World) -> None:
        """Merges the moments of all ranks, with one sum over ranks.

        The scatters add up. Each rank also writes its count and mean into its own row of the same
        buffer: the scatter between the means needs them. Collective: every rank, same order.
        """
        if world.size == 1:
            return
        size = len(self.mean)
        flat = torch.zeros(
            size * size + world.size * (size + 1), dtype=torch.float64, device=world.device
        )
        scatter = flat[: size * size].view(size, size)
        table = flat[size * size :].view(world.size, size + 1)
        scatter.copy_(self.scatter)
        table[world.rank, 0] = self.count
        table[world.rank, 1:] = self.mean
        world.sum_(flat)
        counts, means = table[:, :1], table[:, 1:]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        between = (means - mean) * counts.sqrt()
        self.count = int(total.item())
        self.mean = mean
        self.scatter = scatter.addmm(between.T, between)
