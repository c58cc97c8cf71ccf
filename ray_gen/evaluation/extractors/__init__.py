"""What looks at images for metrics on features: fixed networks, one file each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What an extractor sees in a batch: vectors (N, D) and, if it classifies, logits (N, K)."""

    vectors: Tensor
    logits: Tensor | None = None


class Extractor(Protocol):
    """A fixed network that maps images to features."""

    @property
    def name(self) -> str:
        """Architecture and layer."""
        ...

    @property
    def digest(self) -> str | None:
        """Identifies the weights. None: statistics made by it are never cached."""
        ...

    @property
    def resizing(self) -> str:
        """What it does to images of another size, in words: part of the protocol."""
        ...

    @property
    def channels(self) -> int:
        """Of the images that it sees. 3: grey images are shown as RGB."""
        ...

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, channels, H, W) on the worker's device to float32 features there."""
        ...
