"""LeCam (Tseng et al. 2021): logits are held near the running means of the other kind's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_gen import losses
from ray_gen.core import Losses, Weight
from ray_gen.objectives.game import Addition, Judgements, Round
from ray_gen.phase_sums import PhaseSums

DECAY = 0.99
"""Of the running means, for each update of the discriminator (Tseng et al. 2021, appendix)."""


class LeCam(Addition):
    """max(0, D(x) - α_F)² + max(0, α_R - D(G(z)))² (eq. 3)."""

    updated = ("anchors",)

    def __init__(self, weight: Weight) -> None:
        super().__init__("lecam", weight)

    def modules(self) -> Mapping[str, nn.Module]:
        """The means α_R and α_F."""
        return {"anchors": Anchors()}

    def losses(self, game: Round, judged: Judgements) -> Losses:
        """The means move in each phase, also where the penalty is not due."""
        real, fake = judged["real"].logits, judged["fake"].logits
        means = game.networks["anchors"](real, fake)
        due = self.name in game.batch.due
        return Losses({self.name: losses.lecam_penalty(real, fake, *means)} if due else {})


class Anchors(PhaseSums):
    """The means of D(x) and D(G(z)) over the updates of D, older ones weighing less: α_R and α_F of
    Tseng et al. 2021, section 3.2. A phase uses them, then moves them by its own mean logits."""

    means: Tensor
    """(2,): of real and of generated images, weighted by 1 - `rest`."""
    rest: Tensor
    """0-dimensional: the weight that the start at 0 still has."""

    def __init__(self) -> None:
        super().__init__(2)
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("rest", torch.ones(()))

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, ...) of real and generated images -> α_R and α_F, 0-dimensional. Both are 0
        before the first update."""
        sums = [losses.mean_of_each(logits.detach()).sum() for logits in (real, fake)]
        self.add(torch.stack(sums), len(real))
        real_anchor, fake_anchor = self.means / (1.0 - self.rest).clamp(min=1e-6)
        return real_anchor.to(real.dtype), fake_anchor.to(real.dtype)

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """Both, by an update."""
        return {"means": self.means.lerp(sums / count, 1.0 - DECAY), "rest": self.rest * DECAY}
