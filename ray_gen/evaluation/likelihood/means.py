"""Means over the images of all workers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_gen.distributed import World


class Means:
    """Means of values over images, and their standard errors.

    It keeps sums of the values and their squares, in float64: of this rank's images, and after
    `combine` of all ranks' images.
    """

    def __init__(self, names: Sequence[str], units: int, count: int, world: World) -> None:
        """names: of the values. units: numbers in z. count: images of all ranks together."""
        self._names, self._count, self._world = list(names), count, world
        scalars = 2 * len(names)
        self._flat = torch.zeros(scalars + 2 * units, dtype=torch.float64, device=world.device)
        self._values = self._flat[:scalars].view(len(names), 2)
        self._units = self._flat[scalars:].view(2, units)

    def add(self, name: str, values: Tensor) -> None:
        """Adds a value per image, (N,), under a name."""
        values = values.double()
        self._values[self._names.index(name)] += torch.stack([values.sum(), values.square().sum()])

    def add_units(self, means: Tensor) -> None:
        """Adds the means of q(z|x), (N, D). D = `units`."""
        means = means.flatten(1).double()
        self._units += torch.stack([means.sum(0), means.square().sum(0)])

    def combine(self) -> None:
        """Sums over all ranks. Collective: every rank, same order."""
        self._world.sum_(self._flat)

    def mean(self, name: str) -> tuple[float, float | None]:
        """The mean over images and its standard error. None: there is only one image."""
        total, squares = self._values[self._names.index(name)].tolist()
        mean = total / self._count
        if self._count == 1:
            return mean, None
        variance = max(0.0, squares - total * mean) / (self._count - 1)
        return mean, math.sqrt(variance / self._count)

    def variances(self) -> Tensor:
        """Var_x(E[z|x]) of each unit: float64 (D,)."""
        mean, square = self._units / self._count
        return square - mean.square()
