"""Maximum mean discrepancy of normalised features under a Gaussian kernel.

The example for a new metric: copy this file and add its class to `ALL` in `metrics/__init__.py`.
`kid.py` also has settings and checks. `sliced_wasserstein.py` compares pixels instead of features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.metric import FeatureMetric
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding

SIGMA, SCALE = 10.0, 1000.0
"""σ, the width of the kernel, and the factor of the value: both as in CMMD."""
ROWS = 2048
"""Rows of the kernel matrix at once: 800 MB with 50,000 columns in float64, three times."""


class MmdRbf(FeatureMetric[Settings]):
    """`mmd_rbf`: CMMD's distance, with the features of any extractor."""

    scores = {"mmd_rbf": "lower"}
    needs = frozenset({"features"})

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """`mmd_rbf`, computed on the device. It has no spread."""
        device = self.given.world.device
        value = mmd_rbf(generated.features_on(device), reference.features_on(device))
        yield "mmd_rbf", value, None

    def protocol(self) -> Mapping[str, Any]:
        """The kernel, the unit of the value, and the kind of estimate."""
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
    generation", call the value CMMD if the features are CLIP's. The sums include i = j, so the
    estimate is biased and not below 0.
    generated, reference: float32 (N, D) and (M, D) on one device, which computes in float64.
    Lower is better. In [0, 39.61): 0 for equal sets, up to rounding; 2000 (1 − exp(−1/50)) for two
    opposite points.
    """
    from torch.nn.functional import normalize

    x, y = normalize(generated.double()), normalize(reference.double())
    return SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """Mean of k over all pairs of a row of x (N, D) and a row of y (M, D), of length 1 or 0."""
    squares = y.square().sum(1)
    total = 0.0
    for rows in x.split(ROWS):
        apart = rows.square().sum(1, keepdim=True) + squares - 2 * rows @ y.T
        total += (-apart / (2 * SIGMA**2)).exp().sum().item()
    return total / (len(x) * len(y))
