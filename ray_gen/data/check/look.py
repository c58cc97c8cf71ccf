"""Looks at the images of a data set: decodes each once, as training does, and notes what it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.build import place_of, split_of
from ray_gen.data.check.damage import place_of_damage
from ray_gen.data.check.findings import THUMB, Fault, Findings, Named, Shown, Sum
from ray_gen.data.check.prints import as_bytes, digest_of, print_of, resized
from ray_gen.data.decode import decode, fitted
from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.formats import HEAD_BYTES, PILLOW, format_named, format_of
from ray_gen.data.pictures import Bands, upright
from ray_gen.data.sources.base import Item
from ray_gen.data.wanted import Look, Pixels, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ray_gen.data.sources.base import Picture

_NATIVE = Wanted(None, None, None, value_range=(0.0, 1.0))
"""Pixels as they are in the file. Deep images are looked at in their own numbers."""
_SAMPLED = 256
"""A histogram takes at most so many pixels of each side of an image."""
_FORMATS = {theirs: ours for ours, theirs in PILLOW.items()} | {"MPO": "JPEG"}


@dataclass(frozen=True)
class Looking:
    """How images are looked at. It may be sent to other processes."""

    wanted: Wanted
    """The pixels that training wants."""
    held_out_fraction: float
    blamed: str
    """The experiment's field for the error about an unreadable file."""

    @property
    def _native(self) -> Wanted:
        return replace(_NATIVE, max_pixels=self.wanted.max_pixels)

    def at(self, items: Iterable[Item]) -> Findings:
        """What was found in some images."""
        found = Findings()
        for item in items:
            self._look(item, found)
            found.looked_at += 1
        return found

    def _look(self, item: Item, found: Findings) -> None:
        once = _Once(item.load)
        loaded = replace(item, load=once)
        try:
            result = decode(loaded, self._native, self.blamed)
        except DataError as error:
            found.refused.append(Fault(item.name, str(error)))
            return
        if isinstance(result, CorruptImageError):
            fault = Fault(item.name, _reason(result, item), str(result), item.class_name)
            found.corrupt.append(fault)
            return
        picture = once.picture
        assert picture is not None
        look = result.look
        deep = look.range is not None
        values = _numbers(picture) if deep else result.values_HWC
        height, width = values.shape[:2]
        found.positions.append(found.looked_at)
        found.widths.append(width)
        found.heights.append(height)
        found.labels.append(-1 if result.label is None else result.label)
        split = item.split or split_of(item.key, self.held_out_fraction)
        if item.split is None:
            found.least_place = min(found.least_place, place_of(item.key))
        found.held_out.append(split == "held_out")
        found.seen.add(look)
        found.looks.setdefault(look._replace(range=None, transparent=False), Named()).add(item.name)
        found.first = found.first or (item.name, height, width)
        found.digests += digest_of(self._whole(loaded, result, values))
        levels = as_bytes(values, *_limits(look)) if deep else values
        found.prints += print_of(levels)
        _add_histogram(found, values)
        self._add_thumbnail(found, item, values, deep, -1 if result.label is None else result.label)
        if _may_be_plain(levels) and (levels == levels[:1, :1]).all():
            found.blank.add(item.name)
        _add_kind(found, item, picture, once.frames)

    def _whole(self, item: Item, result: Pixels, values: NDArray[Any]) -> NDArray[Any]:
        """The pixels, with opacity if training keeps it."""
        look = result.look
        keeps = self.wanted.keep_alpha or self.wanted.channels in (2, 4)
        if not (look.alpha and keeps and look.range is None):
            return values
        wanted = replace(self._native, channels=look.channels + 1)
        whole = decode(item, wanted, self.blamed)
        return values if isinstance(whole, CorruptImageError) else whole.values_HWC

    def _add_thumbnail(
        self, found: Findings, item: Item, values: NDArray[Any], deep: bool, label: int
    ) -> None:
        """Adds an image to the mean and, perhaps, to the contact sheet, as training crops it."""
        height, width = values.shape[:2]
        box = (0.0, 0.0, float(width), float(height))
        ratio = width / height
        with suppress(DataError):  # it is told for all such images at the end
            wanted = replace(self.wanted, size_from=None)
            (out_width, out_height), box, _ = fitted((width, height), wanted, item.name)
            ratio = out_width / out_height
        if deep:
            small = _deep_thumbnail(values, box)
        else:
            small = resized(values, (THUMB, THUMB), box).astype(np.int64)
        total = found.sums.setdefault((values.shape[2], deep), Sum())
        total.count += 1
        total.values_HWC = total.values_HWC + small
        digest = hashlib.blake2b(os.fsencode(item.key), digest_size=8, person=b"sheet").digest()
        rank = int.from_bytes(digest, "big")
        if found.wants(label, rank):
            left, top, right, bottom = (round(side) for side in box)
            if not deep and max(right - left, bottom - top) <= THUMB:
                small = values[top:bottom, left:right]  # sharper
            shown = small.copy() if deep else small.astype(np.uint8)
            found.show(label, Shown(rank, shown, deep, ratio))


class _Once:
    """Loads an image once, and notes the number of images in its file."""

    def __init__(self, load: Callable[[], tuple[Picture, int | None]]) -> None:
        self._load = load
        self._label: int | None = None
        self.picture: Picture | None = None
        self.frames = 1

    def __call__(self) -> tuple[Picture, int | None]:
        if self.picture is None:
            self.picture, self._label = self._load()
            try:
                self.frames = int(getattr(self.picture, "n_frames", 1))
            except Exception:  # a later image is damaged
                self.picture, self._label = self._load()
        return self.picture, self._label


def _numbers(picture: Picture) -> NDArray[Any]:
    """(H, W, C) of a deep image, without its opacity."""
    if isinstance(picture, Bands):
        values = picture.values_HWC
        return values[..., :-1] if picture.alpha else values
    return np.asarray(upright(picture))[..., None]


def _limits(look: Look) -> tuple[float, float]:
    assert look.range is not None
    return look.range


def _may_be_plain(levels: NDArray[np.uint8]) -> bool:
    """Whether some pixels of an image are all alike. Looking at all costs more."""
    few = levels[:: max(1, len(levels) // 8), :: max(1, levels.shape[1] // 8)]
    return bool((few == few[:1, :1]).all())


def _reason(error: CorruptImageError, item: Item) -> str:
    """Why an image is corrupt, with the byte where its file breaks if its format tells."""
    told = str(error)
    if item.encoded is None or told.startswith("it "):
        return told
    with suppress(Exception):  # the first reason is enough
        data = item.encoded()
        place = place_of_damage(data)
        return place or f"{told}, in a file of {len(data):,} bytes"
    return told


def _add_histogram(found: Findings, values: NDArray[Any]) -> None:
    """Counts the values of an image of 8 or 16 bits."""
    if str(values.dtype) not in ("uint8", "uint16"):
        return
    height, width, channels = values.shape
    sample = values[:: -(-height // _SAMPLED), :: -(-width // _SAMPLED)]
    bins = np.iinfo(values.dtype).max + 1  # pyright: ignore
    kind = (channels, str(values.dtype))
    counts = found.histograms.setdefault(kind, np.zeros((channels, bins), np.int64))
    for channel in range(channels):
        counts[channel] += np.bincount(sample[..., channel].ravel(), minlength=bins)


def _deep_thumbnail(
    values: NDArray[Any], box: tuple[float, float, float, float]
) -> NDArray[np.float64]:
    """A part of a deep image in the size of a thumbnail."""
    from PIL import Image
    from PIL.Image import Resampling

    bands = [
        Image.fromarray(np.ascontiguousarray(values[..., channel].astype(np.float32)))
        for channel in range(values.shape[2])
    ]
    small = [band.resize((THUMB, THUMB), Resampling.BILINEAR, box=box) for band in bands]
    return np.stack([np.asarray(band, np.float64) for band in small], axis=2)


def _add_kind(found: Findings, item: Item, picture: Picture, frames: int) -> None:
    """Counts the format of a file, and what is unusual about it."""
    known = None
    if not isinstance(picture, Bands):
        known = _FORMATS.get(str(picture.format))
    if known is None and item.encoded is not None:
        with suppress(Exception):  # it was read a moment ago
            known = format_of(item.encoded()[:HEAD_BYTES], item.name)
    promised = format_named(item.name)
    known = known or promised or "raw pixels"
    found.formats[known] += 1
    if promised is not None and promised != known and item.encoded is not None:
        found.misnamed.add(f"{item.name} is {known}")
    if frames > 1 and item.encoded is not None and known != "JPEG":
        found.animated.add(f"{item.name} has {frames:,} images")
        found.frames += frames
