"""Inception Score."""

from __future__ import annotations

from torch import Tensor

from ray_gen.evaluators.fidelity import torch_fidelity

SPLITS = 10


def inception_score(logits: Tensor, *, seed: int, splits: int = SPLITS) -> tuple[float, float]:
    """exp E_x KL(p(y|x) ‖ p(y)): mean and standard deviation over `splits` parts in random order.

    Salimans et al. 2016, "Improved techniques for training GANs", section 4. logits: float32 (N, K)
    of generated images. In [1, K], higher is better; it sees no reference, and rises with the
    images of a split.
    """
    found = torch_fidelity("metric_isc", "isc_features_to_metric")(
        logits, splits, True, seed % 2**32
    )
    return found["inception_score_mean"], found["inception_score_std"]
