"""The features of a set of images: their moments, and all vectors if a metric needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.extractors import (
    Differentiable,
    Extractor,
    Features,
    takes_16_bits,
)
from ray_gen.evaluation.images import as_rgb, gathered, with_8_bits
from ray_gen.evaluation.moments import Moments
from ray_gen.pixels import over
from ray_gen.precision import full_precision

Need = Literal["moments", "features", "logits"]
"""What a metric needs. moments: mean and covariance of the feature vectors. features: all vectors.
logits: class scores of the generated images."""


@torch.no_grad()
def extracted(extractor: Extractor, images: Tensor) -> Features:
    """The features of a batch, float32. images: uint8 or uint16 (N, C, H, W). Raises Refused if the
    extractor gives other shapes or types than `Features` has."""
    seen = as_rgb(images) if extractor.channels == 3 else images
    if not takes_16_bits(extractor):
        seen = with_8_bits(seen)
    with full_precision(images.device), torch.autocast(images.device.type, enabled=False):
        found = extractor(seen)
    _check(extractor.name, "vectors", found.vectors, len(images))
    if found.logits is not None:
        _check(extractor.name, "logits", found.logits, len(images))
    return found


def vectors_of(extractor: Extractor, channels: int, *, opacity: bool) -> Callable[[Tensor], Tensor]:
    """A function from floats (N, channels, H, W) in [0, 1] to the extractor's vectors (N, D),
    through which gradients flow. opacity: whether the last channel is opacity. Raises Refused."""
    if not isinstance(extractor, Differentiable):
        raise Refused(
            f"evaluation.features: no gradients flow through {extractor.name}; take "
            "torchvision:NAME or run:RUN, or give your class a method `vectors_of`"
        )
    if channels == extractor.channels:
        return extractor.vectors_of
    if extractor.channels != 3 or (channels != 1 and not (opacity and channels in (2, 4))):
        raise Refused(
            f"evaluation.features: {extractor.name} takes images of {extractor.channels} channels, "
            f"and these have {channels}; take features of a run on such images: run:RUN"
        )

    def found(images: Tensor) -> Tensor:
        seen = over(images, 1.0) if opacity else images
        return extractor.vectors_of(seen.expand(-1, 3, -1, -1) if seen.shape[1] == 1 else seen)

    return found


def _check(name: str, what: str, rows: object, count: int) -> None:
    if not isinstance(rows, Tensor):
        raise Refused(
            f"evaluation.features: {name} gave {what} as {type(rows).__name__}; return a tensor "
            "of vectors (N, D), or ray_gen.evaluation.extractors.Features"
        )
    if rows.ndim != 2 or len(rows) != count or rows.dtype != torch.float32:
        raise Refused(
            f"evaluation.features: {name} gave {what} of shape {tuple(rows.shape)} and type "
            f"{rows.dtype} for {count} images; return one float32 row for each image, ({count}, D)"
        )


@dataclass(frozen=True)
class Sizes:
    """Lengths of a feature vector, D, and of the logits, K. None: the extractor has no classes."""

    vector: int
    logits: int | None

    @classmethod
    def of(cls, extractor: Extractor, image: Tensor) -> Sizes:
        """The sizes, from the features of one image. So a rank without images knows them, too.
        image: uint8 or uint16 (1, C, H, W)."""
        found = extracted(extractor, image)
        return cls(found.vectors.shape[1], None if found.logits is None else found.logits.shape[1])


class Embedding:
    """Sends the images of a pass through an extractor and keeps what metrics need.

    Before `finish` it holds values of this rank's images. After `finish` it holds those of all
    images, the same on every rank.
    moments: of all vectors, float64 on the device. features (N, D), logits (N, K): float32 on the
    CPU, in the order of the images. None: not needed.
    """

    def __init__(
        self, extractor: Extractor, sizes: Sizes, needs: frozenset[Need], own: range, world: World
    ) -> None:
        """own: the numbers of this rank's images."""
        self._extractor = extractor
        self._own = own
        self._world = world
        self.moments = Moments(sizes.vector, world.device) if "moments" in needs else None
        rows = len(own)
        self.features = torch.empty(rows, sizes.vector) if "features" in needs else None
        assert sizes.logits is not None or "logits" not in needs
        self.logits = torch.empty(rows, sizes.logits or 0) if "logits" in needs else None

    def see(self, first: int, images: Tensor) -> None:
        """Adds a batch, uint8 or uint16 (N, C, H, W). first: number of its first image."""
        found = extracted(self._extractor, images)
        if self.moments is not None:
            self.moments.add(found.vectors)
        start = first - self._own.start
        if self.features is not None:
            self.features[start : start + len(images)] = found.vectors
        if self.logits is not None:
            assert found.logits is not None
            self.logits[start : start + len(images)] = found.logits

    def features_on(self, device: torch.device) -> Tensor:
        """All vectors: float32 (N, D) on a device. The metric must declare the need "features"."""
        assert self.features is not None
        return self.features.to(device)

    @staticmethod
    def shapes(sizes: Sizes, needs: frozenset[Need], count: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors in the cache for `count` images, by name."""
        size = sizes.vector
        kept: dict[str, tuple[int, ...]] = {}
        if "moments" in needs:
            kept |= {"mean": (size,), "scatter": (size, size)}
        if "features" in needs:
            kept["features"] = (count, size)
        return kept

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for the cache, by name."""
        kept: dict[str, Tensor] = {}
        if self.moments is not None:
            kept |= {"mean": self.moments.mean, "scatter": self.moments.scatter}
        if self.features is not None:
            kept["features"] = self.features
        return kept

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the tensors of the cache, as if this rank had seen all of its own images."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        if self.moments is not None:
            self.moments.count = len(self._own)

    def finish(self, count: int) -> None:
        """Combines the images of all ranks, `count` in all. Raises Refused if a feature is not
        finite. Collective: every rank, same order."""
        if self.moments is not None:
            self.moments.combine(self._world)
        if self.features is not None:
            self.features = gathered(self.features, self._own, count, self._world)
        if self.logits is not None:
            self.logits = gathered(self.logits, self._own, count, self._world)
        kept = [*self.tensors().values(), *([] if self.logits is None else [self.logits])]
        if not all(bool(tensor.sum().isfinite()) for tensor in kept):
            raise Refused(
                f"evaluation.features: {self._extractor.name} gave a number that is not finite; "
                "check its weights, and whether the images are what it expects"
            )
