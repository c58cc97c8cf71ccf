"""What modules that move once a phase have in common: sums over the images of all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ray_gen.core import PhaseModule


class PhaseSums(PhaseModule):
    """A module that sums values in the forward passes of a phase, and moves its buffers by their
    sums over all ranks when the phase ends. A phase that saw nothing moves nothing.

    A subclass calls `add` in its forward pass and says in `moved` what becomes of its buffers.
    """

    _sums: Tensor

    def __init__(self, size: int) -> None:
        """size: how many values are summed."""
        super().__init__()
        # The last one counts. The buffer keeps its address: a CUDA graph adds to it. It is 0
        # between phases, on every rank.
        self.register_buffer("_sums", torch.zeros(size + 1), persistent=False)
        self.collecting = False
        """Whether a phase that updates this module's network is under way."""

    def add(self, sums: Tensor, count: int) -> None:
        """sums: (size,), over `count` images, or groups. Outside of a phase they do not count."""
        if self.collecting:
            sums = sums.detach().to(self._sums.dtype)
            self._sums += torch.cat([sums, sums.new_full((1,), count)])

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """The new values of buffers, by name. sums: (size,), over `count` images, or groups:
        at least 1."""
        raise NotImplementedError

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Start collecting."""
        self._sums.zero_()
        self.collecting = True

    def phase_statistics(self) -> Tensor | None:
        """(size + 1,): the sums, and over how many images."""
        return self._sums if self.collecting else None

    def end_phase(
        self, statistics: Tensor | None, noise: Mapping[str, Tensor] | None = None
    ) -> None:
        """Move the buffers, if any rank saw images."""
        assert statistics is not None
        sums, count = statistics[:-1], statistics[-1]
        for name, value in self.moved(sums, count.clamp(min=1.0)).items():
            buffer = self.get_buffer(name)
            buffer.copy_(torch.where(count > 0, value, buffer))
        self._sums.zero_()
        self.collecting = False
