"""Density and coverage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from ray_gen.evaluation.metric import FeatureMetric
from ray_gen.evaluation.neighbours import check_neighbours
from ray_gen.settings import Settings, free

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding

ROWS = 2048
"""Rows of the distance matrix at once: 400 MB with 50,000 columns in float32."""


class DensityCoverageSettings(Settings):
    """The size of the balls around real images."""

    density_neighbours: PositiveInt = free(5)
    """For `density` and `coverage`: a ball around a real image reaches to its k-th nearest
    neighbour; this is k (Naeem et al. 2020: 5)."""


class DensityCoverage(FeatureMetric[DensityCoverageSettings]):
    """`density`, `coverage`: how well generated images fill the balls around real images."""

    scores = {"density": "higher", "coverage": "higher"}
    needs = frozenset({"features"})
    settings_class = DensityCoverageSettings

    def check(self) -> None:
        """Both sets have enough images for k neighbours."""
        field = "evaluation.density_neighbours"
        check_neighbours(field, self.settings.density_neighbours, self.given.smallest)

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """`density` and `coverage`, computed on the device. They have no spread."""
        density, coverage = density_coverage(
            generated.features_on(self.given.world.device),
            reference.features_on(self.given.world.device),
            neighbours=self.settings.density_neighbours,
        )
        yield "density", density, None
        yield "coverage", coverage, None

    def protocol(self) -> Mapping[str, Any]:
        """k, the neighbours that a ball reaches to."""
        return {"neighbours": self.settings.density_neighbours}


def density_coverage(
    generated: Tensor, reference: Tensor, *, neighbours: int
) -> tuple[float, float]:
    """The mean number of balls that hold a generated image, over k, and the fraction of balls that
    hold at least one.

        density  = 1 / (k M) Σ_j Σ_i 1[Y_j ∈ B(X_i)],     coverage = 1 / N Σ_i 1[∃ j: Y_j ∈ B(X_i)]

    Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models", section 3.
    The ball B(X_i) around a real image reaches to its k-th nearest real neighbour, k = `neighbours`
    < N. It is open, as in the authors' code. generated Y (M, D), reference X (N, D): float32 on one
    device, which computes. Density in [0, N / k], coverage in [0, 1], higher is better. For equal
    distributions the expectations are 1 for the density and, by the paper's Lemma 2,
    1 − (N − 1)···(N − k) / ((N + M − 1)···(N + M − k)) for the coverage: 1 − 2^−k for large N = M.
    """
    import torch

    held = torch.zeros((), dtype=torch.int64, device=reference.device)
    covered = torch.zeros_like(held)
    for rows in reference.split(ROWS):
        # + 1: the nearest neighbour of each image is the image itself.
        radius = torch.cdist(rows, reference).kthvalue(neighbours + 1).values
        inside = torch.cdist(rows, generated) < radius[:, None]
        held += inside.sum()
        covered += inside.any(1).sum()
    density = held.item() / (neighbours * len(generated))
    return density, covered.item() / len(reference)
