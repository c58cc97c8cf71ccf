"""A network of a user that has a bug, and an extractor that is slow."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor, nn

from ray_gen.core import ImageToVector


class BreaksAtStep(nn.Module):
    """Raises in one of its training steps, and adds a line to the file `raised`."""

    def __init__(self, signature: ImageToVector, *, step: int, raised: str) -> None:
        super().__init__()
        channels, height, width = signature.image_shape
        self.layer = nn.Linear(channels * height * width, signature.vector_size)
        self._left, self._raised = step, raised

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training:
            self._left -= 1
            if self._left == 0:
                with Path(self._raised).open("a") as file:
                    file.write("once\n")
                raise ZeroDivisionError("this network breaks")
        return self.layer(images.flatten(1))


class Slow:
    """Takes 3 s for a batch, after the first two."""

    def __init__(self) -> None:
        self._batches = 0

    def __call__(self, images: Tensor) -> Tensor:
        self._batches += 1
        if self._batches > 2:
            time.sleep(3.0)
        return images.float().mean((2, 3))
