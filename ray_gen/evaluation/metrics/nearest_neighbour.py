"""Memorisation: whether samples lie nearer to training images than new images do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ray_gen.evaluation.metric import Lacking, Metric, Set, Shown
from ray_gen.evaluation.scores import Score
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from ray_gen.evaluation.images import Consumer
    from ray_gen.evaluation.memorisation import Queries


class NearestNeighbour(Metric[Settings]):
    """`nearest_neighbour`: the median distance of samples to their nearest training image, divided
    by that of held-out images. 1: no copies. Much less than 1: copies. See `memorisation`."""

    scores = {"nearest_neighbour": None}
    compares_pixels = True

    def check(self) -> None:
        """There are training images, and images that a model was not trained on."""
        sets = self.given.sets
        if "training" not in sets:
            raise Lacking(
                "evaluation.metrics: nearest_neighbour compares samples with the images that the "
                "run was trained on, and the reference holds other images; leave it out",
                "the reference is not what the run was trained on",
            )
        if "held_out" not in sets and (self.given.automatic or self.given.subject is not None):
            raise Lacking(
                "evaluation.metrics: nearest_neighbour compares samples with held-out images, "
                f"and {self.given.data} has none; leave it out",
                f"{self.given.data} has no held-out images",
            )

    def compares_with(self) -> Sequence[Set]:
        """The training images, and images that the model was not trained on."""
        return ("training", self._unseen)

    @property
    def _unseen(self) -> Set:
        """Images that the model was not trained on: the held-out images. Without any, the reference
        counts as such."""
        return "held_out" if "held_out" in self.given.sets else "reference"

    @cached_property
    def _queries(self) -> dict[Set, Queries]:
        from ray_gen.evaluation.images import own_share
        from ray_gen.evaluation.memorisation import Queries

        given = self.given
        return {
            side: Queries(
                len(given.sets[side]),
                own_share(len(given.sets[side]), given.batch_size, given.world),
            )
            for side in ("generated", self._unseen)
        }

    def sees(self, name: Shown) -> Sequence[Consumer]:
        """Thumbnails are kept of the generated images and of images that were not trained on."""
        return [self._queries[name]] if name in self._queries else []

    def measure(self) -> Iterator[Score]:
        """The ratio of the median distances. Collective: every rank, same order."""
        from ray_gen.distributed import World
        from ray_gen.evaluation.images import show
        from ray_gen.evaluation.memorisation import SIDE, Nearest, memorisation

        given, world = self.given, self.given.world
        ours, others = self._queries["generated"], self._queries[self._unseen]
        nearest = Nearest.of(ours, others, given.shape, world.device)
        # Every rank compares its own share of the other images with all training images.
        alone = World(device=world.device)
        training = given.sets["training"]
        show(training, [nearest], alone, given.batch_size, given.progress, "training images")
        found = memorisation(nearest, ours, others, world)
        protocol = {
            "unit": "ratio",
            "value": "median distance of samples to their nearest training image, divided by that "
            "of held-out images; much less than 1: copies",
            "median_distance_of_samples": found.generated,
            "median_distance_of_held_out": found.held_out,
            "samples_nearer_than_99_percent_of_held_out": found.below,
            "distance": f"root mean square over pixels in [0, 1], at most {SIDE}x{SIDE}",
            "samples": ours.spread.count,
            "held_out": given.described(self._unseen, others.spread.count),
            "training": given.described("training"),
        }
        yield Score("nearest_neighbour", found.ratio, None, protocol)
