"""Distances of samples and of held-out images to their nearest training images."""

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
"""Largest number of samples, and of held-out images. Training images are never left out: a copy
could be missed."""
SIDE = 32
"""Larger images are averaged down to this height and width. 20,000 RGB images against 50,000 then
cost 6 TFLOP."""

_TRAINING_AT_ONCE = 1024
_QUERIES_AT_ONCE = 4096


def thumbnails(images: Tensor) -> Tensor:
    """Levels (N, C, H, W) to float32 (N, D) in [-½, ½]: the pixels, at most 32 x 32 per channel."""
    values = unit(images) - 0.5
    height, width = images.shape[2:]
    if max(height, width) > SIDE:
        values = F.adaptive_avg_pool2d(values, (min(height, SIDE), min(width, SIDE)))
    return values.flatten(1)


class Queries:
    """A Consumer that keeps thumbnails of this rank's images on the device: at most `IMAGES` over
    all ranks."""

    def __init__(self, total: int, own: range) -> None:
        """total: images of the pass. own: the numbers of those that this rank sees."""
        self.spread = EvenlySpread(total, IMAGES, own)
        self.parts: list[Tensor] = []

    def see(self, first: int, images: Tensor) -> None:
        """Keeps thumbnails of a batch, uint8 or uint16 (N, C, H, W). first: number of its first
        image."""
        chosen = self.spread.chosen(first, images)
        if len(chosen):
            self.parts.append(thumbnails(chosen))


class Nearest:
    """A Consumer of training images. For each query it keeps `squared`, the squared L2 distance to
    the nearest training image so far."""

    @classmethod
    def of(
        cls, generated: Queries, held_out: Queries, shape: ImageShape, device: torch.device
    ) -> Nearest:
        """The queries are this rank's generated images, then its held-out images."""
        empty = thumbnails(torch.empty(0, *shape, dtype=torch.uint8, device=device))
        return cls(torch.cat([empty, *generated.parts, *held_out.parts]))

    def __init__(self, queries: Tensor) -> None:
        """queries: float32 (N, D) from `thumbnails`."""
        self._queries = queries
        self.size = queries.shape[1]
        self._waiting: list[Tensor] = []
        self.squared = torch.full((len(queries),), float("inf"), device=queries.device)

    def see(self, first: int, images: Tensor) -> None:
        """Adds a batch of training images, uint8 or uint16 (N, C, H, W). first: not used."""
        self._waiting.append(thumbnails(images))
        if sum(map(len, self._waiting)) >= _TRAINING_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Compares the queries with the training images since the last call."""
        if not self._waiting:
            return
        training = torch.cat(self._waiting)
        self._waiting = []
        halves = training.square().sum(1) / 2
        for start in range(0, len(self._queries), _QUERIES_AT_ONCE):
            rows = slice(start, start + _QUERIES_AT_ONCE)
            queries = self._queries[rows]
            # The product finds the nearest image. Its distance is computed again from the
            # difference: the product loses the digits of a small distance, and a copy must give 0.
            nearest = training[torch.addmm(halves, queries, training.T, alpha=-1).argmin(1)]
            found = (queries - nearest).square().sum(1)
            self.squared[rows] = torch.minimum(self.squared[rows], found)


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image: root mean squares over pixels in [0, 1], so in
    [0, 1]."""

    generated: float
    """Median over samples."""
    held_out: float
    """Median over images that the model was not trained on."""
    below: float
    """Fraction of samples that are nearer than 99 % of the held-out images. 0.01: no copies."""

    @property
    def ratio(self) -> float:
        """1: samples are as near as new images of the same kind. Much less than 1: copies."""
        return self.generated / self.held_out


def memorisation(
    nearest: Nearest, generated: Queries, held_out: Queries, world: World
) -> Memorisation:
    """The distances of all ranks' images. nearest: has seen all training images, with the queries
    `generated` and `held_out`. Raises Refused if most held-out images are training images.
    Collective: every rank, same order."""
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
            "evaluation.metrics: nearest_neighbour needs images that were not trained on, and most "
            "held-out images are training images; hold out others, or leave the metric out"
        )
    return Memorisation(
        generated=samples.quantile(0.5).item(),
        held_out=others.quantile(0.5).item(),
        below=(samples < others.quantile(0.01)).double().mean().item(),
    )
