"""A discriminator that also reconstructs the real images that it sees (Liu et al. 2021, FastGAN,
section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ray_gen.core import Losses, Weight
from ray_gen.objectives.game import Addition, Judgements, Round
from ray_gen.perceptual import distance_of

DISTANCE = "distance"
"""Name of the distance among an objective's own modules."""


class Reconstruction(Addition):
    """E_f ‖f(x) - D_f(x)‖ (eq. 4): the distance of all that D reconstructs of an image from what it
    saw, summed."""

    def __init__(self, weight: Weight, distance: Mapping[str, Any]) -> None:
        """distance: arguments of `distance_of`."""
        super().__init__("reconstruction", weight)
        self._distance = distance

    def modules(self) -> Mapping[str, nn.Module]:
        """The distance."""
        return {DISTANCE: distance_of(**self._distance)}

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """Of real images."""
        distance, pairs = game.networks[DISTANCE], judged["real"].reconstructions
        of_pairs = torch.stack([distance(image, again) for image, again in pairs])
        return Losses({self.name: of_pairs.sum(0).to(game.batch.images.dtype)})
