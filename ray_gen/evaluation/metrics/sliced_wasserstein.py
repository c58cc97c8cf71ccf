"""Sliced Wasserstein distance of patches at each scale: no weights, no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ray_gen.evaluation.metric import Lacking, Metric, Set, Shown
from ray_gen.evaluation.scores import Score
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from ray_gen.evaluation.images import Consumer
    from ray_gen.evaluation.patches import Pictures


class SlicedWasserstein(Metric[Settings]):
    """`sliced_wasserstein`: the distance of patches, the mean over scales. It takes equally many
    images of both sets: see `patches.sliced_wasserstein`."""

    scores = {"sliced_wasserstein": "lower"}
    compares_pixels = True
    sides: ClassVar[tuple[Shown, Shown]] = ("generated", "reference")
    """The set that is measured, and the one that it is compared with."""

    def check(self) -> None:
        """The images are at least as large as a patch."""
        from ray_gen.evaluation.patches import SIDE

        height, width = self.given.shape[1:]
        if min(height, width) < SIDE:
            why = f"images of {height}x{width} are smaller than its patches of {SIDE}x{SIDE}"
            name = next(iter(self.scores))
            raise Lacking(f"evaluation.metrics: {name}: {why}; leave it out", why)

    @cached_property
    def _seen(self) -> dict[Set, Pictures]:
        from ray_gen.evaluation.images import own_share
        from ray_gen.evaluation.patches import Pictures

        given = self.given
        counts: dict[Set, int] = {side: len(given.sets[side]) for side in self.sides}
        smallest = min(counts.values())
        return {
            side: Pictures(
                given.shape, count, smallest, own_share(count, given.batch_size, given.world)
            )
            for side, count in counts.items()
        }

    def sees(self, name: Shown) -> Sequence[Consumer]:
        """Images of both sets are kept, and their patches are taken in `measure`."""
        return [self._seen[name]] if name in self._seen else []

    def measure(self) -> Iterator[Score]:
        """The mean over scales, in 10⁻³. Collective: every rank, same order."""
        from ray_gen.evaluation.patches import PATCHES, sliced_wasserstein

        ours, theirs = (self._seen[side] for side in self.sides)
        given = self.given
        scales = sliced_wasserstein(ours, theirs, given.seed, given.world, given.progress)
        protocol = {
            "unit": "10^-3",
            "value": "mean over scales",
            "scales": scales,
            "images_of_each": ours.count,
            "patches_of_an_image": PATCHES,
        }
        yield Score(next(iter(self.scores)), sum(scales.values()) / len(scales), None, protocol)
