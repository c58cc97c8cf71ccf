"""Walks through the latents of a trained model: interpolation, arithmetic, traversal."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.errors import Refused
from ray_gen.pipeline import latent
from ray_gen.pipeline.arguments import (
    STACK,
    Array,
    Floats,
    Labels,
    all_whole,
    checked_levels,
    levels_in_words,
    real,
    tensor_of,
    whole,
)
from ray_gen.pipeline.files import image_files, read_images
from ray_gen.pipeline.mixture import Mixture
from ray_gen.pipeline.model import Latents, Model, count_of

LARGEST_MIXTURE = 4096
"""Numbers of a latent. A component of a mixture holds their covariance, here 134 MB."""


class Walks(Model):
    """A model, and ways through its latents.

    Where a walk takes latents, it takes images too if the model has an encoder."""

    def read(self, *paths: str | os.PathLike[str]) -> Tensor:
        """Images from files, or all below folders, as this run's data settings bring them in."""
        return read_images(image_files(paths), self.experiment)

    def fit_mixture(
        self,
        images: Floats,
        labels: Labels | None = None,
        components: SupportsIndex = 10,
        seed: SupportsIndex = 0,
    ) -> Mixture:
        """A prior for `sample` of this model, fitted to the posterior means of images with
        scikit-learn. Keep it with `Mixture.save`."""
        count, start = whole(components, "components"), whole(seed, "seed")
        self.check_mixture()
        return Mixture.fit(self.posterior(images, labels).mean, count, start, self.origin)

    def check_mixture(self) -> None:
        """Whether a mixture can be fitted. Raises Refused."""
        self.encoder()
        shapes = self.latent_shapes
        size = sum(math.prod(shape) for shape in shapes.values())
        if len(shapes) > 1:
            raise Refused(
                f"a mixture is fitted to one latent, and {self._kind} has {levels_in_words(shapes)}"
            )
        if size > LARGEST_MIXTURE:
            raise Refused(
                f"a mixture has a covariance of all pairs of numbers, and the {size:,} of "
                f"{self._kind} are more than {LARGEST_MIXTURE:,}; train a model on the latents "
                "instead"
            )

    def interpolate(
        self,
        first: Latents,
        last: Latents,
        steps: SupportsIndex = 9,
        labels: Labels | None = None,
        spherical: bool = True,
    ) -> Tensor:
        """Images on the way from each of `first` to its partner in `last`, both included:
        (N, steps, C, H, W).

        labels: one for each way. spherical: along great circles where the prior is normal; under a
        uniform prior, or none, every way is straight (`latent.interpolated`). All latents of a
        hierarchy go their way together. Along a way the noise of networks stays.
        """
        a, b = self._latents_of(first, "first"), self._latents_of(last, "last")
        count = count_of(a)
        if count != count_of(b):
            raise Refused(f"first, last: {count} and {count_of(b)} ends; give as many of both")
        number = whole(steps, "steps")
        ways = {
            name: latent.interpolated(
                a[name], b[name], number, spherical=spherical and self._is_normal(name)
            )
            for name in a
        }
        return self._decoded_rows(ways, self._labels(labels, count, in_turn=True))

    def arithmetic(
        self,
        plus: Iterable[Latents],
        minus: Iterable[Latents] = (),
        labels: Labels | None = None,
    ) -> Tensor:
        """The image of a sum: of each group of latents the mean is added or subtracted
        (`latent.combined`). (1, C, H, W).

        To go on with the latent itself, take `latent.combined`. The latents of a hierarchy are
        added level by level.
        """
        added, taken = self._groups(plus, "plus"), self._groups(minus, "minus")
        return self.decode(
            {
                name: latent.combined([group[name] for group in added], [g[name] for g in taken])
                for name in self.latent_shapes
            },
            labels,
        )

    def traverse(
        self,
        dimensions: SupportsIndex | Sequence[int] | Array,
        base: Latents | None = None,
        extent: SupportsFloat | None = None,
        steps: SupportsIndex = 9,
        labels: Labels | None = None,
        latent_name: str | None = None,
    ) -> Tensor:
        """Images of one latent with one number of it moved by -extent to extent, a row for each
        dimension: (dimensions, steps, C, H, W).

        base: None is the prior's mean (zeros without a prior). extent: None is 3, or for a uniform
        prior half its width. An odd number of steps has the base itself in the middle. The numbers
        of a map count along its rows. latent_name: which of several latents is moved.
        """
        rows, name = all_whole(dimensions, "dimensions"), self.moved(latent_name)
        centres = {key: _mean_and_reach(prior) for key, prior in self.objective.latents.items()}
        reach = centres[name][1] if extent is None else real(extent, "extent")
        if base is None:
            shapes = self.latent_shapes
            base = {key: torch.full(shapes[key], centres[key][0]) for key in shapes}
        start = self._latents_of(base, "base")
        if count_of(start) != 1:
            raise Refused(f"base: {count_of(start)} were given; take one of them, e.g. base[:1]")
        if not rows:
            raise Refused("dimensions: none is given; name at least one")
        number = whole(steps, "steps")
        ways = {
            key: latent.traversed(z, rows, reach, number)
            if key == name
            else z[:, None].expand(len(rows), number, *z.shape[1:])
            for key, z in start.items()
        }
        label = self._labels(labels, 1, in_turn=True)
        return self._decoded_rows(ways, None if label is None else label.repeat(len(rows)))

    def moved(self, name: str | None) -> str:
        """The latent of this name; None: the only one. Raises Refused."""
        shapes = self.latent_shapes
        if name is None and len(shapes) == 1:
            return next(iter(shapes))
        if name is None or name not in shapes:
            asked = "name one" if name is None else f"there is no {name}"
            raise Refused(f"latent: this run has the latents {levels_in_words(shapes)}; {asked}")
        return name

    def _is_normal(self, name: str) -> bool:
        return self.objective.has_prior and self.objective.latents[name].distribution == "normal"

    def _groups(self, given: Iterable[Latents], argument: str) -> list[dict[str, Tensor]]:
        """The latents of each group."""
        if not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Refused(f"{argument}: give a list of groups, not {type(given).__name__}")
        return [self._latents_of(group, f"{argument}[{i}]") for i, group in enumerate(given)]

    def _latents_of(self, of: Latents, argument: str) -> dict[str, Tensor]:
        """Latents as they are, images encoded. What has the shape of latents is taken for some."""
        shapes = self.latent_shapes
        if isinstance(of, Mapping):
            return checked_levels(of, shapes, argument)
        given = tensor_of(of, argument, STACK)
        shape = self.experiment.image_shape
        is_latent = any(given.shape in (of, (len(given), *of)) for of in shapes.values())
        if given.shape[-3:] == shape and not is_latent:
            self.encoder()
            if self.experiment.label_count is not None:
                raise Refused(
                    f"{argument}: this run is conditional, so images do not say enough; encode "
                    "them first: pipeline.encode(images, labels)"
                )
            return {name: found.mean for name, found in self.posteriors(given).items()}
        return checked_levels(given, shapes, argument)

    def _decoded_rows(self, ways: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """(N, steps, *shape) of each latent and a label for each row to (N, steps, C, H, W). A row
        has one noise."""
        rows, steps = next(iter(ways.values())).shape[:2]
        each = None if labels is None else labels.repeat_interleave(steps)
        numbers = torch.arange(rows).repeat_interleave(steps)
        flat = {name: way.flatten(0, 1) for name, way in ways.items()}
        return self._decoded(flat, each, 0, numbers).unflatten(0, (rows, steps))


def _mean_and_reach(prior: Noise) -> tuple[float, float]:
    """The middle of a prior, and how far a traversal goes to either side of it."""
    if prior.distribution == "normal":
        return 0.0, 3.0
    return (prior.low + prior.high) / 2, (prior.high - prior.low) / 2
