"""Chooses the images of a step, a pure function of (seed, step), and brings them to the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ray_gen.core import Noise
from ray_gen.noise import Tape, permutation
from ray_gen.pixels import to_range


class Order:
    """An endless order of `count` images. Each epoch has a new random order of all images. Epochs
    follow each other without a gap, so every batch is full."""

    def __init__(self, seed: int, count: int, device: torch.device) -> None:
        self._seed = seed
        self._count = count
        self._device = device
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, positions: range) -> Tensor:
        """Indices of the images at consecutive positions since the start of the run: int64, on the
        device of the images."""
        parts: list[Tensor] = []
        start = positions.start
        while start < positions.stop:
            epoch, first = divmod(start, self._count)
            last = min(self._count, first + positions.stop - start)
            parts.append(self._order(epoch)[first:last])
            start += last - first
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            # A batch reaches into at most one other epoch, unless it is larger than the data.
            for old in [e for e in self._orders if e < epoch - 1]:
                del self._orders[old]
            order = permutation(self._seed, "order", epoch, self._count)
            self._orders[epoch] = order.to(self._device)
        return self._orders[epoch]


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


class Reader(Protocol):
    """Reads the bytes of each step."""

    def batches(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """uint8 (N, H, W, C), and labels (N,) or None, of a rank's part of each step from `first`
        to `last` - 1."""
        ...


class Feed:
    """This rank's part of the images of each step: (N, C, H, W) in `image_range`, channels-last."""

    def __init__(self, reader: Reader, settings: FeedSettings, device: torch.device) -> None:
        self._reader = reader
        self._settings = settings
        self._device = device
        part = torch.arange(settings.part.start, settings.part.stop, device=device)
        flip = {"flip": Noise((1, 1, 1), "uniform")} if settings.flip else {}
        self._flips = Tape(flip, settings.seed, "data", 1, part)

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
        finished = to_range(images, settings.image_range, settings.dtype)
        if settings.flip:
            finished = torch.where(self._flips[step]["flip"] < 0.5, finished.flip(3), finished)
        return finished, labels

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


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
    ) -> None:
        """images_NHWC: uint8, memory-mapped. on_device: move all of them to the device."""
        self._settings = settings
        self._pins = device.type == "cuda" and not on_device
        self._on_device = on_device
        self._images = images_NHWC.to(device) if on_device else images_NHWC
        self._labels = labels.to(device) if labels is not None and on_device else labels
        self._order = Order(settings.seed, len(images_NHWC), self._images.device)

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
        images = self._images.index_select(0, indices)
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
    return 4 * images_NHWC.numel() <= free
