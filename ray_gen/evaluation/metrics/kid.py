"""Kernel Inception Distance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PositiveInt

from ray_gen.errors import Refused
from ray_gen.evaluation.fidelity import torch_fidelity
from ray_gen.evaluation.metric import FeatureMetric
from ray_gen.settings import Settings, Told, free

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding


_SIZE = 1000
"""Images in a subset, as most papers have it."""


class KidSettings(Settings):
    """The subsets that KID is averaged over."""

    kid_subsets: PositiveInt = free(100)
    """Number of random subsets of each set that `kid` is averaged over."""
    kid_subset_size: Annotated[PositiveInt, Told(unit="images")] = free(_SIZE)
    """Images in a subset of `kid`. 1000, the default: fewer if the smaller set has fewer. Any other
    number: at most the number of images in the smaller set."""


class Kid(FeatureMetric[KidSettings]):
    """`kid`: the kernel distance of features, see `kernel_distance`."""

    scores = {"kid": "lower"}
    needs = frozenset({"features"})
    settings_class = KidSettings

    @property
    def subset_size(self) -> int:
        """Images in a subset. The default is adapted to small sets; another number only if the user
        named no metrics."""
        size = self.settings.kid_subset_size
        adapts = self.given.automatic or size == _SIZE
        return min(size, self._smallest) if adapts else size

    @property
    def _smallest(self) -> int:
        """Number of images in the smaller of the two sets."""
        return min(len(self.given.sets[name]) for name in self.sides)

    def check(self) -> None:
        """Both sets have enough images for a subset, and a subset has at least two."""
        generated, reference = (len(self.given.sets[name]) for name in self.sides)
        smallest = self._smallest
        if self.subset_size > smallest:
            raise Refused(
                f"evaluation.kid_subset_size: {self.subset_size} images cannot be drawn from "
                f"sets of {generated} ({self.sides[0]}) and {reference} ({self.sides[1]}); set at "
                f"most {smallest}"
            )
        if self.subset_size < 2:
            raise Refused(
                f"evaluation.kid_subset_size: subsets of {self.subset_size} image are too small; "
                "set at least 2, e.g. 1000"
            )

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """On the CPU. Spread: the standard deviation over subsets."""
        assert generated.features is not None and reference.features is not None
        value, deviation = self.distance(
            generated.features,
            reference.features,
            subsets=self.settings.kid_subsets,
            subset_size=self.subset_size,
            seed=self.given.seed,
        )
        # Subsets that are the whole sets are all the same: their deviation is rounding.
        whole = all(
            len(kept) == self.subset_size for kept in (generated.features, reference.features)
        )
        yield next(iter(self.scores)), value, None if whole else deviation

    def distance(
        self, first: Tensor, second: Tensor, *, subsets: int, subset_size: int, seed: int
    ) -> tuple[float, float]:
        """Of features of two independent sets: `kernel_distance`."""
        return kernel_distance(first, second, subsets=subsets, subset_size=subset_size, seed=seed)

    def protocol(self) -> Mapping[str, Any]:
        """Number and size of the subsets, and a warning if they are smaller than the setting."""
        size, wanted = self.subset_size, self.settings.kid_subset_size
        warning = (
            f"subsets of {size:,} images instead of {wanted:,}, because a set has no more; compare"
            " the spread only with equal subsets"
        )
        own = {"subsets": self.settings.kid_subsets, "subset_size": size}
        return {**own, "warning": warning} if size < wanted else own


def kernel_distance(
    generated: Tensor, reference: Tensor, *, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """The unbiased MMD² of features under the kernel (xᵀy / D + 1)³: mean and standard deviation
    over random subsets.

    Bińkowski et al. 2018, "Demystifying MMD GANs", the Kernel Inception Distance. generated,
    reference: float32 (N, D), (M, D) on the CPU. Lower is better; near 0 for equal distributions,
    where chance may give a value below 0. The mean is unbiased for any number of images. The
    deviation depends on `subset_size`.
    """
    found = torch_fidelity("metric_kid", "kid_features_to_metric")(
        generated,
        reference,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed % 2**32,  # NumPy takes seeds below 2**32
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]
