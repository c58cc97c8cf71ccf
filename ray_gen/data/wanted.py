"""What the settings want of images, and what images are."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ray_gen.data.errors import DataError
from ray_gen.pixels import channels_in_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

ELEMENTS: dict[str, type[np.generic]] = {
    "uint8": np.uint8,
    "uint16": np.uint16,
    "float16": np.float16,
}
"""Types of the numbers in a store."""


class Unforeseen(DataError):
    """An image that the settings cannot hold, which the images before it had suggested. Who can
    look at all images does so, and begins again; for others it is an error."""


class Look(NamedTuple):
    """What an image is, before it is converted."""

    mode: str
    """As people call it: "grey", "RGB", "RGBA", "grey with opacity", "5 channels"."""
    channels: int
    """Without opacity."""
    alpha: bool
    """Whether it has opacity."""
    transparent: bool = False
    """Whether some of its pixels are not opaque."""
    range: tuple[float, float] | None = None
    """Smallest and largest value. None: 8 bits."""
    type: str = "uint8"


@dataclass(frozen=True)
class Wanted:
    """The pixels that the settings ask for. None: as in the images."""

    size_HW: tuple[int, int] | None
    center_crop: int | None
    channels: int | None
    size_from: str | None = None
    """Name of the image that gave `size_HW`, if the settings gave no size. Then an image of another
    size is refused."""
    rules: Literal[1, 2] = 2
    """Version of the rules of reading."""
    opacity: bool | None = None
    """Whether the last channel is opacity. None: not known yet. It changes no pixels; but if it is
    not, an image of fewer colours gets no opacity and is refused."""
    keep_alpha: bool = False
    """Whether channels that are not known yet include opacity, if all images have it."""
    full_range: bool = False
    """Whether a value range that is not known yet is that of the images' type."""
    value_range: tuple[float, float] | None = None
    """Values of deep images that become the least and the greatest of the store. None: not known
    yet."""
    of_floats: bool | None = None
    """Whether the value range is that of floats. None: it was given, or is not known yet."""
    guessed_channels: bool = False
    """Whether the channels come from some of the images. Then one that suggests others is
    `Unforeseen`."""
    guessed_alpha: bool = False
    """Whether the guessed channels include opacity."""
    guessed_range: bool = False
    """Whether the value range comes from some of the images. Then a value beyond it is
    `Unforeseen`."""
    element: str = "uint8"
    """Type of the store's numbers, a key of ELEMENTS."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    pad: str | tuple[int, ...] = (255,)
    """What fills the borders if `fit` is "pad": "edge", or the value of each channel, 0 to 255; one
    value for all."""
    max_pixels: int | None = None
    """Largest number of pixels of an image; a larger one is corrupt. None: Pillow's limit."""
    jpeg_scaling: bool = False
    """Let JPEG images be scaled down while they are decompressed, to twice the wanted size or
    more."""


@dataclass
class Seen:
    """What many images are."""

    modes: Counter[str] = field(default_factory=Counter[str])
    channels: set[int] = field(default_factory=set[int])
    alpha: int = 0
    """Number of images with opacity."""
    transparent: int = 0
    """Number of images with pixels that are not opaque."""
    low: float = math.inf
    high: float = -math.inf
    """Least and greatest value of the deep images."""
    types: set[str] = field(default_factory=set[str])
    """Types of the deep images."""

    def add(self, look: Look) -> None:
        """Counts an image."""
        self.modes[look.mode] += 1
        self.channels.add(look.channels)
        self.alpha += look.alpha
        self.transparent += look.transparent
        if look.range is not None:
            self.low, self.high = min(self.low, look.range[0]), max(self.high, look.range[1])
            self.types.add(look.type)

    def has_opacity(self, wanted: Wanted) -> bool:
        """Whether the last of the wanted channels is opacity: as the settings say, else as the
        files do. Raises DataError if it is opacity of some images and not of others, or if it
        cannot be."""
        channels = wanted.channels
        if wanted.opacity:
            if channels not in (2, 4):
                raise DataError(
                    f"data.opacity: true says that the last of 2 or 4 channels is opacity, and"
                    f" images become {channels_in_words(channels or 0, opacity=False)}; set"
                    " data.channels=auto (or 2, or 4), or leave data.opacity out"
                )
            return True
        if wanted.opacity is False or channels not in (2, 4):
            return False
        others = self.channels - {1, 3}  # images of bands
        if others and others != self.channels:
            raise DataError(
                f"data.channels: images differ in their channels ({self._kinds()}), so the last of"
                f" {channels} is opacity of some and not of others; keep images of one kind, or set"
                " data.opacity=true if it is opacity of all"
            )
        return not others

    def _kinds(self) -> str:
        return ", ".join(f"{count:,} {mode}" for mode, count in self.modes.items())

    def settle(self, wanted: Wanted, *, guessed: bool) -> Wanted:
        """`wanted` with the channels, the opacity and the value range that these images suggest.
        guessed: there are further images."""
        channels, value_range = wanted.channels, wanted.value_range
        alpha = False
        if channels is None:
            colours = max(self.channels)
            if len(self.channels) > 1 and not self.channels <= {1, 3}:
                raise DataError(
                    f"data.channels: images differ in their channels ({self._kinds()}); keep"
                    " images of one kind, or set data.channels=3 for the first three of each"
                )
            alpha = wanted.keep_alpha and self.alpha == self.modes.total() and colours in (1, 3)
            channels = colours + alpha
        of_floats = None
        if value_range is None and self.types and wanted.element != "float16":
            of_floats = self._of_floats()
            observed = range_of(self.low, self.high, floats=of_floats)
            value_range = self._full() if wanted.full_range else observed
        return replace(
            wanted,
            channels=channels,
            opacity=self.has_opacity(replace(wanted, channels=channels)),
            value_range=value_range,
            of_floats=of_floats,
            guessed_channels=guessed and wanted.channels is None,
            guessed_alpha=guessed and alpha,
            guessed_range=guessed and wanted.value_range is None,
        )

    def _of_floats(self) -> bool:
        """Whether the deep images hold floats. Raises DataError if some do and some do not: no
        range suits both."""
        kinds = {np.dtype(kind).kind == "f" for kind in self.types}
        if len(kinds) > 1:
            raise DataError(
                f"data.value_range: images hold {' and '.join(sorted(self.types))}, and no range"
                " suits whole numbers and floats; convert them to one type, or set"
                " data.value_range='[LOW, HIGH]' for all"
            )
        return kinds.pop()

    def _full(self) -> tuple[float, float]:
        """The range of the deep images' type."""
        if self._of_floats():
            raise DataError(
                "data.value_range: full is the range of a type of whole numbers, and some images"
                f" hold {' and '.join(sorted(self.types))}; set data.value_range='[LOW, HIGH]'"
            )
        limits = [np.iinfo(kind) for kind in self.types]
        return float(min(limit.min for limit in limits)), float(max(limit.max for limit in limits))


def range_of(low: float, high: float, *, floats: bool) -> tuple[float, float]:
    """The values of black and white of images with these least and largest values: from 0 if none
    is negative. Of whole numbers: to the end of the 8, 10, 12, 14 or 16 bits that hold them. Of
    floats: to 1 or 255 if their largest value is near it, which resampling overshoots, else to the
    largest."""
    if low < 0:
        return low, high if high > low else low + 1
    if not floats:
        ends = (2.0**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 32))
        return 0.0, next((end for end in ends if high <= end), high)
    if high <= 1.1:
        return 0.0, 1.0
    return 0.0, 255.0 if 128 <= high <= 280 else high


class Pixels(NamedTuple):
    """A decoded image."""

    values_HWC: NDArray[Any]
    label: int | None
    look: Look
