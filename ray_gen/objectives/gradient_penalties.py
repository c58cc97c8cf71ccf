"""Penalties on the discriminator's gradient at its images: R1, R2 (Mescheder et al. 2018) and the
gradient penalty (Gulrajani et al. 2017)."""

from __future__ import annotations

import torch

from ray_gen import losses
from ray_gen.core import Losses, Noise, NoiseOf, Number, Schedule, Weight
from ray_gen.objectives.game import Addition, Judgements, Kind, Round, as_input


class ZeroCentred(Addition):
    """‖∇_x D(x)‖² on real images (R1) or on generated ones (R2); its weight is γ/2.

    If not `alone`, the phase's own passes must be over images whose gradient can be asked for
    (`as_input`).
    """

    def __init__(self, name: str, of: Kind, weight: Weight, *, alone: bool) -> None:
        super().__init__(name, weight)
        self._of: Kind = of
        self.alone = alone

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """From a pass of its own, if it is `alone`."""
        if self.alone:
            one = game.judged(as_input(game.images(self._of)), self._of)
        elif self.name in game.batch.due:
            one = judged[self._of]
        else:
            return Losses({})
        return Losses({self.name: losses.squared_gradient_norm(one.logits, one.images)})


class OneCentred(Addition):
    """(‖∇_x D(x̂)‖₂ - 1)² on mixes of a real and a generated image; its weight is λ."""

    alone = True

    def __init__(self, name: str, weight: Weight) -> None:
        super().__init__(name, weight)
        share = Noise((1, 1, 1), "uniform")  # of the real image in each mix
        self.noise = {"mix": share, "judged_mix": NoiseOf("discriminator")}

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """From a pass of its own."""
        fakes = game.images("fake")
        share = game.batch.noise["mix"].to(fakes.dtype)
        mixes = as_input(torch.lerp(fakes, game.images("real"), share))
        logits = game.judged(mixes, "mix").logits
        return Losses({self.name: losses.gradient_norm_penalty(logits, mixes)})


def halved(number: Number) -> Number:
    """γ/2 of γ."""
    return number / 2 if isinstance(number, (int, float)) else _Half(number)


class _Half:
    """Half of a schedule."""

    def __init__(self, number: Schedule) -> None:
        self._number = number

    def at(self, images: float) -> float:
        """Half of the schedule's value after `images` images."""
        return self._number.at(images) / 2
