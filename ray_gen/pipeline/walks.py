"""`Walks`: interpolation, arithmetic and traversal in the latents of a trained model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from ray_gen.core import Networks, Noise
from ray_gen.errors import Refused
from ray_gen.pipeline import latent
from ray_gen.pipeline.arguments import (
    STACK,
    Array,
    Conditions,
    Floats,
    Labels,
    all_whole,
    checked_levels,
    levels_in_words,
    real_number,
    tensor_of,
    whole_number,
)
from ray_gen.pipeline.files import image_files, read_images
from ray_gen.pipeline.mixture import Mixture
from ray_gen.pipeline.model import Latents, Model, count_of
from ray_gen.pipeline.styles import STYLES, are_styles

LARGEST_MIXTURE = 4096
"""Most numbers that a latent may have for a mixture. Each component of a mixture holds their
covariance: 134 MB at this size."""


class Walks(Model):
    """A model, and paths through its latents.

    If the model has an encoder, the walks also take images instead of latents."""

    def read(self, *paths: str | os.PathLike[str]) -> Tensor:
        """Read image files, and all images below folders, as this run's data settings say."""
        return read_images(image_files(paths), self.experiment)

    def fit_mixture(
        self,
        images: Floats,
        labels: Labels | None = None,
        components: SupportsIndex = 10,
        seed: SupportsIndex = 0,
        conditions: Conditions | None = None,
    ) -> Mixture:
        """A prior for this model's `sample`. scikit-learn fits it to the posterior means of the
        images. `Mixture.save` writes it to a file."""
        count, start = whole_number(components, "components"), whole_number(seed, "seed")
        self.check_mixture()
        means = self.posterior(images, labels, conditions).mean
        return Mixture.fit(means, count, start, self.origin)

    def check_mixture(self) -> None:
        """Raise Refused if no mixture can be fitted to this model's latents."""
        self.encoder()
        shapes = self.latent_shapes
        size = sum(math.prod(shape) for shape in shapes.values())
        if len(shapes) > 1:
            raise Refused(
                f"a mixture is fitted to one latent, and {self._kind} has {levels_in_words(shapes)}"
            )
        if size > LARGEST_MIXTURE:
            raise Refused(
                f"a mixture needs a covariance of all numbers of a latent; {self._kind} has "
                f"{size:,}, more than {LARGEST_MIXTURE:,}; train a model on the latents instead"
            )

    def styles(
        self,
        latents: Latents,
        labels: Labels | None = None,
        conditions: Conditions | None = None,
        truncation: SupportsFloat = 1.0,
    ) -> dict[str, Tensor]:
        """{"styles": (N, L, W)} of latents, for a generator with styles. `decode` and the walks
        take it in place of latents. truncation: as for `decode`."""
        levels = self._latents_of(latents, "latents")
        of_each = self._labels(labels, count_of(levels), conditions, in_turn=True)
        return {STYLES: self._styles(levels, of_each, truncation)}

    def _with_styles(self, levels: Mapping[str, Tensor], label: Tensor | None) -> dict[str, Tensor]:
        """The styles of latents that share a label (1, ...)."""
        count = count_of(levels)
        labels = None if label is None else label[[0] * count]
        return {STYLES: self._styles(levels, labels, 1.0)}

    def interpolate(
        self,
        first: Latents,
        last: Latents,
        steps: SupportsIndex = 9,
        labels: Labels | None = None,
        spherical: bool = True,
        conditions: Conditions | None = None,
        truncation: SupportsFloat | None = None,
    ) -> Tensor:
        """Images on the path from each of `first` to its partner in `last`, both included:
        (N, steps, C, H, W).

        labels, conditions: one for each path. spherical: along great circles if the prior is
        normal. With a uniform prior or none, every path is straight (`latent.interpolated`). All
        latents of a hierarchy move together. The noise of the networks is constant along a path.
        truncation: for a generator with styles, see `decode`; the path is then straight between
        truncated styles, as it is if one end is given as styles.
        """
        a, b = self._latents_of(first, "first"), self._latents_of(last, "last")
        count = count_of(a)
        if count != count_of(b):
            raise Refused(
                f"first, last: {count} and {count_of(b)} latents; give the same number of both"
            )
        number = whole_number(steps, "steps")
        of_each = self._labels(labels, count, conditions, in_turn=True)
        if truncation is not None or are_styles(a) or are_styles(b):
            return self._between_styles(a, b, number, of_each, truncation)
        ways = {
            name: latent.interpolated(
                a[name], b[name], number, spherical=spherical and self._is_normal(name)
            )
            for name in a
        }
        return self._decoded_rows(ways, of_each)

    def _between_styles(
        self,
        first: Mapping[str, Tensor],
        last: Mapping[str, Tensor],
        steps: int,
        labels: Tensor | None,
        truncation: SupportsFloat | None,
    ) -> Tensor:
        """Images (N, steps, C, H, W) of straight paths between truncated styles."""
        share = 1.0 if truncation is None else truncation
        a, b = (self._styles(levels, labels, share) for levels in (first, last))
        way = latent.interpolated(a, b, steps, spherical=False)  # (N, steps, L, W)
        return self._decoded_rows({STYLES: way}, labels)

    def arithmetic(
        self,
        plus: Iterable[Latents],
        minus: Iterable[Latents] = (),
        labels: Labels | None = None,
        conditions: Conditions | None = None,
        truncation: SupportsFloat | None = None,
    ) -> Tensor:
        """The image (1, C, H, W) of a sum of latents. The mean of each group is added or
        subtracted (`latent.combined`).

        If you need the sum itself, call `latent.combined`. The latents of a hierarchy are added
        level by level. If a group is given as styles, styles are added. truncation: as for
        `decode`.
        """
        added, taken = self._groups(plus, "plus"), self._groups(minus, "minus")
        names = list(self.latent_shapes)
        if any(are_styles(group) for group in (*added, *taken)):
            label, names = self._labels(labels, 1, conditions, in_turn=True), [STYLES]
            added, taken = (
                [self._with_styles(group, label) for group in groups] for groups in (added, taken)
            )
        return self.decode(
            {
                name: latent.combined([group[name] for group in added], [g[name] for g in taken])
                for name in names
            },
            labels,
            conditions=conditions,
            truncation=truncation,
        )

    def traverse(
        self,
        dimensions: SupportsIndex | Sequence[int] | Array,
        base: Latents | None = None,
        extent: SupportsFloat | None = None,
        steps: SupportsIndex = 9,
        labels: Labels | None = None,
        latent_name: str | None = None,
        conditions: Conditions | None = None,
        truncation: SupportsFloat | None = None,
    ) -> Tensor:
        """Images of a latent while one of its numbers moves by -extent to extent, one row for each
        dimension: (dimensions, steps, C, H, W).

        dimensions: indices of these numbers; a map is counted row by row. base: the latent; None is
        the prior's mean (zeros without a prior). extent: None is 3, or half the width of a uniform
        prior. With an odd number of steps the base itself is in the middle. latent_name: which of
        several latents moves. truncation: as for `decode`.

        A base of styles, or latent_name="styles": a number of the style moves, in all layers alike.
        The extent None is then 3 standard deviations of such numbers, and the base None is the mean
        style.
        """
        rows = all_whole(dimensions, "dimensions")
        if base is not None:
            base = self._latents_of(base, "base")
            if are_styles(base) and latent_name is None:
                latent_name = STYLES
        name = self.moved(latent_name)
        if base is not None and are_styles(base) and name != STYLES:
            raise Refused(f"base: has styles, which have no latent {name}; leave its name out")
        reach = self.reach(name) if extent is None else real_number(extent, "extent")
        if name == STYLES and self.has_styles:
            label = self._labels(labels, 1, conditions, in_turn=True)
            return self._through_styles(rows, base, reach, steps, label, truncation)
        centres = {key: _mean_and_reach(prior) for key, prior in self.objective.latents.items()}
        if base is None:
            shapes = self.latent_shapes
            base = {key: torch.full(shapes[key], centres[key][0]) for key in shapes}
        start = self._latents_of(base, "base")
        if count_of(start) != 1:
            raise Refused(f"base: has {count_of(start)} latents; give only one, e.g. base[:1]")
        if not rows:
            raise Refused("dimensions: the list is empty; give at least one")
        number = whole_number(steps, "steps")
        ways = {
            key: latent.traversed(z, rows, reach, number)
            if key == name
            else z[:, None].expand(len(rows), number, *z.shape[1:])
            for key, z in start.items()
        }
        label = self._labels(labels, 1, conditions, in_turn=True)
        of_rows = None if label is None else label[[0] * len(rows)]
        return self._decoded_rows(ways, of_rows, self._truncated(truncation))

    def _through_styles(
        self,
        rows: Sequence[int],
        base: Mapping[str, Tensor] | None,
        reach: float,
        steps: SupportsIndex,
        label: Tensor | None,
        truncation: SupportsFloat | None,
    ) -> Tensor:
        """`traverse` of styles. label: of the base, (1, ...) or None."""
        if base is None:
            base = {key: torch.zeros(1, *shape) for key, shape in self.latent_shapes.items()}
            styles = self._styles(base, label, 0.0)
        else:
            styles = self._styles(base, label, 1.0)  # (1, L, W)
        if len(styles) != 1:
            raise Refused(f"base: has {len(styles)} latents; give only one")
        if not rows:
            raise Refused("dimensions: the list is empty; give at least one")
        nowhere = torch.zeros(1, styles.shape[2])
        moves = latent.traversed(nowhere, rows, reach, whole_number(steps, "steps"))
        way = styles + moves[:, :, None]  # (rows, steps, L, W)
        of_rows = None if label is None else label[[0] * len(rows)]
        if truncation is not None:
            each = None if of_rows is None else of_rows.repeat_interleave(way.shape[1], dim=0)
            flat = self._styles({STYLES: way.flatten(0, 1)}, each, truncation)
            way = flat.reshape(way.shape)
        return self._decoded_rows({STYLES: way}, of_rows)

    def neighbourhood(self, name: str, latents: Tensor, seed: int) -> Tensor:
        """A latent (1, *shape), or styles (1, L, W), among eight neighbours: (9, ...). See
        `latent.neighbourhood`. Styles move in all layers alike, by a quarter of their deviation."""
        if name in self.latent_shapes:
            return latent.neighbourhood(latents, seed)
        nowhere = torch.zeros(1, latents.shape[2])
        moves = latent.neighbourhood(nowhere, seed, 0.25 * self.style_deviation)
        return latents + moves[:, None]

    def reach(self, name: str | None = None) -> float:
        """How far `traverse` goes to each side if no extent is given. name: of the latent."""
        name = self.moved(name)
        if name not in self.latent_shapes:
            return 3.0 * self.style_deviation
        return _mean_and_reach(self.objective.latents[name])[1]

    def size_of_moved(self, name: str | None) -> int:
        """How many numbers of the latent, or of styles, `traverse` can move. Raises Refused."""
        name = self.moved(name)
        shapes = self.latent_shapes
        return math.prod(shapes[name]) if name in shapes else self.style_shape[1]

    def moved(self, name: str | None) -> str:
        """The latent that moves. name None: the only one. "styles": those of a generator that has
        them. Raises Refused."""
        shapes = self.latent_shapes
        if name == STYLES and self.has_styles:
            return name
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
        """Return latents unchanged and encode images. Input with the shape of latents counts as
        latents."""
        shapes = self.latent_shapes
        if isinstance(of, Mapping):
            return self._given(of, argument)
        given = tensor_of(of, argument, STACK)
        shape = self.experiment.picture_shape
        is_latent = any(given.shape in (of, (len(given), *of)) for of in shapes.values())
        if given.shape[-3:] == shape and not is_latent:
            self.encoder()
            if self.experiment.label_count is not None:
                raise Refused(
                    f"{argument}: this run is conditional, so images need labels; encode them "
                    "first: pipeline.encode(images, labels)"
                )
            return {name: found.mean for name, found in self.posteriors(given).items()}
        return checked_levels(given, shapes, argument)

    def _decoded_rows(
        self, ways: Mapping[str, Tensor], labels: Tensor | None, networks: Networks | None = None
    ) -> Tensor:
        """Images (N, steps, C, H, W) of latents (N, steps, *shape), with one label for each row.
        All images of a row share the same noise. networks: as for `_decoded`."""
        rows, steps = next(iter(ways.values())).shape[:2]
        each = None if labels is None else labels.repeat_interleave(steps, dim=0)
        numbers = torch.arange(rows).repeat_interleave(steps)
        flat = {name: way.flatten(0, 1) for name, way in ways.items()}
        return self._decoded(flat, each, 0, numbers, networks).unflatten(0, (rows, steps))


def _mean_and_reach(prior: Noise) -> tuple[float, float]:
    """The middle of a prior, and how far a traversal goes to each side."""
    if prior.distribution == "normal":
        return 0.0, 3.0
    return (prior.low + prior.high) / 2, (prior.high - prior.low) / 2
