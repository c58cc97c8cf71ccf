"""The metrics. For a new metric, add a file here and its class to `ALL`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.metric import Metric
from ray_gen.evaluation.metrics.codebook import Codebook
from ray_gen.evaluation.metrics.density_coverage import DensityCoverage
from ray_gen.evaluation.metrics.fid import Fid
from ray_gen.evaluation.metrics.inception_score import InceptionScore
from ray_gen.evaluation.metrics.kid import Kid
from ray_gen.evaluation.metrics.latents import Latents
from ray_gen.evaluation.metrics.likelihood import Likelihood
from ray_gen.evaluation.metrics.lpips import Lpips
from ray_gen.evaluation.metrics.mmd_rbf import MmdRbf
from ray_gen.evaluation.metrics.nearest_neighbour import NearestNeighbour
from ray_gen.evaluation.metrics.precision_recall import PrecisionRecall
from ray_gen.evaluation.metrics.psnr import Psnr
from ray_gen.evaluation.metrics.rfid import Rfid
from ray_gen.evaluation.metrics.rkid import Rkid
from ray_gen.evaluation.metrics.rsliced_wasserstein import RslicedWasserstein
from ray_gen.evaluation.metrics.sliced_wasserstein import SlicedWasserstein
from ray_gen.evaluation.metrics.ssim import Ssim
from ray_gen.evaluation.scores import Better

if TYPE_CHECKING:
    from ray_gen.core import Objective

ALL: tuple[type[Metric[Any]], ...] = (
    Fid,
    Kid,
    InceptionScore,
    PrecisionRecall,
    DensityCoverage,
    MmdRbf,
    SlicedWasserstein,
    NearestNeighbour,
    Likelihood,
    Rfid,
    Rkid,
    RslicedWasserstein,
    Psnr,
    Ssim,
    Lpips,
    Codebook,
    Latents,
)
"""All metrics, in the order of tables."""

METRICS: dict[str, type[Metric[Any]]] = {name: kind for kind in ALL for name in kind.names()}
"""The metrics by their names in `evaluation.metrics`."""

BETTER: dict[str, Better] = {name: better for kind in ALL for name, better in kind.scores.items()}
"""Every value that a metric may yield: its name and its better direction."""

OF_SAMPLES = tuple(name for kind in ALL if kind.of_samples for name in kind.scores)
"""Names of the values that samples are measured by. The other values are of held-out images."""


def without_weights(objective: Objective | None) -> tuple[str, ...]:
    """Names of the metrics of samples and of reconstructions that need no weights, of those that
    fit a model. objective: of the model. None: pictures of another tool."""

    def fits(kind: type[Metric[Any]]) -> bool:
        if kind.needs_weights or kind.has_network:
            return False
        if kind.of_samples:
            return objective is None or objective.has_prior
        return kind.of_reconstructions and kind.fits(objective)

    return tuple(name for name, kind in METRICS.items() if fits(kind))


def scores_of(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the values that these metrics may yield. names: keys of METRICS."""
    found: dict[str, None] = {}
    for name in names:
        kind = METRICS[name]
        found |= dict.fromkeys((name,) if name in kind.scores else kind.scores)
    return tuple(found)


def metric_of(score: str) -> str:
    """The name in `evaluation.metrics` that gives the value `score`."""
    if score in METRICS:
        return score
    return next(kind.names()[0] for kind in ALL if score in kind.scores)
