"""KID of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.metrics.kid import Kid

if TYPE_CHECKING:
    from torch import Tensor


class Rkid(Kid):
    """`rkid`: the kernel distance of features between reconstructions and the same crops of the
    held-out images that they were made from, see `paired_kernel_distance`. It has the settings of
    `kid`."""

    scores = {"rkid": "lower"}
    sides = ("reconstructed", "originals")
    of_samples = False
    of_reconstructions = True

    def distance(
        self, first: Tensor, second: Tensor, *, subsets: int, subset_size: int, seed: int
    ) -> tuple[float, float]:
        """Of features of pairs: `paired_kernel_distance`."""
        return paired_kernel_distance(
            first, second, subsets=subsets, subset_size=subset_size, seed=seed
        )

    def protocol(self) -> Mapping[str, Any]:
        """As of `kid`, and what is left out."""
        return {**super().protocol(), "estimator": "without an image and its own reconstruction"}


def paired_kernel_distance(
    reconstructed: Tensor, originals: Tensor, *, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """The unbiased MMD² of features of pairs, under KID's kernel k(x, y) = (xᵀy / D + 1)³: mean
    and standard deviation over random subsets, which hold both images of a pair.

        1 / (m (m − 1)) Σ_{i ≠ j} k(xᵢ, xⱼ) + k(yᵢ, yⱼ) − k(xᵢ, yⱼ) − k(xⱼ, yᵢ)

    Gretton et al. 2012, "A kernel two-sample test", equation 4. The estimator of two independent
    sets also compares an image with its own reconstruction. These are alike, so it is too small, by
    2 / N times E k(xᵢ, yᵢ) − E k(xᵢ, yⱼ). reconstructed, originals: float32 (N, D) on the CPU, in
    pairs of rows. Lower is better; 0 for equal images.
    """
    import torch

    count, size = originals.shape
    generator = torch.Generator().manual_seed(seed % 2**63)
    found: list[Tensor] = []
    for _ in range(1 if subset_size == count else subsets):
        some = torch.randperm(count, generator=generator)[:subset_size]
        x, y = reconstructed[some].double(), originals[some].double()
        kernels = (torch.stack([x @ x.T, y @ y.T, x @ y.T]) / size + 1) ** 3
        apart = kernels.sum((1, 2)) - kernels.diagonal(dim1=1, dim2=2).sum(1)
        found.append((apart[0] + apart[1] - 2 * apart[2]) / (subset_size * (subset_size - 1)))
    values = torch.stack(found)
    return values.mean().item(), values.std(correction=0).item()
