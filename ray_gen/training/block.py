"""A block of updates of a phase: what changes from one to the next lies in buffers on the device,
which keep their place for the whole run, and a counter on the device says which row is meant.

So a step can be recorded once and replayed: nothing in it is a number of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Block:
    """Where a phase is, on the host and on the device. Blocks begin at multiples of `length`, so
    that what is drawn for one does not depend on where a run was resumed."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.length = length
        self.place = torch.zeros((), dtype=torch.int64, device=device)
        """The row of the present update: int64 (). At its end the update itself adds 1."""
        self._next: int | None = None
        self.update = 0
        """The present update of the phase, counted from 0."""

    def begin(self, update: int) -> bool:
        """Go to an update; whether the buffers have to be filled, from `first` on."""
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
        """The update that the block begins with."""
        return self.update - self.row


class Numbers:
    """Some numbers at the updates of a block, computed on the host in Python's floats and copied
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
        """Write a block. images: those seen before the update in a row."""
        seen = [images(row) for row in range(self._values.shape[1])]
        values = [[number(before) for before in seen] for number in self._numbers.values()]
        exact = torch.tensor(values, dtype=torch.float64).to(self._values.dtype)
        if self._values.device.type == "cuda":
            exact = exact.pin_memory()  # so that the copy waits for nothing
        self._values.copy_(exact, non_blocking=True)

    def read(self, place: Tensor) -> dict[str, Tensor]:
        """Those of a row, 0-dimensional. place: int64 (), on the device."""
        return {name: values.take(place) for name, values in self._by_name.items()}
