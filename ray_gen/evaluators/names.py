"""The metrics by name and what each is computed from. No torch: settings are checked by it.

The names are those of the scores: "precision" and "recall" are computed once where both are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Need = Literal["moments", "features", "logits", "pixels", "training"]
"""moments: mean and covariance of features; features: all of them, kept; logits: class scores of
the generated images; pixels: no extractor; training: the images that the run was trained on."""

FROM_AN_EXTRACTOR: frozenset[Need] = frozenset({"moments", "features", "logits"})


@dataclass(frozen=True)
class Metric:
    """What a metric needs, and which of two values is the better one (None: neither extreme is)."""

    needs: frozenset[Need]
    better: Literal["lower", "higher"] | None

    @property
    def needs_weights(self) -> bool:
        """Whether it looks at images through an extractor, whose weights have to be there."""
        return bool(self.needs & FROM_AN_EXTRACTOR)


METRICS: dict[str, Metric] = {
    "fid": Metric(frozenset({"moments"}), "lower"),
    "kid": Metric(frozenset({"features"}), "lower"),
    "inception_score": Metric(frozenset({"logits"}), "higher"),
    "precision": Metric(frozenset({"features"}), "higher"),
    "recall": Metric(frozenset({"features"}), "higher"),
    "density": Metric(frozenset({"features"}), "higher"),
    "coverage": Metric(frozenset({"features"}), "higher"),
    "sliced_wasserstein": Metric(frozenset({"pixels"}), "lower"),
    "nearest_neighbour": Metric(frozenset({"pixels", "training"}), None),
}

LIKELIHOOD = "likelihood"
"""What a VAE's likelihood gives, on held-out images: several scores, by names of their own."""

LIKELIHOOD_SCORES: dict[str, Literal["lower", "higher"] | None] = {
    "elbo": "higher",
    "reconstruction": "lower",
    "kl": None,
    "log_likelihood_bound": "higher",
    "bits_per_dimension": "lower",
    "active_units": None,
    "reconstruction_mse": "lower",
    "reconstruction_ssim": "higher",
}
"""Their names, and which of two values is the better one. Which of them there are depends on the
model and its data."""

NEED_NO_WEIGHTS = tuple(name for name, metric in METRICS.items() if not metric.needs_weights)


def needs_of(metrics: Iterable[str]) -> frozenset[Need]:
    """All that these metrics need."""
    return frozenset[Need]().union(*(METRICS[name].needs for name in metrics))


def measured(
    metrics: Mapping[str, float], name: str, otherwise: float | None = None
) -> float | None:
    """The objective's own held-out score of this name in a report, else an evaluation's."""
    return metrics.get(f"held_out/{name}", metrics.get(f"evaluation/{name}", otherwise))
