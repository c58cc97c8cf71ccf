"""Labels as network inputs. Of a class, a learned vector is appended to z and a learned plane to
the image. Numbers are appended as they are.

Vectors and planes start with small weights. With torch's N(0, 1) the label was much larger than z
and the image: a conditional DCGAN on digits made one picture per class, for every z. Spread within
a class after 300 steps: 0.03 with N(0, 1), 0.13 with small weights, 0.19 in the data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_gen.core import Signature, parts_of_labels


def _table(label_count: int, size: int, spread: float) -> nn.Embedding:
    table = nn.Embedding(label_count, size)
    nn.init.normal_(table.weight, 0.0, spread)
    return table


class LabelVector(nn.Module):
    """Appends a learned vector for each class, and the numbers of the labels as they are: (N, D) to
    (N, D + size + label_numbers).

    Mirza and Osindero 2014, section 3.2. Without labels it returns x.
    """

    def __init__(self, signature: Signature, size: int) -> None:
        super().__init__()
        classes = signature.label_count
        self._signature = signature
        self.table = _table(classes, size, 0.05) if classes else None
        self.added = (size if classes else 0) + signature.label_numbers

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """x: (N, D); labels: see `Signature`."""
        if not self.added:
            return x
        classes, numbers = parts_of_labels(labels, self._signature)
        more = [] if self.table is None else [self.table(classes)]
        more += [] if numbers is None else [numbers]
        return torch.cat([x, *(part.to(x.dtype) for part in more)], dim=1)


class LabelPlane(nn.Module):
    """Appends a learned plane for each class, and a constant plane for each number of the labels:
    (N, C, H, W) to (N, C + 1 + label_numbers, H, W).

    Without labels it returns the images.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        classes = signature.label_count
        self._signature = signature
        _, self._height, self._width = signature.input
        size = self._height * self._width
        self.table = _table(classes, size, 0.02) if classes else None
        self.added = (1 if classes else 0) + signature.label_numbers

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """images: (N, C, H, W); labels: see `Signature`."""
        if not self.added:
            return images
        classes, numbers = parts_of_labels(labels, self._signature)
        more: list[Tensor] = []
        if self.table is not None:
            more.append(self.table(classes).view(-1, 1, self._height, self._width))
        if numbers is not None:
            more.append(numbers[:, :, None, None].expand(-1, -1, self._height, self._width))
        return torch.cat([images, *(part.to(images.dtype) for part in more)], dim=1)
