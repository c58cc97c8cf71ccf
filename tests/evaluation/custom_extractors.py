"""Users' extractors, right and wrong."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ray_gen.evaluation.extractors import Features


class Mean(nn.Module):
    """A module that gives a tensor."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(3, size)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.float().mean((2, 3)))


class Function:
    """Not a module. It has `resizing`, `digest` and logits."""

    resizing = "mean over pixels"
    digest = "version 1"

    def __call__(self, images: Tensor) -> Features:
        means = images.float().mean((2, 3))
        return Features(means, means)


class Unknown:
    """It has no `digest`, so nothing identifies it."""

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


class Wrong:
    """Gives features of a wrong shape, type or value."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, images: Tensor) -> object:
        rows = images.float().mean((2, 3))
        return {
            "a batch's mean": rows.mean(0),
            "one row less": rows[1:],
            "maps": images.float(),
            "float64": rows.double(),
            "a list": rows.tolist(),
            "infinite": rows / torch.zeros(()),
        }[self.what]


class NotCallable:
    """An object without `__call__`."""


class Slow(Unknown):
    """Takes one second per batch."""

    def __call__(self, images: Tensor) -> Tensor:
        time.sleep(1.0)
        return super().__call__(images)
