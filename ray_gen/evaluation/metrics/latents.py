"""Mean and spread of a model's latents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ray_gen.evaluation.metric import Lacking, Metric, Shown
from ray_gen.evaluation.scores import Score
from ray_gen.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ray_gen.core import Objective
    from ray_gen.evaluation.images import Consumer
    from ray_gen.evaluation.reconstructions import Rows


class Latents(Metric[Settings]):
    """`latents`: draws z from the posteriors of all held-out images, by their means and variances.
    `latent_std`: the standard deviation of all numbers of z together. `latent_scaling`: 1 /
    latent_std, by which a model of the latents multiplies them (Rombach et al. 2022, section G).
    The protocol has mean and standard deviation of each channel."""

    asked_as = ("latents",)
    scores = {"latent_std": None, "latent_scaling": None}
    of_samples = False
    of_reconstructions = True
    needs_of_objective = "Encodes"

    @classmethod
    def fits(cls, objective: Objective | None) -> bool:
        """Whether the model has one latent."""
        return super().fits(objective) and objective is not None and len(objective.latents) == 1

    def check(self) -> None:
        """The model has one latent."""
        assert self.given.subject is not None
        names = list(self.given.subject.objective.latents)
        if len(names) != 1:
            told = f"it has {', '.join(names) or 'none'}"
            raise Lacking(
                f"evaluation.metrics: latents describes the one latent of a model, and {told}; "
                "leave it out",
                f"the model must have one latent, and {told}",
            )

    @cached_property
    def _channels(self) -> int:
        assert self.given.subject is not None
        return next(iter(self.given.subject.objective.latents.values())).shape[0]

    @cached_property
    def _rows(self) -> Rows:
        from ray_gen.core import Encodes, posteriors_of
        from ray_gen.evaluation.images import own_share
        from ray_gen.evaluation.reconstructions import Originals, Rows

        given, originals, subject = self.given, self.given.sets["originals"], self.given.subject
        assert subject is not None and isinstance(originals, Originals)
        objective, networks = subject.objective, subject.networks
        assert isinstance(objective, Encodes)

        def moments(first: int, levels: Tensor) -> Tensor:
            labels = originals.labels_of(first, len(levels), levels.device)
            found = posteriors_of(objective, networks, originals.seen(levels), labels)
            return moments_of(*next(iter(found.values())))

        own = own_share(len(originals), given.batch_size, given.world)
        return Rows(moments, 2 * self._channels, own, given.world)

    def sees(self, name: Shown) -> Sequence[Consumer]:
        """The originals are encoded."""
        return [self._rows] if name == "originals" else []

    def measure(self) -> Iterator[Score]:
        """Standard deviation and scaling. Collective: every rank, same order."""
        from ray_gen.evaluation.reconstructions import has_codes

        rows = self._rows.of_all(len(self.given.sets["originals"]))
        means, squares = rows.mean(0).chunk(2)
        deviations = (squares - means.square()).clamp(min=0).sqrt()
        mean = means.mean().item()
        deviation = math.sqrt(max(0.0, squares.mean().item() - mean**2))
        of = "draws from the posteriors, from their means and variances"
        subject = self.given.subject
        if subject is not None and has_codes(subject.objective):
            of = "codes"
        protocol = {
            "of": of,
            "mean": mean,
            "mean_of_channels": means.tolist(),
            "std_of_channels": deviations.tolist(),
        }
        yield Score("latent_std", deviation, None, {"unit": "of all numbers of z", **protocol})
        if deviation:
            scaling = {"unit": "z times this has std 1", **protocol}
            yield Score("latent_scaling", 1 / deviation, None, scaling)


def moments_of(mean: Tensor, log_variance: Tensor | None) -> Tensor:
    """The mean of z and of z² over positions, for z from N(mean, exp(log_variance)), of each image
    and channel: (N, c, ...) twice to float64 (N, 2 c). log_variance None: z is the mean."""
    import torch

    mean = mean.double().flatten(2) if mean.ndim > 2 else mean.double()[..., None]
    squares = mean.square()
    if log_variance is not None:
        squares = squares + log_variance.double().reshape(mean.shape).exp()
    return torch.cat([mean.mean(2), squares.mean(2)], dim=1)
