"""Chooses the images of a step, a pure function of (seed, step), and brings them to the device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.data.moments import Moments
from ray_gen.noise import Tape, permutation
from ray_gen.pixels import selected, to_range


def _taken(positions: range, length: int, part: Callable[[int], Tensor]) -> Tensor:
    """Consecutive entries of an endless row of parts. part: the part of a number; each has `length`
    entries."""
    taken: list[Tensor] = []
    start = positions.start
    while start < positions.stop:
        number, first = divmod(start, length)
        last = min(length, first + positions.stop - start)
        taken.append(part(number)[first:last])
        start += last - first
    return taken[0] if len(taken) == 1 else torch.cat(taken)


class Order:
    """An endless order of `count` images. Each epoch has a new random order of all images. Epochs
    follow each other without a gap, so every batch is full."""

    def __init__(self, seed: int, count: int, device: torch.device, name: str = "order") -> None:
        """name: of the random numbers."""
        self._name = name
        self._seed = seed
        self._count = count
        self._device = device
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, positions: range) -> Tensor:
        """Indices of the images at consecutive positions since the start of the run: int64, on the
        device of the images."""
        return _taken(positions, self._count, self._order)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            # A batch reaches into at most one other epoch, unless it is larger than the data.
            for old in [e for e in self._orders if e < epoch - 1]:
                del self._orders[old]
            order = permutation(self._seed, self._name, epoch, self._count)
            self._orders[epoch] = order.to(self._device)
        return self._orders[epoch]


class SharedOrder:
    """An endless order of the images of several sources. Each source has a share of all positions,
    and an epoch of its own.

    Positions are dealt in blocks. The number of positions that a source has in the first n blocks
    is a closed form: of all that are left to it and to the sources before it, those before it have
    the floor of their share. So the numbers sum exactly, never decrease, and differ from the shares
    by less than the number of sources.
    A block holds its positions in random order.
    """

    block = 1024

    def __init__(
        self, seed: int, counts: Sequence[int], weights: Sequence[float], device: torch.device
    ) -> None:
        """counts: images of each source, which stand one source after another; at least 1.
        weights: positive."""
        exact = [Fraction(weight) for weight in weights]
        unit = math.lcm(*(weight.denominator for weight in exact))
        self._upto = [0, *accumulate(int(weight * unit) for weight in exact)]
        self._starts = [0, *accumulate(counts)]
        self._orders = [
            Order(seed, count, device, f"order of source {number}")
            for number, count in enumerate(counts)
        ]
        self._seed = seed
        self._device = device
        self._blocks: dict[int, Tensor] = {}

    def __getitem__(self, positions: range) -> Tensor:
        """See `Order`."""
        return _taken(positions, self.block, self._block)

    def dealt(self, blocks: int) -> list[int]:
        """Number of positions of each source in the first `blocks` blocks."""
        left, found = blocks * self.block, [0] * len(self._orders)
        for number in reversed(range(len(found))):
            before = left * self._upto[number] // self._upto[number + 1]
            found[number] = left - before
            left = before
        return found

    def _block(self, number: int) -> Tensor:
        if number not in self._blocks:
            for old in [n for n in self._blocks if n < number - 1]:
                del self._blocks[old]
            places = zip(self.dealt(number), self.dealt(number + 1), strict=True)
            parts = [
                self._orders[source][range(first, last)] + self._starts[source]
                for source, (first, last) in enumerate(places)
                if last > first
            ]
            mixed = permutation(self._seed, "sources", number, self.block).to(self._device)
            self._blocks[number] = torch.cat(parts)[mixed]
        return self._blocks[number]


@dataclass(frozen=True)
class FeedSettings:
    """Settings that turn stored bytes into the input of networks."""

    seed: int
    global_batch_size: int
    part: range
    """This rank's images of the global batch."""
    image_range: tuple[float, float]
    flip: bool
    dtype: torch.dtype
    crop_HW: tuple[int, int] | None = None
    """Size of the window that training takes at random from each image. None: the whole image."""
    moments: Moments | None = None
    """Of latents: what is stored of each image, of which z is drawn. None: images are stored."""


class Reader(Protocol):
    """Reads the bytes of each step."""

    def batches(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Stored images (N, H, W, C), and labels (N,) or None, of a rank's part of each step from
        `first` to `last` - 1."""
        ...


class Feed:
    """This rank's part of the images of each step: (N, C, H, W) in `image_range`, channels-last."""

    def __init__(self, reader: Reader, settings: FeedSettings, device: torch.device) -> None:
        self._reader = reader
        self._settings = settings
        self._device = device
        part = torch.arange(settings.part.start, settings.part.stop, device=device)
        drawn = {"flip": Noise((1, 1, 1), "uniform")} if settings.flip else {}
        if settings.crop_HW is not None:
            drawn["crop"] = Noise((2,), "uniform")
        if settings.moments is not None:
            drawn |= settings.moments.noise
        self._draws = bool(drawn)
        self._drawn = Tape(drawn, settings.seed, "data", 1, part)

    def steps(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(images, labels) of each step from `first` to `last` - 1."""
        for step, (images, labels) in enumerate(self._reader.batches(first, last), first):
            yield self._finished(step, images, labels)

    def _finished(
        self, step: int, images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        images = self._moved(images)
        labels = None if labels is None else self._moved(labels)
        settings = self._settings
        drawn = self._drawn[step] if self._draws else {}
        if settings.crop_HW is not None:
            images = windows(images, settings.crop_HW, drawn["crop"])
        finished = to_range(images, settings.image_range, settings.dtype)
        flip = drawn["flip"] < 0.5 if settings.flip else None
        if settings.moments is not None:
            finished = settings.moments.draw(finished, flip, drawn.get("latent"))
        elif flip is not None:
            finished = torch.where(flip, finished.flip(3), finished)
        return finished, labels

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


def windows(images_NHWC: Tensor, size_HW: tuple[int, int], places: Tensor) -> Tensor:
    """A window of each image: (N, H, W, C) to (N, *size_HW, C), of the same type.

    places: (N, 2) in [0, 1), uniform for windows that are all equally likely.
    """
    count, height, width, _ = images_NHWC.shape
    tops = (places[:, :1] * (height - size_HW[0] + 1)).long()
    lefts = (places[:, 1:] * (width - size_HW[1] + 1)).long()
    device = images_NHWC.device
    rows = tops + torch.arange(size_HW[0], device=device)
    columns = lefts + torch.arange(size_HW[1], device=device)
    images = torch.arange(count, device=device)
    # As int16, because CUDA indexes no uint16.
    bits = images_NHWC.view(torch.int16) if images_NHWC.dtype == torch.uint16 else images_NHWC
    found = bits[images[:, None, None], rows[:, :, None], columns[:, None, :]]
    return found.view(images_NHWC.dtype)


class Stored:
    """Reads decoded images. They lie on the device and are indexed there, or are memory-mapped."""

    def __init__(
        self,
        images_NHWC: Tensor,
        labels: Tensor | None,
        settings: FeedSettings,
        device: torch.device,
        *,
        on_device: bool,
        sources: Sequence[int] = (),
        shares: Sequence[float] | None = None,
    ) -> None:
        """images_NHWC: uint8, uint16 or float16, memory-mapped. on_device: move all of them to the
        device. sources, shares: number of images and weight of each joined source. None: all
        images alike."""
        self._settings = settings
        self._pins = device.type == "cuda" and not on_device
        self._on_device = on_device
        self._images = images_NHWC.to(device) if on_device else images_NHWC
        self._labels = labels.to(device) if labels is not None and on_device else labels
        self._order: Order | SharedOrder
        if shares is None:
            self._order = Order(settings.seed, len(images_NHWC), self._images.device)
        else:
            self._order = SharedOrder(settings.seed, sources, shares, self._images.device)

    def batches(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `Reader`. If the images are not on the device, a thread gathers them one step ahead.
        This hides the time of the disk and of the copy."""
        if self._on_device:
            for step in range(first, last):
                yield self._gathered(step)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
            ahead: Future[tuple[Tensor, Tensor | None]] = pool.submit(self._gathered, first)
            for step in range(first, last):
                gathered = ahead.result()
                if step + 1 < last:
                    ahead = pool.submit(self._gathered, step + 1)
                yield gathered

    def _gathered(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Bytes and labels of a step, on the device of the data."""
        start = step * self._settings.global_batch_size
        part = self._settings.part
        indices = self._order[range(start + part.start, start + part.stop)]
        images = selected(self._images, indices)
        labels = None if self._labels is None else self._labels.index_select(0, indices)
        if self._pins:
            images = images.pin_memory()
            labels = None if labels is None else labels.pin_memory()
        return images, labels


def fits_device(images_NHWC: Tensor, device: torch.device) -> bool:
    """Whether images take at most a quarter of a GPU's free memory. On a CPU, whether they take at
    most a quarter of the machine's memory: then all pages of the memory map can stay in memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * images_NHWC.nbytes <= free
