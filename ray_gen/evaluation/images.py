"""Images as metrics see them: uint8, in batches, a random choice where not all are wanted."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.progress import Progress
from ray_gen.noise import permutation


class Images(Protocol):
    """Images by number. The same number is the same image on every worker."""

    @property
    def description(self) -> Mapping[str, Any]:
        """For the protocol: run, weights (EMA or raw) and seed, or data and split."""
        ...

    @property
    def digest(self) -> str | None:
        """Identifies the content of all of them. None: statistics of them are never cached."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W), 0 to 255, on the worker's device."""
        ...


def as_rgb(images: Tensor) -> Tensor:
    """Grey images three times, as extractors that were trained on colours want them."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


class Subset:
    """Some images of a set, at random, without replacement, in their order."""

    def __init__(self, images: Images, numbers: Tensor, seed: int) -> None:
        self._images = images
        self._numbers: list[int] = numbers.tolist()
        self._seed = seed

    @property
    def description(self) -> Mapping[str, Any]:
        """That of all images, and how these were chosen."""
        chosen = f"{len(self._numbers)} of {len(self._images)} at random, seed {self._seed}"
        return {**self._images.description, "chosen": chosen}

    @property
    def digest(self) -> str | None:
        """Of the content and of the choice."""
        whole = self._images.digest
        if whole is None:
            return None
        return hashlib.sha256(f"{whole} {self._numbers}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (N, C, H, W)"""
        return self._images.take([self._numbers[index] for index in indices])


def subset_of(images: Images, count: int, seed: int, field: str) -> Images:
    """`count` of some images; all of them as they are. Refuses to take more than there are.

    At random, because a folder or a data set is often sorted by class. `field` is the setting that
    asked for the count.
    """
    if count > len(images):
        what = ", ".join(f"{key} {value}" for key, value in images.description.items())
        raise Refused(
            f"{field}: {count} images were asked for and there are {len(images)} ({what}); "
            f"set at most {len(images)}"
        )
    if count == len(images):
        return images
    numbers = permutation(seed, "chosen images", 0, len(images))[:count]
    return Subset(images, numbers.sort().values, seed)


def shape_of(images: Images, what: str) -> tuple[int, int, int]:
    """(channels, height, width) of the first image, which stands for all."""
    if not len(images):
        raise Refused(f"evaluation: there are no {what} images")
    first = images.take([0])
    if first.dtype != torch.uint8 or first.ndim != 4 or len(first) != 1:
        raise ValueError(
            f"evaluation: a {what} image came as {first.dtype} {tuple(first.shape)} for one; "
            "Images.take gives uint8 (N, C, H, W): see quantised() in evaluation/images.py"
        )
    return first.shape[1], first.shape[2], first.shape[3]


def own_share(count: int, batch_size: int, world: World) -> range:
    """This rank's images out of `count`: whole batches, consecutive.

    The batches are then the same for any number of workers, and so are the bits of their features.
    """
    batches = world.share(-(-count // batch_size))
    return range(min(count, batches.start * batch_size), min(count, batches.stop * batch_size))


class EvenlySpread:
    """At most `limit` of the images of a pass, evenly spread: data sets are often sorted by class.

    Chosen images have a row each; `rows` are those that this rank sees.
    """

    def __init__(self, count: int, limit: int, own: range) -> None:
        self.count = min(count, limit)
        self._numbers = [row * count // self.count for row in range(self.count)]
        self.rows = range(*(bisect_left(self._numbers, end) for end in (own.start, own.stop)))

    def chosen(self, first: int, images: Tensor) -> Tensor:
        """Those of a batch that are chosen."""
        start, stop = (bisect_left(self._numbers, n) for n in (first, first + len(images)))
        if stop - start == len(images):
            return images
        return images[[number - first for number in self._numbers[start:stop]]]


class Consumer(Protocol):
    """What looks at each batch of a pass over images."""

    def see(self, first: int, images: Tensor) -> None:
        """uint8 images_NCHW, of which the first has the number `first`."""
        ...


@torch.no_grad()
def show(
    images: Images,
    consumers: Sequence[Consumer],
    world: World,
    batch_size: int,
    progress: Progress,
    what: str,
) -> None:
    """One pass over this rank's share of some images, which all consumers see."""
    if not consumers:
        return
    own = own_share(len(images), batch_size, world)
    for start in range(own.start, own.stop, batch_size):
        batch = images.take(range(start, min(start + batch_size, own.stop)))
        for consumer in consumers:
            consumer.see(start, batch)
        progress(start + len(batch) - own.start, len(own), what)


def gathered(rows: Tensor, own: range, total: int, world: World) -> Tensor:
    """The rows of all ranks in their order, on the CPU of every rank: (total, ...).

    rows: this rank's, those with the numbers `own`. Rows of others are summed with zeros, which
    changes no bit and needs no collective but the sum; 64 MB at a time.
    Collective: every rank, same order.
    """
    if world.size == 1:
        return rows.cpu()
    whole = torch.empty((total, *rows.shape[1:]), dtype=rows.dtype)
    step = max(1, (64 << 20) // max(1, whole[:1].nbytes))
    for start in range(0, total, step):
        part = torch.zeros_like(whole[start : start + step], device=world.device)
        first, last = max(start, own.start), min(start + len(part), own.stop)
        if first < last:
            part[first - start : last - start] = rows[first - own.start : last - own.start]
        world.sum_(part)
        whole[start : start + len(part)] = part.cpu()
    return whole
