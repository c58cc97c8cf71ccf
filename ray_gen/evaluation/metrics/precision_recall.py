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
"""Rows of the distance matrix at once: 400 MB with 50,000 columns in float32."""


class PrecisionRecallSettings(Settings):
    """The size of the balls that make up a manifold."""

    neighbours: PositiveInt = free(3)
    """For `precision` and `recall`: a ball around an image reaches to its k-th nearest neighbour;
    this is k (Kynkäänniemi et al. 2019: 3)."""


class PrecisionRecall(FeatureMetric[PrecisionRecallSettings]):
    """`precision`, `recall`: the fraction of each set inside the manifold of the other set."""

    scores = {"precision": "higher", "recall": "higher"}
    needs = frozenset({"features"})
    settings_class = PrecisionRecallSettings

    def check(self) -> None:
        """Both sets have enough images for k neighbours."""
        check_neighbours("evaluation.neighbours", self.settings.neighbours, self.given.smallest)

    def compare(
        self, generated: Embedding, reference: Embedding
    ) -> Iterator[tuple[str, float, float | None]]:
        """`precision` and `recall`, computed on the device. They have no spread."""
        precision, recall = precision_recall(
            generated.features_on(self.given.world.device),
            reference.features_on(self.given.world.device),
            neighbours=self.settings.neighbours,
        )
        yield "precision", precision, None
        yield "recall", recall, None

    def protocol(self) -> Mapping[str, Any]:
        """k, the neighbours that a ball reaches to."""
        return {"neighbours": self.settings.neighbours}


def precision_recall(
    generated: Tensor, reference: Tensor, *, neighbours: int
) -> tuple[float, float]:
    """Precision: the fraction of generated images inside the manifold of the reference. Recall: the
    fraction of the reference inside the manifold of the generated images.

    Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative
    models", equations 1 and 2. The manifold of a set is the union of closed balls, one around each
    image. A ball reaches to the `neighbours`-th nearest neighbour in the same set. generated,
    reference: float32 (N, D), (M, D) on one device, which computes. Both in [0, 1], higher is
    better. Both depend on N and M.
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
