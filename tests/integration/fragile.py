"""A user's network that fails in a chosen way."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn

from ray_gen.core import ImageToVector


class Fragile(nn.Module):
    """Linear. In its 20th training step it raises, gives NaN or kills its process. With `kill at
    once` it kills its process in its second step, before any checkpoint."""

    def __init__(self, signature: ImageToVector, *, end: str) -> None:
        super().__init__()
        channels, height, width = signature.image_shape
        self.layer = nn.Linear(channels * height * width, signature.vector_size)
        self._end = end
        self._left = 2 if end == "kill at once" else 20

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        self._left -= self.training
        if self._left == 0 and self._end == "raise":
            raise ZeroDivisionError("this network breaks at step 20")
        if self._left == 0 and self._end.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        values = self.layer(images.flatten(1))
        return values * torch.nan if self._left == 0 and self._end == "nan" else values


class Greedy(nn.Module):
    """Linear; takes memory until it is stopped."""

    def __init__(self, signature: ImageToVector, *, gigabytes: int) -> None:
        super().__init__()
        channels, height, width = signature.image_shape
        self.layer = nn.Linear(channels * height * width, signature.vector_size)
        self._wanted = gigabytes
        self._held: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if len(self._held) < self._wanted:
            self._held.append(torch.ones(2**28))
        return self.layer(images.flatten(1))
