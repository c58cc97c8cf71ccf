"""Consistency regularisation of a discriminator (Zhang et al. 2020; Zhao et al. 2021, "Improved
consistency regularization for GANs"): an image and its mirrored, shifted copy get like logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen import losses
from ray_gen.augment import augment
from ray_gen.core import Batch, Losses, Noise, Weight
from ray_gen.objectives.game import Addition, Judgements, Kind, Round


class Consistency(Addition):
    """(D(x) - D(T(x)))² on images of one kind as D sees them."""

    def __init__(self, name: str, of: Kind, weight: Weight) -> None:
        super().__init__(name, weight)
        self._of: Kind = of
        self._copies = f"moved_{of}"
        self.noise = {
            f"{self._copies}_flip": Noise((), "uniform"),
            f"{self._copies}_shift": Noise((2,), "uniform"),
        }

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """Both passes of D get the same noise."""
        if self.name not in game.batch.due:
            return Losses({})
        first = judged[self._of]
        again = game.judged_unchanged(moved(first.seen, game.batch, self._copies), self._of)
        return Losses({self.name: losses.consistency_penalty(first.logits, again.logits)})


def moved(images: Tensor, batch: Batch, of: str) -> Tensor:
    """Copies of images_NCHW, half of them mirrored, and all shifted by whole pixels, up to 1/8 of
    each side. of: "moved_real" or "moved_fake"."""
    mirrored = (batch.noise[f"{of}_flip"] < 0.5)[:, None, None, None]
    images = torch.where(mirrored, images.flip(3), images)
    shift = {"augment_translation": batch.noise[f"{of}_shift"]}
    return augment(images, ("translation",), shift)
