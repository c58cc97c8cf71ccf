"""How an evaluation is done, and what it refuses before it starts, alike on every rank."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from ray_gen.core import ImageShape
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluators.base import Progress
from ray_gen.evaluators.inception_score import SPLITS
from ray_gen.evaluators.names import METRICS, NEED_NO_WEIGHTS, Need, needs_of

_GENERATED, _REFERENCE = "evaluation.count", "evaluation.reference"
_FREE = " and ".join(NEED_NO_WEIGHTS)


@dataclass(frozen=True)
class Plan:
    """The arguments of `sample_scores` that are no images."""

    metrics: Sequence[str]
    world: World
    batch_size: int
    seed: int
    kid_subsets: int
    kid_subset_size: int
    neighbours: int
    density_neighbours: int
    progress: Progress

    @property
    def needs(self) -> frozenset[Need]:
        """Of all metrics."""
        return needs_of(self.metrics)

    def check_metrics(self, *, extractor: bool, training: bool) -> None:
        """Known names, and there is what they need."""
        for name in self.metrics:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
                raise Refused(f"evaluation.metrics: there is no {name!r}; {hint}")
            if METRICS[name].needs_weights and not extractor:
                raise Refused(
                    f"evaluation.features: {name} looks at images through an extractor; name one, "
                    f"or ask evaluation.metrics for {_FREE} only"
                )
            if "training" in METRICS[name].needs and not training:
                raise Refused(
                    f"evaluation.metrics: {name} compares with the images that the run was trained "
                    "on, and they are not here; leave it out"
                )
        if self.batch_size < 1:
            raise Refused(f"evaluation.batch_size: at least one image, not {self.batch_size}")

    def check_counts(self, generated: int, reference: int) -> None:
        """As many images as the metrics need."""
        for field, count in ((_GENERATED, generated), (_REFERENCE, reference)):
            if count < 2:
                raise Refused(f"{field}: two images are the least to compare, not {count}")
        smallest = min(generated, reference)
        if "kid" in self.metrics and self.kid_subset_size > smallest:
            raise Refused(
                f"evaluation.kid_subset_size: {self.kid_subset_size} images cannot be drawn from "
                f"{generated} generated and {reference} real ones; set at most {smallest}"
            )
        if "kid" in self.metrics and (self.kid_subsets < 1 or self.kid_subset_size < 2):
            raise Refused(
                f"evaluation.kid_subsets: {self.kid_subsets} subsets of {self.kid_subset_size} "
                "images are too few; set e.g. 100 and evaluation.kid_subset_size 1000"
            )
        if "inception_score" in self.metrics and generated < SPLITS:
            raise Refused(
                f"{_GENERATED}: inception_score takes {SPLITS} parts of them, and they are "
                f"{generated}; set more, 5,000 a part in its paper"
            )
        for names, field, count in (
            ({"precision", "recall"}, "evaluation.neighbours", self.neighbours),
            ({"density", "coverage"}, "evaluation.density_neighbours", self.density_neighbours),
        ):
            if names & set(self.metrics) and not 1 <= count < smallest:
                raise Refused(
                    f"{field}: {count} is not between 1 and {smallest - 1}, the neighbours that an "
                    f"image has among {smallest}"
                )

    def check_shapes(self, generated: ImageShape, others: Sequence[tuple[str, ImageShape]]) -> None:
        """Images that the metrics can compare."""
        if any(METRICS[name].needs_weights for name in self.metrics) and generated[0] not in (1, 3):
            raise Refused(
                f"evaluation.features: extractors see 1 (grey) or 3 (RGB) channels, and the images "
                f"have {generated[0]}; ask evaluation.metrics for {_FREE} only"
            )
        for what, shape in others:
            if shape[0] != generated[0]:
                raise Refused(
                    f"evaluation: the generated images have {generated[0]} and the {what} images "
                    f"{shape[0]} channels; set data.channels to {generated[0]}"
                )
            if "pixels" in self.needs and shape != generated:
                names = [name for name in self.metrics if "pixels" in METRICS[name].needs]
                ours, theirs = (f"{height}x{width}" for _, height, width in (generated, shape))
                raise Refused(
                    f"evaluation: {' and '.join(names)} compare pixels, and the generated images "
                    f"are {ours}, the {what} images {theirs} (height x width); set data.image_size "
                    f"to {generated[1] if generated[1] == generated[2] else ours}"
                )

    def check_logits(self, size: int | None) -> None:
        """Whether the extractor classifies, where that is asked for."""
        if size is None and "logits" in self.needs:
            raise Refused(
                "evaluation.features: inception_score needs class scores, and this extractor gives "
                "none; leave it out, or return ray_gen.evaluators.base.Features with logits"
            )
