"""`Projects`: a model that finds the latents of images by optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import SupportsFloat, SupportsIndex, get_args

import torch
from torch import Tensor

from ray_gen.core import Encodes
from ray_gen.errors import Refused
from ray_gen.pipeline.arguments import (
    Conditions,
    Floats,
    Labels,
    checked_images,
    real_number,
    whole_number,
)
from ray_gen.pipeline.projected import Projected
from ray_gen.pipeline.projection import BATCH, Features, Options, project
from ray_gen.pipeline.styles import Space
from ray_gen.pipeline.walks import Walks

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): `done` of `total` steps are done."""


def silent(done: int, total: int, what: str) -> None:
    """A Progress that reports nothing."""


class Projects(Walks):
    """A model, and the way back from an image to its latents. With an encoder it improves on it;
    without one it is the only way."""

    def project(
        self,
        images: Floats,
        labels: Labels | None = None,
        conditions: Conditions | None = None,
        *,
        space: Space | None = None,
        steps: SupportsIndex = 500,
        seed: SupportsIndex = 0,
        features: Features | None = None,
        features_weight: SupportsFloat = 0.1,
        sigma: SupportsFloat = 0.1,
        starts: SupportsIndex = 256,
        learning_rate: SupportsFloat = 0.1,
        names: Sequence[str] = (),
        progress: Progress = silent,
    ) -> Projected:
        """The latents whose images are nearest to these images, found by optimisation: see
        `projection.project` for what is minimised.

            found = pipeline.project(pipeline.read("me.png"))
            pipeline.interpolate(found.z, pipeline.latents(1, seed=0))

        space: z, or for a generator with styles also w, one style for all layers, and w+, a style
        for each layer: it can come nearer to any image, but needs more steps and leaves what the
        model draws. None: w if there are styles. The result then holds styles, which `decode` and
        the walks take like z. steps: of Adam. seed: of all draws. starts: draws from the prior
        among which a model without encoder looks for a start in z. features: a function from images
        (N, C, H, W) in [0, 1] to numbers (N, ...), through which gradients flow; images that agree
        in them are nearer. features_weight: their weight against the squared error of the pixels.
        sigma: how far a pixel may be from the model's image. A larger value keeps z or w nearer to
        the mean. names: of the images, for captions. The result is a function of the model, the
        images and these arguments; on a GPU only if its convolutions are deterministic.
        """
        checked = checked_images(images, self.experiment.picture_shape)
        options = Options(
            steps=_at_least_one(steps, "steps"),
            starts=_at_least_one(starts, "starts"),
            sigma=_not_negative(sigma, "sigma"),
            learning_rate=_not_negative(learning_rate, "learning_rate"),
            seed=whole_number(seed, "seed"),
            features=features,
            features_weight=_not_negative(features_weight, "features_weight"),
            space=self._space(space),
        )
        if names and len(names) != len(checked):
            raise Refused(f"names: {len(names)} given for {len(checked)} images; give one for each")
        if not self.objective.has_prior and not isinstance(self.objective, Encodes):
            raise Refused(
                f"{self._kind} has neither a prior nor an encoder, so there is no latent to start "
                "from; take a model that has one of them"
            )
        of_each = self._labels(labels, len(checked), conditions)
        z, errors = self._projected(checked, of_each, options, progress)
        classes, numbers = self._taken_apart(of_each)
        return Projected(z, errors, classes, numbers, tuple(names), self.origin)

    def _space(self, given: Space | None) -> Space:
        """The space that is asked for, or the model's. Raises Refused."""
        if given is None:
            return "w" if self.has_styles and self.objective.has_prior else "z"
        if given not in get_args(Space):
            raise Refused(f"space: {given!r} is not one of {', '.join(get_args(Space))}")
        if given != "z" and not self.has_styles:
            raise Refused(
                f"space: {self._kind} with these networks has no styles, so there is no {given}; "
                "leave it out"
            )
        if given != "z" and not self.objective.has_prior:
            raise Refused(
                f"space: {self._kind} has no prior, so there is no mean style to start from; set "
                "it to z"
            )
        return given

    def _projected(
        self, images: Tensor, labels: Tensor | None, options: Options, progress: Progress
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The latents and the errors of images in parts, on the CPU."""
        found: list[dict[str, Tensor]] = []
        errors: list[Tensor] = []
        total = -(-len(images) // BATCH) * (options.steps + 1)
        for part, start in enumerate(range(0, len(images), BATCH)):
            rows = slice(start, start + BATCH)
            some = images[rows].to(self.device, self._dtype)
            label = None if labels is None else labels[rows].to(self.device)

            def told(step: int, error: float, done: int = part * (options.steps + 1)) -> None:
                progress(done + step + 1, total, "projecting")

            z, error = project(self.objective, self.networks, some, label, options, start, told)
            found.append({name: level.float().cpu() for name, level in z.items()})
            errors.append(error.float().cpu())
        z = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        return z, torch.cat(errors)

    def _taken_apart(
        self, labels: Tensor | None
    ) -> tuple[tuple[int, ...] | None, dict[str, list[float]] | None]:
        """The classes and the numbers, in the data's own units, of labels as networks get them."""
        if labels is None:
            return None, None
        known = self.experiment.data.condition_statistics or ()
        classes = None
        if self.experiment.label_count:
            classes = tuple(map(int, (labels[:, 0] if known else labels).tolist()))
        numbers = {
            one.name: (one.mean + one.deviation * column.double()).tolist()
            for one, column in zip(known, labels.T[-len(known) :] if known else (), strict=True)
        }
        return classes, numbers or None


def _at_least_one(given: SupportsIndex, argument: str) -> int:
    number = whole_number(given, argument)
    if number < 1:
        raise Refused(f"{argument}: {number} is less than 1; give 1 or more")
    return number


def _not_negative(given: SupportsFloat, argument: str) -> float:
    number = real_number(given, argument)
    if not 0.0 <= number < math.inf:
        raise Refused(f"{argument}: {number:g} is not a number from 0 up; give e.g. 0.1")
    return number
