"""What training would do with a data set: the line and the remarks that it prints, by the same
code, and all reasons for which it would refuse the data."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ray_gen.data.build import (
    cache_error,
    classes_lost,
    corrupt,
    nothing_to_train_on,
)
from ray_gen.data.check.findings import Findings
from ray_gen.data.decode import fitted, pixels
from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.found import found_of
from ray_gen.data.pictures import Bands
from ray_gen.data.sources.base import Listing, SplitName
from ray_gen.data.store import Split, Store
from ray_gen.data.told import remarks, summary
from ray_gen.data.wanted import ELEMENTS, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Asked:
    """The settings of a run that decide what is read, and what is refused."""

    wanted: Wanted
    held_out_fraction: float
    skip_corrupt: bool
    field: str
    """The experiment's field for errors about images."""
    window_HW: tuple[int, int] | None = None
    """Size of the windows that training takes from larger images at random."""
    cache_folder: Path | None = None
    """Where the decoded images would lie."""
    stream: Callable[[], Store] | None = None
    """Opens the stream that training would read. None: all images are decoded before training."""


@dataclass(frozen=True)
class Outlook:
    """What training would do."""

    refusals: tuple[str, ...]
    """Each as training would say it. Empty: it would start."""
    line: str | None
    """What training prints about the data; if there are refusals, once they are mended. None: there
    is nothing to train on."""
    remarks: tuple[str, ...]
    wanted: Wanted
    """With the size, channels and value range that suit all images, as far as they are known."""
    shape_HWC: tuple[int, int, int] | None = None


def outlook_of(
    found: Findings,
    listing: Listing | None,
    asked: Asked,
    refused: Sequence[str],
    name_of: Callable[[int], str],
    complete: bool = True,
) -> Outlook:
    """What training would do with all images of `found`.

    listing: None if nothing could be listed. refused: why the data set as a whole would be refused.
    name_of: the name of an image by its place among all. complete: `found` is of all images.
    """
    refusals = list(refused)
    refusals += [fault.reason for fault in found.refused]
    if found.corrupt and not asked.skip_corrupt:
        first = found.corrupt[0]
        told = str(corrupt(first.name, CorruptImageError(first.in_training), asked.field))
        more = len(found.corrupt) - 1
        others = f" ({more:,} more image{'s are' if more > 1 else ' is'} corrupt)" if more else ""
        refusals.append(told + others)
    train = found.count - sum(found.held_out)
    if complete and listing is not None and not train and (found.count or asked.skip_corrupt):
        nothing = nothing_to_train_on(
            asked.field, listing.count, len(found.corrupt), asked.held_out_fraction
        )
        refusals.append(str(nothing))
    elif complete and listing is not None and asked.skip_corrupt:
        lost: dict[str, tuple[str, str]] = {}
        for fault in found.corrupt:
            if fault.class_name is not None:
                lost.setdefault(fault.class_name, (fault.name, fault.in_training))
        names = listing.class_names
        refusals += map(str, classes_lost(lost, found.labels, names, asked.field))
    if not found.count:
        return Outlook(tuple(refusals), None, (), asked.wanted)
    wanted, problems = _settled(found, asked.wanted)
    refusals += problems
    refusals += _of_sizes(found, wanted, name_of)
    refusals += _of_kinds(found, wanted)
    if wanted.size_HW is None or wanted.channels is None:
        return Outlook(tuple(refusals), None, (), wanted)
    shape = (*wanted.size_HW, wanted.channels)
    store = _store(found, listing, asked, wanted, shape)
    if asked.stream is not None and complete and not refusals:
        try:
            store = asked.stream()
            assert store.stream is not None
            refusals += _of_kinds(found, store.stream.wanted)
        except DataError as error:
            refusals.append(str(error))
    elif asked.stream is None and asked.cache_folder is not None and listing is not None:
        refusals += _of_room(asked.cache_folder, listing.count * math.prod(shape), wanted)
    return Outlook(tuple(refusals), summary(store), tuple(remarks(store)), wanted, shape)


def _settled(found: Findings, wanted: Wanted) -> tuple[Wanted, list[str]]:
    """`wanted` with what the images decide, and what is wrong with it."""
    problems: list[str] = []
    try:
        settled = found.seen.settle(wanted, guessed=False)
    except DataError as error:
        problems.append(str(error))
        colours = wanted.channels or min(3, max(found.seen.channels))
        given = replace(
            wanted,
            channels=colours,
            opacity=colours in (2, 4),
            value_range=wanted.value_range or (0.0, 1.0),
        )
        settled = found.seen.settle(given, guessed=False)
    if settled.size_HW is None:
        assert found.first is not None
        name, height, width = found.first
        size_HW = (height, width)
        if settled.center_crop is not None:
            size_HW = (settled.center_crop, settled.center_crop)
        settled = replace(settled, size_HW=size_HW, size_from=name)
    return settled, problems


def _of_sizes(found: Findings, wanted: Wanted, name_of: Callable[[int], str]) -> Iterator[str]:
    """What is wrong with the sizes of images: a sentence for each kind of fault."""
    widths, heights = np.asarray(found.widths), np.asarray(found.heights)
    packed = widths.astype(np.uint64) << np.uint64(32) | heights
    sizes, firsts, counts = np.unique(packed, return_index=True, return_counts=True)
    faults: dict[str, list[tuple[int, int]]] = {}
    for size, first, count in zip(sizes.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        try:
            fitted((size >> 32, size & 0xFFFFFFFF), wanted, "")
        except DataError as error:
            faults.setdefault(str(error).partition(":")[0], []).append((first, count))
    for faulty in faults.values():
        first = min(index for index, _ in faulty)
        number = sum(count for _, count in faulty)
        try:
            fitted(
                (int(widths[first]), int(heights[first])), wanted, name_of(found.positions[first])
            )
        except DataError as error:
            yield str(error) + _alike(number)


def _of_kinds(found: Findings, wanted: Wanted) -> Iterator[str]:
    """What is wrong with the channels of images, or with their values: a sentence for each kind of
    image. A stream looked at a sample, so `wanted` may not suit all."""
    seen = found.seen
    asked = replace(wanted, center_crop=None, size_from=None)
    faults: dict[str, tuple[str, int]] = {}
    for look, named in found.looks.items():
        bands = look.channels + look.alpha
        values: NDArray[Any] = np.zeros((1, 3, bands), np.uint8)
        whole = look
        if look.type != "uint8":
            values = np.full((1, 3, bands), seen.low)
            whole = look._replace(range=(seen.low, seen.high))
        try:
            pixels(Bands(values, look.alpha), whole, asked, named.names[0])
        except DataError as error:
            field = str(error).partition(":")[0] + look.mode
            told, number = faults.get(field, (str(error), 0))
            faults[field] = (told, number + named.count)
    for told, number in faults.values():
        yield told + _alike(number)


def _alike(number: int) -> str:
    return f" ({number:,} such images)" if number > 1 else ""


def _of_room(cache_folder: Path, values: int, wanted: Wanted) -> Iterator[str]:
    """Whether the decoded images have room on the disk."""
    needed = values * np.dtype(ELEMENTS[wanted.element]).itemsize
    folder = cache_folder.expanduser().absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if shutil.disk_usage(there).free < needed:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield str(cache_error(folder, full, needed))


def _store(
    found: Findings,
    listing: Listing | None,
    asked: Asked,
    wanted: Wanted,
    shape_HWC: tuple[int, int, int],
) -> Store:
    """The store that training would open, without pixels."""
    held_out = np.frombuffer(found.held_out, np.uint8).astype(bool)
    labels = np.asarray(found.labels, np.int64)
    of_splits: dict[SplitName, list[int]] = {
        "train": labels[~held_out].tolist(),
        "held_out": labels[held_out].tolist(),
    }
    told = found_of(
        found.seen,
        wanted,
        listing,
        of_splits,
        [(fault.name, fault.in_training) for fault in found.corrupt],
        found.least_place,
        asked.held_out_fraction,
    )
    element = getattr(torch, wanted.element)

    def split(name: SplitName) -> Split:
        images = torch.empty((len(of_splits[name]), *shape_HWC), dtype=element, device="meta")
        return Split(images, None)

    names = listing.class_names if listing is not None else None
    store = Store(
        train=split("train"),
        held_out=split("held_out"),
        class_names=None if told.unlabelled else names,
        opacity=bool(wanted.opacity),
        skipped=len(found.corrupt),
        path=Path(),
        label_count=told.label_count(names),
        found=told,
    )
    return store if asked.window_HW is None else store.cropped(asked.window_HW)
