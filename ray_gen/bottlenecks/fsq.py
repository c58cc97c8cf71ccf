"""Finite scalar quantisation (Mentzer et al. 2024, "Finite scalar quantization: VQ-VAE made
simple")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ray_gen.bottlenecks.gradients import straight_through
from ray_gen.bottlenecks.quantiser import Quantised
from ray_gen.bottlenecks.usage import Usage
from ray_gen.core import Noise

_MARGIN = 1e-3
"""So much wider than its outermost levels is the bound, so that these can be reached."""


class Fsq(nn.Module):
    """Each channel i of an encoding is rounded to one of Lᵢ levels. The codes are all combinations
    of levels: K = Πᵢ Lᵢ. There is nothing to learn, and there is no loss.

    Section 3.1, with z = 0 in the middle of the tanh:

        b = h tanh(z + atanh(o / h)) - o,   h = (L - 1) (1 + 10⁻³) / 2,   o = ½ if L is even, else 0

    z_q = round(b) / ⌊L / 2⌋ lies in [-1, 1], and in [-1, 1 - 2 / L] for even L. Gradients pass
    straight through the rounding. The paper's appendix has 1 - 10⁻³ and tan in place of 1 + 10⁻³
    and atanh; common code has these. The index of a code is Σᵢ (round(bᵢ) + ⌊Lᵢ / 2⌋) Πⱼ﹤ᵢ Lⱼ.
    """

    loss_names: ClassVar[tuple[str, ...]] = ()
    noise: Mapping[str, Noise] = MappingProxyType({})

    levels: Tensor
    """L: (c, 1, 1)"""
    places: Tensor
    """Πⱼ﹤ᵢ Lⱼ: int64 (c, 1, 1)"""

    def __init__(self, levels: Sequence[int]) -> None:
        """levels: one for each channel, each at least 2."""
        super().__init__()
        self.channels, self.code_count = len(levels), math.prod(levels)
        places = [math.prod(levels[:i]) for i in range(len(levels))]
        as_maps = {
            "levels": torch.tensor(levels, dtype=torch.get_default_dtype()),
            "places": torch.tensor(places),
        }
        for name, values in as_maps.items():
            self.register_buffer(name, values[:, None, None], persistent=False)
        self.used = Usage(self.code_count)

    def forward(self, z: Tensor, *, noise: Mapping[str, Tensor] | None = None) -> Quantised:
        """Encodings (N, c, h, w) to codes."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self._bounded(z)
            rounded = bounded.detach().round()
            indices = self._indices(rounded)
            self.used(indices)
            z_q = straight_through(bounded, rounded) / self._steps()
        return Quantised(z_q, indices, {}, self.used.of_phase())

    @torch.no_grad()
    def quantised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `Quantiser`."""
        with torch.autocast(z.device.type, enabled=False):
            rounded = self._bounded(z).round()
            return rounded / self._steps(), self._indices(rounded)

    def lookup(self, indices: Tensor) -> Tensor:
        """int64 (N, h, w) to codes (N, c, h, w)."""
        levels = self.levels.long()
        digits = (indices[:, None] // self.places) % levels
        return (digits - levels // 2).to(self.levels.dtype) / self._steps()

    def _steps(self) -> Tensor:
        """⌊L / 2⌋: (c, 1, 1)"""
        return (self.levels / 2).floor()

    def _bounded(self, z: Tensor) -> Tensor:
        z = z.to(self.levels.dtype)
        half = (self.levels - 1) * ((1 + _MARGIN) / 2)
        offset = 0.5 - 0.5 * (self.levels % 2)
        return half * (z + (offset / half).atanh()).tanh() - offset

    def _indices(self, rounded: Tensor) -> Tensor:
        return ((rounded + self._steps()).long() * self.places).sum(1)
