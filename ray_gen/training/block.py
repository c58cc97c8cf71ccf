"""A block of updates of a phase. Values that change from update to update lie in buffers on the
device. The buffers keep their address for the whole run, and a counter on the device gives the
present row.

So a step can be recorded once and replayed: no changing number comes from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Block:
    """The position of a phase, on the host and on the device. Blocks begin at multiples of
    `length`, so the noise of a block does not depend on the step at which a run was resumed."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.length = length
        self.place = torch.zeros((), dtype=torch.int64, device=device)
        """Row of the present update: int64 (). The update adds 1 to it at its end."""
        self._next: int | None = None
        self.update = 0
        """The present update of the phase, counted from 0."""

    def begin(self, update: int) -> bool:
        """Go to an update. Returns whether the caller must fill the buffers, from `first` on."""
        follows = update == self._next
        self.update, self._next = update, update + 1
        if follows and update % self.length:
            return False
        self.place.fill_(self.row)
        return True

    @property
    def row(self) -> int:
        """`place`, on the host."""
        return self.update % self.length

    @property
    def first(self) -> int:
        """The first update of the present block."""
        return self.update - self.row


class Numbers:
    """Numbers at the updates of a block. The host computes them as Python floats and copies them
    once a block."""

    def __init__(
        self,
        numbers: Mapping[str, Callable[[float], float]],
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """numbers: each a function of the images seen."""
        self._numbers = dict(numbers)
        self._values = torch.zeros(len(numbers), length, dtype=dtype, device=device)
        self._by_name = dict(zip(numbers, self._values.unbind(), strict=True))

    def fill(self, images: Callable[[int], float]) -> None:
        """Write a block. images: from a row to the number of images seen before its update."""
        seen = [images(row) for row in range(self._values.shape[1])]
        values = [[number(before) for before in seen] for number in self._numbers.values()]
        exact = torch.tensor(values, dtype=torch.float64).to(self._values.dtype)
        if self._values.device.type == "cuda":
            exact = exact.pin_memory()  # so that the host does not wait for the copy
        self._values.copy_(exact, non_blocking=True)

    def read(self, place: Tensor) -> dict[str, Tensor]:
        """The numbers of row `place`, by name, 0-dimensional. place: int64 (), on the device."""
        return {name: values.take(place) for name, values in self._by_name.items()}
