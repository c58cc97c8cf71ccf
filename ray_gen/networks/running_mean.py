"""A mean over training: the middle of all styles, the usual deviation between images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ray_gen.phase_sums import PhaseSums


class RunningMean(PhaseSums):
    """The mean of values that a network computes in training. Older values weigh less: `decay` to
    the power of the updates since. A forward pass calls `see`. The mean moves once in each phase
    that updates the network, towards the mean over all ranks; other phases do not count."""

    total: Tensor
    """(*shape): the mean times 1 - `rest`."""
    rest: Tensor
    """0-dimensional: the weight that the start at 0 still has."""

    def __init__(self, shape: tuple[int, ...], decay: float) -> None:
        super().__init__(math.prod(shape))
        self._shape, self._decay = shape, decay
        self.register_buffer("total", torch.zeros(shape))
        self.register_buffer("rest", torch.ones(()))

    @property
    def mean(self) -> Tensor:
        """(*shape). 0 before the first update."""
        return self.total / (1.0 - self.rest).clamp(min=1e-6)

    def see(self, values: Tensor) -> None:
        """values: (N, *shape)."""
        if self.collecting:
            values = values.detach().to(self._sums.dtype).reshape(len(values), -1)
            self.add(values.sum(0), len(values))

    def moved(self, sums: Tensor, count: Tensor) -> Mapping[str, Tensor]:
        """Both, by an update."""
        now = (sums / count).view(self._shape)
        return {
            "total": self.total.lerp(now, 1.0 - self._decay),
            "rest": self.rest * self._decay,
        }
