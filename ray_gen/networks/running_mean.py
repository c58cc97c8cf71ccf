"""A mean over training: the middle of all styles, the usual deviation between images."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.core import PhaseModule


class RunningMean(PhaseModule):
    """The mean of values that a network computes in training. Older values weigh less: `decay` to
    the power of the updates since. A forward pass calls `see`. The mean moves once in each phase
    that updates the network, towards the mean over all ranks; other phases do not count."""

    total: Tensor
    """(*shape): the mean times 1 - `rest`."""
    rest: Tensor
    """0-dimensional: the weight that the start at 0 still has."""
    _sums: Tensor

    def __init__(self, shape: tuple[int, ...], decay: float) -> None:
        super().__init__()
        self._shape, self._decay = shape, decay
        zeros = torch.zeros(shape)
        self.register_buffer("total", zeros)
        self.register_buffer("rest", torch.ones(()))
        # Sums of this phase, and their count. The buffer keeps its address: a CUDA graph adds to
        # it. It is 0 between phases, on every rank.
        self.register_buffer("_sums", torch.zeros(zeros.numel() + 1), persistent=False)
        self._collecting = False

    @property
    def mean(self) -> Tensor:
        """(*shape). 0 before the first update."""
        return self.total / (1.0 - self.rest).clamp(min=1e-6)

    def see(self, values: Tensor) -> None:
        """values: (N, *shape)."""
        if not self._collecting:
            return
        values = values.detach().to(self._sums.dtype).reshape(len(values), -1)
        self._sums += torch.cat([values.sum(0), values.new_full((1,), len(values))])

    def begin_phase(self, original: Tensor | None = None) -> None:
        """Start collecting."""
        self._sums.zero_()
        self._collecting = True

    def phase_statistics(self) -> Tensor | None:
        """Sums of the values, and their number, in one tensor."""
        return self._sums if self._collecting else None

    def end_phase(self, statistics: Tensor | None, noise: object = None) -> None:
        """Moves the mean, if the phase saw values."""
        assert statistics is not None
        sums, count = statistics[:-1].view(self._shape), statistics[-1]
        seen, now = count > 0, sums / count.clamp(min=1.0)
        moved = self.total.lerp(now, 1.0 - self._decay)
        self.total.copy_(torch.where(seen, moved, self.total))
        self.rest.copy_(torch.where(seen, self.rest * self._decay, self.rest))
        self._sums.zero_()
        self._collecting = False
