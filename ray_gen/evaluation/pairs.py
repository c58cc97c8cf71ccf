"""The base class of metrics that compare each image with its reconstruction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray_gen.evaluation.metric import Metric, OwnSettings, Shown
from ray_gen.evaluation.scores import Score

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.evaluation.images import Consumer
    from ray_gen.evaluation.reconstructions import Rows


class PairMetric(Metric[OwnSettings]):
    """The mean of a value of each held-out image and its reconstruction. It has one score."""

    of_samples = False
    of_reconstructions = True

    @abstractmethod
    def of_pairs(self, originals: Tensor, reconstructed: Tensor) -> Tensor:
        """Levels (N, C, H, W) twice, uint8 or uint16 on the device, to one value each, (N,)."""

    def protocol(self) -> Mapping[str, Any]:
        """The metric's own protocol entries. The evaluation adds the sets."""
        return {}

    @cached_property
    def _rows(self) -> Rows:
        from ray_gen.evaluation.images import own_share
        from ray_gen.evaluation.reconstructions import Rows

        given = self.given
        originals = given.sets["originals"]

        def value(first: int, images: Tensor) -> Tensor:
            return self.of_pairs(originals.take(range(first, first + len(images))), images)

        own = own_share(len(originals), given.batch_size, given.world)
        return Rows(value, 1, own, given.world)

    def sees(self, name: Shown) -> Sequence[Consumer]:
        """Each reconstruction is compared with its original."""
        return [self._rows] if name == "reconstructed" else []

    def measure(self) -> Iterator[Score]:
        """The mean over images. Collective: every rank, same order."""
        from ray_gen.evaluation.reconstructions import mean_and_error

        values = self._rows.of_all(len(self.given.sets["originals"]))[:, 0]
        mean, error = mean_and_error(values)
        spread = "standard error of the mean over images"
        yield Score(next(iter(self.scores)), mean, error, {"spread": spread, **self.protocol()})
