"""How labels enter a network.

concatenated: of a class, a learned vector is appended to z and a learned plane to the image;
numbers are appended as they are. conditional_batch_norm: gains and biases of BatchNorm are linear
in the labels. projection: a discriminator's logit gets the inner product of its features and a
vector that is linear in the labels.

Vectors and planes start with small weights. With torch's N(0, 1) the label was much larger than z
and the image: a conditional DCGAN on digits made one picture per class, for every z. Spread within
a class after 300 steps: 0.03 with N(0, 1), 0.13 with small weights, 0.19 in the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_gen.core import Signature, parts_of_labels


def code_size(signature: Signature) -> int:
    """How many numbers `label_code` gives for an image: 0 if the network gets no labels."""
    return (signature.label_count or 0) + signature.label_numbers


def label_code(labels: Tensor | None, signature: Signature, like: Tensor) -> Tensor:
    """Labels as numbers, (N, code_size), of the type of `like`: 1 at the class and 0 at the others,
    then the labels' own numbers. A linear layer of them is a table of vectors, one for each class.

    labels: see `Signature`.
    """
    classes, numbers = parts_of_labels(labels, signature)
    parts = [] if numbers is None else [numbers]
    if classes is not None and signature.label_count:
        every = torch.arange(signature.label_count, device=classes.device)
        parts.insert(0, classes[:, None] == every)
    return torch.cat([part.to(like.dtype) for part in parts], dim=1)


def without_labels(signature: Signature) -> Signature:
    """The same inputs and outputs, for parts of a network that get no labels."""
    s = signature
    return Signature(s.input, s.outputs, None, s.activation, s.conditions)


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


class ConditionalBatchNorm(nn.Module):
    """BatchNorm with gains and biases that depend on a condition c: (1 + W c) x̂ + V c.

    For the code of a class (`label_code`) these are a gain and a bias for each class (Dumoulin et
    al. 2017, eq. 5; Miyato and Koyama 2018, section 5). They begin at 1 and 0. With
    `condition_size` 0 it is BatchNorm with gains and biases of its own. (N, C, H, W) to the same.
    """

    def __init__(self, channels: int, condition_size: int) -> None:
        super().__init__()
        self.conditional = condition_size > 0
        # Training replaces it by GroupBatchNorm, which normalises each group by itself.
        self.norm = nn.BatchNorm2d(channels, affine=not self.conditional)
        if self.conditional:
            self.gain = nn.Linear(condition_size, channels, bias=False)
            self.bias = nn.Linear(condition_size, channels, bias=False)
            self.begin_as_plain()

    def begin_as_plain(self) -> None:
        """Set all gains to 1 and all biases to 0."""
        if self.conditional:
            nn.init.zeros_(self.gain.weight)
            nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x: (N, C, H, W); condition: (N, condition_size)."""
        normalised = self.norm(x)
        if not self.conditional:
            return normalised
        gain, bias = 1.0 + self.gain(condition), self.bias(condition)  # (N, C)
        return normalised * gain[:, :, None, None] + bias[:, :, None, None]


class Projection(nn.Module):
    """⟨V y, φ⟩ of the code y of an image's labels and its features φ, (N, F) to (N, 1): what a
    discriminator's logit gets (Miyato and Koyama 2018, eq. 3). For numbers it is linear in them."""

    def __init__(self, signature: Signature, features: int) -> None:
        super().__init__()
        outputs = signature.outputs
        first = next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs
        if first != (1,):
            raise ValueError(
                "labels: projection adds a number to one logit, but the objective asks for "
                f"{math.prod(first)} numbers of an image; set labels to concatenated"
            )
        self._signature = signature
        self.vectors = nn.Linear(code_size(signature), features, bias=False)
        nn.init.xavier_uniform_(self.vectors.weight)

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """features: (N, F); labels: see `Signature`."""
        vectors = self.vectors(label_code(labels, self._signature, features))
        return (vectors * features).sum(1, keepdim=True)
