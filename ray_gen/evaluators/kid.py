"""Kernel Inception Distance."""

from __future__ import annotations

from torch import Tensor

from ray_gen.evaluators.fidelity import torch_fidelity


def kernel_distance(
    generated: Tensor, reference: Tensor, *, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """The unbiased MMD² of features under the kernel (xᵀy / D + 1)³: mean and standard deviation
    over random subsets.

    Bińkowski et al. 2018, "Demystifying MMD GANs", the Kernel Inception Distance. generated,
    reference: float32 (N, D), (M, D) on the CPU. Around 0 for equal distributions, below 0 by
    chance; lower is better. The mean is unbiased for any number of images; the deviation depends on
    `subset_size`.
    """
    found = torch_fidelity("metric_kid", "kid_features_to_metric")(
        generated,
        reference,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed % 2**32,  # what numpy takes
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]
