"""The fully connected parts of StyleGAN2 (Karras et al. 2020): layers that learn slowly, and labels
as vectors."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ray_gen.core import Signature, parts_of_labels
from ray_gen.networks.equalised import GAIN, EqualisedLinear, activated, with_unit_mean_square


class LabelMapping(nn.Module):
    """Labels to vectors (N, size) with a mean square of 1: a vector for each class, plus a linear
    map of the numbers. The bias of that map begins as N(0, 1): without it only the sign of a single
    number would survive the division."""

    def __init__(self, signature: Signature, size: int) -> None:
        super().__init__()
        classes, numbers = signature.label_count, signature.label_numbers
        self._signature = signature
        self.table = nn.Embedding(classes, size) if classes else None  # begins as N(0, 1)
        self.numbers = EqualisedLinear(numbers, size) if numbers else None
        if self.numbers is not None:
            nn.init.normal_(self.numbers.bias)

    @property
    def is_empty(self) -> bool:
        """Whether the signature has no labels."""
        return self.table is None and self.numbers is None

    def forward(self, labels: Tensor | None) -> Tensor:
        """labels: see `Signature`."""
        classes, numbers = parts_of_labels(labels, self._signature)
        found: list[Tensor] = [] if self.table is None else [self.table(classes)]
        if self.numbers is not None:
            assert numbers is not None
            found.append(self.numbers(numbers.to(self.numbers.weight.dtype)))
        return with_unit_mean_square(found[0] if len(found) == 1 else found[0] + found[1])


class Layers(nn.Sequential):
    """Fully connected layers with LeakyReLU, which learn slowly. With a rate r of 0.01 the mapping
    stays stable at learning rates that suit the convolutions (Karras et al. 2019, appendix C)."""

    def __init__(self, inputs: int, size: int, count: int, rate: float) -> None:
        sizes = [inputs] + [size] * count
        super().__init__(*(EqualisedLinear(a, b, rate=rate) for a, b in pairwise(sizes)))

    def forward(self, input: Tensor) -> Tensor:
        """(N, inputs) to (N, size)."""
        for layer in self:
            input = activated(layer(input, GAIN))
        return input
