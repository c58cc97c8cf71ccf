"""A network of a user that has a bug, and an extractor that is too large."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_gen.core import ImageToVector


class BreaksAtStep(nn.Module):
    """Raises in one of its training steps."""

    def __init__(self, signature: ImageToVector, *, step: int) -> None:
        super().__init__()
        channels, height, width = signature.image_shape
        self.layer = nn.Linear(channels * height * width, signature.vector_size)
        self._left = step

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training:
            self._left -= 1
            if self._left == 0:
                raise ZeroDivisionError("this network breaks at step 100")
        return self.layer(images.flatten(1))


class RunsOutOfMemory(nn.Module):
    """As a GPU does when too many images are looked at at once."""

    def forward(self, images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
