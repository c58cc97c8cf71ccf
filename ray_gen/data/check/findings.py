"""What was found in the images of a data set: counters, and some 140 bytes of each image."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ray_gen.data.wanted import Look, Seen

if TYPE_CHECKING:
    from numpy.typing import NDArray

THUMB = 64
"""Pixels: side of the pictures of the contact sheet, and of the mean image."""
SHEET_CLASSES = 40
"""Number of classes on the contact sheet."""
SHEET_IMAGES, SHEET_LOOSE = 24, 96
"""Number of images of a class on the contact sheet; of all, if there are no classes."""
_MOST_NAMES = 20
"""Number of names that are kept of what is no fault."""


class Fault(NamedTuple):
    """An image that training does not read."""

    name: str
    reason: str
    said: str = ""
    """The reason in training's words, if they are others."""
    class_name: str | None = None
    """Of an image whose class is known without reading it."""

    @property
    def in_training(self) -> str:
        """The reason as training says it."""
        return self.said or self.reason


class Shown(NamedTuple):
    """An image of the contact sheet."""

    rank: int
    """A hash of its key. The images of the lowest ranks are shown."""
    values_HWC: NDArray[Any]
    """uint8 or, of deep images, numbers of any range."""
    deep: bool
    ratio: float
    """Width over height, as training crops it."""


@dataclass
class Named:
    """A number of images, and the names of the first ones."""

    count: int = 0
    names: list[str] = field(default_factory=list[str])

    def add(self, name: str) -> None:
        """Counts an image."""
        self.count += 1
        if len(self.names) < _MOST_NAMES:
            self.names.append(name)

    def merge(self, later: Named) -> None:
        """Adds images that come after these."""
        self.count += later.count
        self.names += later.names[: _MOST_NAMES - len(self.names)]


@dataclass
class Sum:
    """The sum of the thumbnails of images of one kind."""

    count: int = 0
    values_HWC: Any = 0
    """int64 for images of 8 bits, so it is exact; float64 for deep images."""

    def merge(self, other: Sum) -> None:
        """Adds images."""
        self.count += other.count
        self.values_HWC = self.values_HWC + other.values_HWC


@dataclass
class Findings:
    """What was found in some images, in their order. It can be merged with that of later ones.

    Columns (arrays) hold a value for each image that was read. The result does not depend on how
    the images were dealt to threads or machines.
    """

    looked_at: int = 0
    """Number of images, read or not."""
    positions: array[int] = field(default_factory=lambda: array("I"))
    """Column: the place of the image among all."""
    widths: array[int] = field(default_factory=lambda: array("I"))
    heights: array[int] = field(default_factory=lambda: array("I"))
    labels: array[int] = field(default_factory=lambda: array("q"))
    """Column: the class, -1 without one."""
    held_out: bytearray = field(default_factory=bytearray)
    """Column: 1 for an image of the held-out split."""
    least_place: float = math.inf
    """Of the images that no split of the source names: the least hash of a key."""
    digests: bytearray = field(default_factory=bytearray)
    """Column: digest of the decoded pixels, 16 bytes."""
    prints: bytearray = field(default_factory=bytearray)
    """Column: see `prints.py`, 96 bytes."""
    seen: Seen = field(default_factory=Seen)
    looks: dict[Look, Named] = field(default_factory=dict[Look, Named])
    """What the images are, without their value range."""
    formats: Counter[str] = field(default_factory=Counter[str])
    first: tuple[str, int, int] | None = None
    """Name, height and width of the first image that can be read."""
    corrupt: list[Fault] = field(default_factory=list[Fault])
    refused: list[Fault] = field(default_factory=list[Fault])
    """Images that stop training, whatever `data.on_corrupt` says; with its message."""
    animated: Named = field(default_factory=Named)
    """Files of several images."""
    frames: int = 0
    """Number of all images in files of several."""
    misnamed: Named = field(default_factory=Named)
    """Files whose suffix promises another format."""
    blank: Named = field(default_factory=Named)
    """Images of one colour."""
    histograms: dict[tuple[int, str], NDArray[np.int64]] = field(
        default_factory=dict[tuple[int, str], Any]
    )
    """Values by number of channels and type (uint8, uint16): (C, 256) or (C, 65,536). Large images
    give every n-th pixel of every n-th row, at most 256×256."""
    sums: dict[tuple[int, bool], Sum] = field(default_factory=dict[tuple[int, bool], Sum])
    """Thumbnails, by number of channels and by whether the images are deep."""
    sheet: dict[int, list[Shown]] = field(default_factory=dict[int, list[Shown]])
    """The contact sheet, by class; -1 for images without one. By rank."""

    @property
    def count(self) -> int:
        """Number of images that were read."""
        return len(self.widths)

    def wants(self, label: int, rank: int) -> bool:
        """Whether the contact sheet has a place for an image."""
        shown = self.sheet.get(label, [])
        return label < SHEET_CLASSES and (len(shown) < _places(label) or rank < shown[-1].rank)

    def show(self, label: int, shown: Shown) -> None:
        """Puts an image on the contact sheet."""
        kept = self.sheet.setdefault(label, [])
        kept.append(shown)
        kept.sort(key=lambda one: one.rank)
        del kept[_places(label) :]

    def merge(self, later: Findings) -> None:
        """Adds what was found in the images that come after these."""
        self.positions.extend(position + self.looked_at for position in later.positions)
        self.looked_at += later.looked_at
        self.widths += later.widths
        self.heights += later.heights
        self.labels += later.labels
        self.held_out += later.held_out
        self.least_place = min(self.least_place, later.least_place)
        self.digests += later.digests
        self.prints += later.prints
        self._merge_seen(later.seen)
        for look, named in later.looks.items():
            self.looks.setdefault(look, Named()).merge(named)
        self.formats.update(later.formats)
        self.first = self.first or later.first
        self.corrupt += later.corrupt
        self.refused += later.refused
        self.animated.merge(later.animated)
        self.frames += later.frames
        self.misnamed.merge(later.misnamed)
        self.blank.merge(later.blank)
        for kind, counts in later.histograms.items():
            self.histograms[kind] = self.histograms.get(kind, 0) + counts
        for kind, total in later.sums.items():
            self.sums.setdefault(kind, Sum()).merge(total)
        for label, shown in later.sheet.items():
            for one in shown:
                if self.wants(label, one.rank):
                    self.show(label, one)

    def _merge_seen(self, later: Seen) -> None:
        seen = self.seen
        seen.modes.update(later.modes)
        seen.channels |= later.channels
        seen.alpha += later.alpha
        seen.transparent += later.transparent
        seen.low, seen.high = min(seen.low, later.low), max(seen.high, later.high)
        seen.types |= later.types


def _places(label: int) -> int:
    return SHEET_LOOSE if label < 0 else SHEET_IMAGES
