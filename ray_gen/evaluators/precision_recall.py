"""Improved precision and recall."""

from __future__ import annotations

from torch import Tensor

from ray_gen.evaluators.fidelity import torch_fidelity

ROWS = 2048
"""Of a matrix of distances at once: 400 MB beside 50,000 images."""


def precision_recall(
    generated: Tensor, reference: Tensor, *, neighbours: int
) -> tuple[float, float]:
    """The fraction of generated images inside the reference's manifold, and the other way round.

    Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative
    models", equations 1 and 2: the manifold is the union of balls about each image, which reach to
    its `neighbours`-th nearest neighbour of the same set. generated, reference: float32 (N, D),
    (M, D); their device computes. In [0, 1], higher is better; both move with N and M.
    """
    found = torch_fidelity("metric_prc", "prc_features_to_metric")(
        generated,
        reference,
        prc_neighborhood=neighbours,
        prc_batch_size=ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]
