"""Running means of the discriminator's logits, for the regularisation of LeCam."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.core import PhaseModule
from ray_gen.losses import mean_of_each

DECAY = 0.99
"""Of the running means, for each update of the discriminator (Tseng et al. 2021, appendix)."""


class Anchors(PhaseModule):
    """The means of D(x) and D(G(z)) over the updates of D, older ones weighing less: α_R and α_F of
    Tseng et al. 2021, section 3.2. A phase uses them, then moves them by its own mean logits."""

    means: Tensor
    """(2,): of real and of generated images, weighted by 1 - `rest`."""
    rest: Tensor
    """0-dimensional: the weight that the start at 0 still has."""
    _sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("_sums", torch.zeros(3), persistent=False)

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, ...) of real and generated images -> α_R and α_F, 0-dimensional. Both are 0
        before the first update."""
        count = real.new_full((), len(real))
        sums = [mean_of_each(logits.detach()).sum() for logits in (real, fake)]
        self._sums += torch.stack([*sums, count]).to(self._sums.dtype)
        real_anchor, fake_anchor = self.means / (1.0 - self.rest).clamp(min=1e-6)
        return real_anchor.to(real.dtype), fake_anchor.to(real.dtype)

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Forgets what it saw outside of a phase."""
        self._sums.zero_()

    def phase_statistics(self) -> Tensor | None:
        """Sums of both logits, and the number of images."""
        return self._sums

    def end_phase(self, statistics: Tensor | None, noise: object = None) -> None:
        """Moves the means, if the phase saw images."""
        assert statistics is not None
        count = statistics[2]
        seen = count > 0
        now = statistics[:2] / count.clamp(min=1.0)
        self.means.copy_(torch.where(seen, self.means.lerp(now, 1.0 - DECAY), self.means))
        self.rest.copy_(torch.where(seen, self.rest * DECAY, self.rest))
        self._sums.zero_()
