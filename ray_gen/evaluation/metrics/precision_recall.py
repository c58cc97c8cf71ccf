"""Improved precision and recall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from ray_gen.evaluation.fidelity import torch_fidelity
from ray_gen.evaluation.metric import FeatureMetric
from ray_gen.evaluation.neighbours import check_neighbours
from ray_gen.settings import Settings, free

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.embedding import Embedding

ROWS = 2048
"""Rows of a matrix of distances at once: 400 MB beside 50,000 images."""


class PrecisionRecallSettings(Settings):
    """The size of the balls."""

    neighbours: PositiveInt = free(3)
    """k of precision and recall (Kynkäänniemi et al. 2019: 3)."""


class PrecisionRecall(FeatureMetric[PrecisionRecallSettings]):
    """How much of each set lies in the manifold of the other: `precision_recall`."""

    scores = {"precision": "higher", "recall": "higher"}
    needs = frozenset({"features"})
    settings_class = PrecisionRecallSettings

    def check(self) -> None:
        """An image has that many neighbours."""
        check_neighbours("evaluation.neighbours", self.settings.neighbours, self.given.smallest)

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        precision, recall = precision_recall(
            generated.features_on(self.given.world.device),
            reference.features_on(self.given.world.device),
            neighbours=self.settings.neighbours,
        )
        yield "precision", precision, None
        yield "recall", recall, None

    def protocol(self) -> Mapping[str, Any]:
        return {"neighbours": self.settings.neighbours}


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
