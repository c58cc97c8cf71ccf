"""Networks that extract features from images for the metrics. One file each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

WEIGHTS = "evaluation.features.weights"
"""The setting that names a file of weights."""


@dataclass(frozen=True)
class Features:
    """The features of a batch of N images."""

    vectors: Tensor
    """float32 (N, D)"""
    logits: Tensor | None = None
    """Class scores, float32 (N, K). None: the extractor has no classes."""


class Extractor(Protocol):
    """A fixed network that maps images to features."""

    @property
    def name(self) -> str:
        """Architecture and layer, for the protocol."""
        ...

    @property
    def digest(self) -> str | None:
        """Identifies the weights. None: statistics of its features are never cached."""
        ...

    @property
    def resizing(self) -> str:
        """How it resizes images of another size, in words, for the protocol."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images that it takes. If 3, grey images are repeated to RGB for it, and
        images with opacity are put on white."""
        ...

    def __call__(self, images: Tensor) -> Features:
        """images: uint8 (N, channels, H, W) on the worker's device; uint16 too if the extractor
        `takes_16_bits`. Features on the same device."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    """An extractor through which gradients flow to the images."""

    def vectors_of(self, images: Tensor) -> Tensor:
        """Floats (N, channels, H, W) in [0, 1] on the extractor's device to its vectors, float32
        (N, D)."""
        ...


def takes_16_bits(extractor: Extractor) -> bool:
    """Whether it takes uint16: it then has the attribute `takes_16_bits`, which is true. For others
    images of 16 bits are rounded to 8."""
    return bool(getattr(extractor, "takes_16_bits", False))
