"""Inception Score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.fidelity import torch_fidelity
from ray_gen.evaluation.metric import FeatureMetric, Lacking
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding

SPLITS = 10
"""Parts that the images are divided into, as in the paper."""


class InceptionScore(FeatureMetric[Settings]):
    """`inception_score`: how sure and how varied the classes of the generated images are."""

    scores = {"inception_score": "higher"}
    needs = frozenset({"logits"})

    def check(self) -> None:
        """There are enough images, and the extractor gives class scores."""
        images, extractor = len(self.given.sets["generated"]), self.given.extractor
        if images < SPLITS:
            raise Lacking(
                f"evaluation.count: inception_score divides the generated images into {SPLITS} "
                f"parts, and {images} are too few; set more (5,000 per part in its paper)",
                f"{images} images cannot be divided into {SPLITS} parts",
            )
        if extractor is not None and self.given.sizes.logits is None:
            raise Lacking(
                f"evaluation.features: inception_score needs class scores, and {extractor.name} "
                "gives none; leave inception_score out, or return "
                "ray_gen.evaluation.extractors.Features with logits",
                f"{extractor.name} gives no class scores",
            )

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """`inception_score`, on the CPU. Spread: the standard deviation over parts."""
        assert generated.logits is not None
        value, deviation = inception_score(generated.logits, seed=self.given.seed)
        yield "inception_score", value, deviation

    def protocol(self) -> Mapping[str, Any]:
        """The number of parts."""
        return {"splits": SPLITS}


def inception_score(logits: Tensor, *, seed: int, splits: int = SPLITS) -> tuple[float, float]:
    """exp E_x KL(p(y|x) ‖ p(y)): mean and standard deviation over `splits` parts in random order.

    Salimans et al. 2016, "Improved techniques for training GANs", section 4. logits: float32 (N, K)
    of generated images, N >= splits. In [1, K], higher is better. It uses no reference, and rises
    with the number of images per part.
    """
    found = torch_fidelity("metric_isc", "isc_features_to_metric")(
        logits, splits, True, seed % 2**32
    )
    return found["inception_score_mean"], found["inception_score_std"]
