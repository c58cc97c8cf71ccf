"""Images as metrics see them: levels of 8 or 16 bits, in batches, all of a set or a random part."""

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
from ray_gen.pixels import channels_in_words, over, quantised, selected, unit


class Images(Protocol):
    """Images by number. The same number is the same image on every worker."""

    @property
    def description(self) -> Mapping[str, Any]:
        """For the protocol: run, weights (EMA or raw) and seed, or data and split."""
        ...

    @property
    def digest(self) -> str | None:
        """Identifies the content of all images. None: their statistics are never cached."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Tensor:
        """(N, C, H, W), on the worker's device: uint8, 0 to 255, or uint16, 0 to 65,535."""
        ...


def as_rgb(images: Tensor) -> Tensor:
    """Images for extractors that were trained on RGB, of 1 to 4 channels to 3, of the same type:
    the channel of grey images is repeated three times, opacity is put on white. The last of 2 or 4
    channels must be opacity: for other images a `Comparison` refuses such an extractor."""
    if images.shape[1] in (2, 4):
        images = quantised(over(unit(images), 1.0), bits_of(images))
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def with_8_bits(images: Tensor) -> Tensor:
    """uint8 of the same shape. uint16 is rounded to the nearest of 256 levels."""
    return quantised(unit(images)) if images.dtype == torch.uint16 else images


def bits_of(images: Tensor) -> int:
    """Bits of a channel: 8 of uint8, 16 of uint16."""
    return 16 if images.dtype == torch.uint16 else 8


def seen_in_words(
    channels: int, bits: int, *, opacity: bool = False, rgb: bool = False, most_bits: int = 16
) -> str:
    """The channels that a metric sees of images of `channels` channels, for the protocol: "grey",
    "RGB on white", "5 channels, 16 bits".

    opacity: whether the last channel is opacity. rgb: through an extractor that was trained on RGB
    (`as_rgb`). most_bits: of a channel that the extractor can tell apart.
    """
    told = channels_in_words(channels, opacity=opacity)
    if rgb and opacity:
        told = f"{channels_in_words(channels - 1, opacity=False)} on white"
    if bits == 8:
        return told
    return f"{told}, 16 bits" if most_bits == 16 else f"{told}, 16 bits rounded to 8"


def size_in_words(shape: tuple[int, int, int]) -> str:
    """Height and width of images (channels, height, width), for the protocol: "64x64"."""
    return f"{shape[1]}x{shape[2]}"


class Subset:
    """A random part of a set of images, in the order of the set."""

    def __init__(self, images: Images, numbers: Tensor, seed: int) -> None:
        """numbers: int64 (N,), of the images in the part. seed: the seed that chose them, for the
        description."""
        self._images = images
        self.numbers = numbers
        """int64 (N,), ascending: of its images in the whole set."""
        self._numbers: list[int] = numbers.tolist()
        self._seed = seed

    @property
    def description(self) -> Mapping[str, Any]:
        """The description of the whole set, and how the part was chosen."""
        chosen = f"{len(self._numbers)} of {len(self._images)} at random, seed {self._seed}"
        return {**self._images.description, "chosen": chosen}

    @property
    def digest(self) -> str | None:
        """Identifies the whole set and the numbers of the part."""
        whole = self._images.digest
        if whole is None:
            return None
        return hashlib.sha256(f"{whole} {self._numbers}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 or uint16 (N, C, H, W). indices: within the part."""
        return self._images.take([self._numbers[index] for index in indices])


def subset_of(images: Images, count: int, seed: int, field: str) -> Images:
    """`count` images of a set, chosen at random. The set itself if it has exactly `count` images.

    Random, because a folder or a data set is often sorted by class. field: the setting with the
    count, for messages. Raises Refused if the set has fewer images.
    """
    if count > len(images):
        what = ", ".join(f"{key} {value}" for key, value in images.description.items())
        raise Refused(
            f"{field}: {count} images were asked for, and there are {len(images)} ({what}); "
            f"set at most {len(images)}"
        )
    if count == len(images):
        return images
    numbers = permutation(seed, "chosen images", 0, len(images))[:count]
    return Subset(images, numbers.sort().values, seed)


def shape_and_bits_of(images: Images, what: str) -> tuple[tuple[int, int, int], int]:
    """(channels, height, width) of a set and the bits of a channel, read from its first image.
    what: the name of the set, for messages. Raises Refused if it is empty, ValueError if an image
    is not uint8 or uint16 (1, C, H, W)."""
    if not len(images):
        raise Refused(f"evaluation: there are no {what} images")
    first = images.take([0])
    if first.dtype not in (torch.uint8, torch.uint16) or first.ndim != 4 or len(first) != 1:
        raise ValueError(
            f"evaluation: take([0]) of the {what} images gave {first.dtype} {tuple(first.shape)}; "
            "return uint8 (1, C, H, W), e.g. by quantised() of ray_gen/pixels.py"
        )
    return (first.shape[1], first.shape[2], first.shape[3]), bits_of(first)


def own_share(count: int, batch_size: int, world: World) -> range:
    """The numbers of this rank's images, of 0 to `count` - 1: consecutive whole batches.

    So the batches are the same on any number of workers, and so are the bits of their features.
    """
    batches = world.share(-(-count // batch_size))
    return range(min(count, batches.start * batch_size), min(count, batches.stop * batch_size))


class EvenlySpread:
    """Chooses at most `limit` images of a pass, at even distances: data sets are often sorted by
    class.

    count: number of chosen images. rows: range of the chosen images that this rank sees, of 0 to
    `count` - 1.
    """

    def __init__(self, count: int, limit: int, own: range) -> None:
        """count: images of the pass. own: the numbers of those that this rank sees."""
        self.count = min(count, limit)
        self._numbers = [row * count // self.count for row in range(self.count)]
        self.rows = range(*(bisect_left(self._numbers, end) for end in (own.start, own.stop)))

    def chosen(self, first: int, images: Tensor) -> Tensor:
        """The chosen images of a batch. first: number of the batch's first image in the pass."""
        start, stop = (bisect_left(self._numbers, n) for n in (first, first + len(images)))
        if stop - start == len(images):
            return images
        inside = [number - first for number in self._numbers[start:stop]]
        return selected(images, torch.tensor(inside, dtype=torch.int64, device=images.device))


class Consumer(Protocol):
    """Receives each batch of a pass over a set of images."""

    def see(self, first: int, images: Tensor) -> None:
        """images: uint8 or uint16 (N, C, H, W) on the device. first: number of the first image in
        the set."""
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
    """One pass over this rank's share of a set: every batch is shown to all consumers."""
    if not consumers:
        return
    own = own_share(len(images), batch_size, world)
    for start in range(own.start, own.stop, batch_size):
        batch = images.take(range(start, min(start + batch_size, own.stop)))
        for consumer in consumers:
            consumer.see(start, batch)
        progress(start + len(batch) - own.start, len(own), what)


def gathered(rows: Tensor, own: range, total: int, world: World) -> Tensor:
    """The rows of all ranks in their order, (total, ...) on the CPU of every rank.

    rows: this rank's rows, with the numbers `own`. Each rank adds zeros for the rows of the others.
    So a sum is the only collective, and it changes no bit. It runs over 64 MB at a time.
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
