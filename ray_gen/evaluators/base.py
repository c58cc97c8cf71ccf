"""What evaluators agree on: images by number, extractors of features, scores with a protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): how far this worker is with its own share."""


def silent(done: int, total: int, what: str) -> None:
    """A progress that nobody looks at."""


@dataclass(frozen=True)
class Score:
    """A value with the protocol that it was measured by: without it, it compares with nothing."""

    name: str
    value: float
    spread: float | None
    """Standard deviation over subsets or splits, where the metric has one."""
    protocol: Mapping[str, Any]
    """What JSON can hold."""


class Images(Protocol):
    """Images by number; the same number is the same image on every worker."""

    @property
    def description(self) -> Mapping[str, Any]:
        """For the protocol: run, weights (EMA or raw) and seed, or data and split."""
        ...

    @property
    def digest(self) -> str | None:
        """Identifies the content of all of them; None: statistics of them are never cached."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W), 0 to 255, on the worker's device."""
        ...


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
        """Identifies the weights; None: statistics made by it are never cached."""
        ...

    @property
    def resizing(self) -> str:
        """What it does to images of another size, in words: part of the protocol."""
        ...

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 3, H, W) on the worker's device to float32 features there."""
        ...
