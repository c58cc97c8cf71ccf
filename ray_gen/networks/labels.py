"""Labels as network inputs: a learned vector is appended to z, a learned plane to the image.

Both start with small weights. With torch's N(0, 1) the label was much larger than z and the image:
a conditional DCGAN on digits made one picture per class, for every z. Spread within a class after
300 steps: 0.03 with N(0, 1), 0.13 with small weights, 0.19 in the data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_gen.core import Shape


def _table(label_count: int, size: int, spread: float) -> nn.Embedding:
    table = nn.Embedding(label_count, size)
    nn.init.normal_(table.weight, 0.0, spread)
    return table


class LabelVector(nn.Module):
    """Appends a learned vector for each label: (N, D) to (N, D + size).

    Mirza and Osindero 2014, section 3.2. Without labels (`label_count` None) it returns x.
    """

    def __init__(self, label_count: int | None, size: int) -> None:
        super().__init__()
        self.added = 0 if label_count is None else size
        self.table = None if label_count is None else _table(label_count, size, 0.05)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """x: (N, D); labels: int64 (N,) or None."""
        if self.table is None:
            return x
        return torch.cat([x, self.table(labels).to(x.dtype)], dim=1)


class LabelPlane(nn.Module):
    """Appends a learned plane for each label: (N, C, H, W) to (N, C + 1, H, W).

    Without labels (`label_count` None) it returns the images.
    """

    def __init__(self, label_count: int | None, image_shape: Shape) -> None:
        super().__init__()
        _, self._height, self._width = image_shape
        self.added = 0 if label_count is None else 1
        size = self._height * self._width
        self.table = None if label_count is None else _table(label_count, size, 0.02)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """images: (N, C, H, W); labels: int64 (N,) or None."""
        if self.table is None:
            return images
        plane = self.table(labels).to(images.dtype).view(-1, 1, self._height, self._width)
        return torch.cat([images, plane], dim=1)
