"""Memorisation: how near samples lie to the training set, beside images that it never saw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.core import ImageShape
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.images import EvenlySpread, gathered
from ray_gen.pixels import unit

IMAGES = 10_000
"""Samples and held-out images, at most; of training images all count, or a copy could be missed."""
SIDE = 32
"""Larger images are averaged down to it: 50,000 beside 20,000 RGB images are 6 TFLOP there."""

_TRAINING_AT_ONCE = 1024
_QUERIES_AT_ONCE = 4096


def thumbnails(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) to vectors in [-½, ½], of images of at most 32 pixels a side: (N, D)."""
    values = unit(images) - 0.5
    height, width = images.shape[2:]
    if max(height, width) > SIDE:
        values = F.adaptive_avg_pool2d(values, (min(height, SIDE), min(width, SIDE)))
    return values.flatten(1)


class Queries:
    """Sees images and keeps this rank's thumbnails on the device."""

    def __init__(self, total: int, own: range) -> None:
        self.spread = EvenlySpread(total, IMAGES, own)
        self.parts: list[Tensor] = []

    def see(self, first: int, images: Tensor) -> None:
        chosen = self.spread.chosen(first, images)
        if len(chosen):
            self.parts.append(thumbnails(chosen))


class Nearest:
    """Sees training images and remembers how far the nearest is from each query, in L2."""

    @classmethod
    def of(
        cls, generated: Queries, held_out: Queries, shape: ImageShape, device: torch.device
    ) -> Nearest:
        """To this rank's generated images and then its held-out ones."""
        empty = thumbnails(torch.empty(0, *shape, dtype=torch.uint8, device=device))
        return cls(torch.cat([empty, *generated.parts, *held_out.parts]))

    def __init__(self, queries: Tensor) -> None:
        self._queries = queries
        self.size = queries.shape[1]
        self._waiting: list[Tensor] = []
        self.squared = torch.full((len(queries),), float("inf"), device=queries.device)

    def see(self, first: int, images: Tensor) -> None:
        self._waiting.append(thumbnails(images))
        if sum(map(len, self._waiting)) >= _TRAINING_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Compare with what has been seen since the last time."""
        if not self._waiting:
            return
        training = torch.cat(self._waiting)
        self._waiting = []
        halves = training.square().sum(1) / 2
        for start in range(0, len(self._queries), _QUERIES_AT_ONCE):
            rows = slice(start, start + _QUERIES_AT_ONCE)
            queries = self._queries[rows]
            # The product finds the nearest; what it says of the distance cancels where that is
            # small, and a copy has to be at 0.
            nearest = training[torch.addmm(halves, queries, training.T, alpha=-1).argmin(1)]
            found = (queries - nearest).square().sum(1)
            self.squared[rows] = torch.minimum(self.squared[rows], found)


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image, in units of an image's whole range and dimension
    (root mean square of a pixel's difference), in [0, 1]."""

    generated: float
    """Median over samples."""
    held_out: float
    """Median over images that were not trained on."""
    below: float
    """Fraction of samples that are nearer than 99 % of the held-out images: 0.01 without copies."""

    @property
    def ratio(self) -> float:
        """1: as near as new images of the same kind are by chance. Much less: copies."""
        return self.generated / self.held_out


def memorisation(
    nearest: Nearest, generated: Queries, held_out: Queries, world: World
) -> Memorisation:
    """The medians over all ranks. Collective: every rank, same order."""
    nearest.finish()
    spreads = generated.spread, held_out.spread
    own = nearest.squared.split([len(spread.rows) for spread in spreads])
    distances: list[Tensor] = []
    for part, spread in zip(own, spreads, strict=True):
        squared = gathered(part, spread.rows, spread.count, world)
        distances.append((squared.double() / nearest.size).sqrt())
    samples, others = distances
    if not others.median() > 0:
        raise Refused(
            "evaluation.metrics: nearest_neighbour compares with images that were not trained on, "
            "and most of the held-out images are training images; hold others out, or leave it out"
        )
    return Memorisation(
        generated=samples.quantile(0.5).item(),
        held_out=others.quantile(0.5).item(),
        below=(samples < others.quantile(0.01)).double().mean().item(),
    )
