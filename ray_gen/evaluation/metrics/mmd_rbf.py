"""Maximum mean discrepancy of normalised features under a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.metric import FeatureMetric
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding

SIGMA, SCALE = 10.0, 1000.0
"""Width of the kernel and factor of the value, as in CMMD."""
ROWS = 2048
"""Rows of a matrix of kernels at once: 800 MB beside 50,000 images, in float64."""


class MmdRbf(FeatureMetric[Settings]):
    """CMMD's distance, of any extractor's features: `mmd_rbf`."""

    scores = {"mmd_rbf": "lower"}
    needs = frozenset({"features"})

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        device = self.given.world.device
        yield "mmd_rbf", mmd_rbf(generated.features_on(device), reference.features_on(device)), None

    def protocol(self) -> Mapping[str, Any]:
        return {
            "kernel": f"Gaussian, sigma {SIGMA:g}, of features of length 1",
            "unit": "10^-3",
            "estimate": "biased: at least 0",
        }


def mmd_rbf(generated: Tensor, reference: Tensor) -> float:
    """10³ times the squared maximum mean discrepancy of features of length 1.

        MMD² = 1/N² Σ k(x_i, x_j) + 1/M² Σ k(y_i, y_j) − 2/(N M) Σ k(x_i, y_j)
        k(x, y) = exp(−‖x/‖x‖ − y/‖y‖‖² / (2 σ²)),  σ = 10

    Jayasumana et al. 2024, "Rethinking FID: towards a better evaluation metric for image
    generation", where the features are those of CLIP and the value is called CMMD. The
    sums hold i = j, so the estimate is biased and not below 0. generated, reference: float32
    (N, D), (M, D); their device computes, in float64. In [0, 39.7), lower is
    better.
    """
    from torch.nn.functional import normalize

    x, y = normalize(generated.double()), normalize(reference.double())
    return SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """The mean of k over all pairs of rows of length 1 or 0."""
    squares = y.square().sum(1)
    total = 0.0
    for rows in x.split(ROWS):
        apart = rows.square().sum(1, keepdim=True) + squares - 2 * rows @ y.T
        total += (-apart / (2 * SIGMA**2)).exp().sum().item()
    return total / (len(x) * len(y))
