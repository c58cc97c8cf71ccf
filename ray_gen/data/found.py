"""What a source held: for what is told of a data set (`told.py`), and kept with a store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_gen.data.sources.base import Listing, SplitName
from ray_gen.data.wanted import Seen, Wanted

_CORRUPT_NAMES = 20
"""Number of corrupt images whose names are kept."""


@dataclass(frozen=True)
class Found:
    """What a source held. See `told.py` for the words."""

    modes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of images by what they are: "grey", "RGB", "5 channels"."""
    types: tuple[str, ...] = ()
    """Types of deep images: "uint16", "float32"."""
    transparent: int = 0
    """Number of images with pixels that are not opaque."""
    values: tuple[float, float] | None = None
    """Least and greatest value of the deep images."""
    value_range: tuple[float, float] | None = None
    """Values of the deep images that became the least and the greatest of the store."""
    class_counts: Mapping[str, Mapping[str, int]] | None = None
    """Number of images by split and by class, as text."""
    unlabelled: int = 0
    """Number of images without a class."""
    least_fraction: float | None = None
    """A `held_out_fraction` that holds at least one image out. None: there is none, or the data set
    has splits of its own."""
    not_read: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of files that are not read, by kind."""
    notes: tuple[str, ...] = ()
    """What else was decided."""
    no_classes: str = ""
    """Why there are no classes; see `Listing`."""
    corrupt: tuple[tuple[str, str], ...] = ()
    """Name and reason of the first corrupt images."""

    def label_count(self, names: Sequence[str] | None) -> int | None:
        """Number of classes. None if an image has none. names: of the classes."""
        if self.class_counts is None:
            return None
        labels = (int(label) for counts in self.class_counts.values() for label in counts)
        return max(len(names or ()), max(labels, default=-1) + 1)


def found_of(
    seen: Seen,
    wanted: Wanted,
    listing: Listing | None,
    labels: Mapping[SplitName, Sequence[int]],
    corrupt: Sequence[tuple[str, str]],
    least_place: float,
    held_out_fraction: float,
) -> Found:
    """What is told of images, after all of them were looked at.

    seen, wanted: what they are, and what becomes of them. labels: of the images of each split, -1
    without one. corrupt: name and reason of the images that were skipped. least_place: see
    `build.place_of`; of the images that no split names.
    """
    counts = {
        name: {str(label): number for label, number in sorted(Counter(of_split).items())}
        for name, of_split in labels.items()
    }
    unlabelled = sum(of_split.get("-1", 0) for of_split in counts.values())
    least = fraction_above(least_place / 2.0**64)
    images = {name: len(of_split) for name, of_split in labels.items()}
    notes = none_held_out(held_out_fraction, images["train"], images["held_out"], least)
    return Found(
        modes=dict(seen.modes.most_common()),
        types=tuple(sorted(seen.types)),
        transparent=seen.transparent,
        values=(seen.low, seen.high) if seen.types else None,
        value_range=wanted.value_range if seen.types else None,
        class_counts=None if unlabelled else counts,
        unlabelled=unlabelled,
        least_fraction=least,
        not_read=dict(listing.not_read) if listing is not None else {},
        notes=(*(listing.notes if listing is not None else ()), *notes),
        no_classes=listing.no_classes if listing is not None else "",
        corrupt=tuple(corrupt[:_CORRUPT_NAMES]),
    )


def fraction_above(fraction: float) -> float | None:
    """A short number above a fraction. None if there is none below 1."""
    for digits in (1, 2, 3, 6):
        rounded = math.floor(fraction * 10**digits + 1) / 10**digits if fraction < 1 else 1.0
        if rounded < min(1.0, 2 * fraction + 0.1):
            return rounded
    return None


def none_held_out(fraction: float, train: int, held_out: int, least: float | None) -> list[str]:
    """What to tell if a fraction holds no image out. least: one that does, or None if there is
    none, or if the data set has splits of its own."""
    if held_out or not fraction or least is None:
        return []
    return [
        f"data.held_out_fraction {fraction} holds out none of {train:,} images, so there are no"
        f" held-out scores; set it to {least}"
    ]
