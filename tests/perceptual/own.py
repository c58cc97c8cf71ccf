"""A distance of a user's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projected(nn.Module):
    """The squared difference of a projection that does not learn."""

    def __init__(self, size: int = 4, value: float = 0.5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.layer = nn.Conv2d(1, size, 3)
        self._value = value

    def load(self) -> None:
        nn.init.constant_(self.layer.weight, self._value)

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.layer(self.norm(images))
        return (self.layer(self.norm(again)) - wanted).square().flatten(1).mean(1)


class Whole(nn.Module):
    """One value for all images: wrong."""

    def forward(self, images: Tensor, again: Tensor) -> Tensor:
        return (images - again).abs().mean()
