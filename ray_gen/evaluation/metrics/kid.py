"""Kernel Inception Distance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from ray_gen.errors import Refused
from ray_gen.evaluation.fidelity import torch_fidelity
from ray_gen.evaluation.metric import FeatureMetric
from ray_gen.settings import Settings, free

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding


class KidSettings(Settings):
    """Subsets that KID is averaged over."""

    kid_subsets: PositiveInt = free(100)
    """Random subsets of both sets."""
    kid_subset_size: PositiveInt = free(1000)
    """Images of each subset."""


class Kid(FeatureMetric[KidSettings]):
    """The kernel distance of features: `kernel_distance`."""

    scores = {"kid": "lower"}
    needs = frozenset({"features"})
    settings_class = KidSettings

    @property
    def subset_size(self) -> int:
        """Images of each subset."""
        size = self.settings.kid_subset_size
        return min(size, self.given.smallest) if self.given.automatic else size

    def check(self) -> None:
        """Subsets can be drawn."""
        generated, reference = (len(self.given.sets[n]) for n in ("generated", "reference"))
        smallest = self.given.smallest
        if self.subset_size > smallest:
            raise Refused(
                f"evaluation.kid_subset_size: {self.subset_size} images cannot be drawn from "
                f"{generated} generated and {reference} real ones; set at most {smallest}"
            )
        if self.subset_size < 2:
            raise Refused(
                f"evaluation.kid_subset_size: subsets of {self.subset_size} image are too small; "
                "set e.g. 1000"
            )

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        assert generated.features is not None and reference.features is not None
        value, deviation = kernel_distance(
            generated.features,
            reference.features,
            subsets=self.settings.kid_subsets,
            subset_size=self.subset_size,
            seed=self.given.seed,
        )
        yield "kid", value, deviation

    def protocol(self) -> Mapping[str, Any]:
        return {"subsets": self.settings.kid_subsets, "subset_size": self.subset_size}


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
        rng_seed=seed % 2**32,  # the range that NumPy takes
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]
