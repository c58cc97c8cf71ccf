"""Words around the images of a grid: names of columns, of rows, and of single images."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

MOST_COLUMNS = 16
"""Most classes that have a column each. Of more, a grid would be too wide."""
SHOWN = 64
"""Images in a grid, if nobody asks for a number."""
_LEAST, _MOST = 11, 20
"""Pixels: limits of the size of letters, which are a seventh of an image's width."""


@dataclass(frozen=True)
class Captions:
    """The words of a grid. Text that does not fit ends in "…"."""

    columns: Sequence[str] = ()
    """Above each column."""
    rows: Sequence[str] = ()
    """Left of each row."""
    images: Sequence[str] = ()
    """Above each image, in reading order."""
    title: str = ""
    """Above the whole grid."""


NO_CAPTIONS = Captions()


@dataclass(frozen=True)
class Tiles:
    """Where the images of a grid lie. All numbers are pixels of the picture."""

    columns: int
    height: int
    width: int
    down: int
    """From the top of a row to the top of the next."""
    right: int
    """From the left side of a column to that of the next."""
    gap: int
    """White around each image."""
    above: int
    """White above each image, for its caption."""


def columns_of(count: int, classes: int) -> int:
    """How many columns a grid of `count` images has whose classes come in turn: as square as
    possible, with images of one class below each other. classes: 0 or 1 without such an order."""
    side = math.ceil(math.sqrt(count))
    if not 1 < classes <= MOST_COLUMNS:
        return side
    return min(count, classes * max(1, round(side / classes)))


def class_names_above(columns: int, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the columns if classes with these names come in turn. None if a column does not
    hold images of one class."""
    if not 1 < len(names) <= MOST_COLUMNS or (columns % len(names) and columns > len(names)):
        return ()
    return tuple(names[column % len(names)] for column in range(columns))


def count_shown(classes: int) -> int:
    """About `SHOWN` images, in whole rows if classes come in turn."""
    columns = columns_of(SHOWN, classes)
    return columns * round(SHOWN / columns)


def line_height(width: int) -> int:
    """Pixels of a line of captions above images of this width."""
    return _size(width) + 5


def captioned(picture: NDArray[np.uint8], captions: Captions, tiles: Tiles) -> NDArray[np.uint8]:
    """A grid (H, W, C) with its captions, on white margins as wide as they need."""
    if captions == NO_CAPTIONS:
        return picture
    from PIL import Image, ImageDraw

    font = _font(_size(tiles.width))
    rows = [_fitted(text, max(120, 2 * tiles.width), font) for text in captions.rows]
    line = line_height(tiles.width)
    head = line if captions.title else 0
    top = head + (line if captions.columns else 0)
    left = math.ceil(max(map(font.getlength, rows), default=0)) + (6 if rows else 0)
    wider = np.pad(picture, ((top, 0), (left, 0), (0, 0)), constant_values=255)
    grey = wider.shape[2] == 1
    image = Image.fromarray(wider[:, :, 0] if grey else wider)
    draw = ImageDraw.Draw(image)
    black = 0 if grey else (0, 0, 0)

    def centred(text: str, column: int, bottom: float) -> None:
        middle = left + tiles.gap + column * tiles.right + tiles.width / 2
        told = _fitted(text, tiles.right - 2, font)
        draw.text((middle, bottom - 3), told, fill=black, font=font, anchor="ms")

    if captions.title:
        told = _fitted(captions.title, wider.shape[1] - left - 2 * tiles.gap, font)
        draw.text((left + tiles.gap, head - 3), told, fill=black, font=font, anchor="ls")
    for column, text in enumerate(captions.columns):
        centred(text, column, top)
    for number, text in enumerate(captions.images):
        row, column = divmod(number, tiles.columns)
        centred(text, column, top + tiles.gap + row * tiles.down + tiles.above)
    for row, text in enumerate(rows):
        middle = top + tiles.gap + row * tiles.down + tiles.above + tiles.height / 2
        draw.text((left - 3, middle), text, fill=black, font=font, anchor="rm")
    return np.asarray(image).reshape(wider.shape)


def drawable(name: str, instead: str) -> str:
    """A name in letters that Pillow's font has, without accents if need be. instead: for a name
    that has other letters."""
    if all(map(_is_known, name)):
        return name
    apart = unicodedata.normalize("NFKD", name)
    bare = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return bare if all(map(_is_known, bare)) else instead


def drawable_all(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as `drawable`: those in other letters become their numbers."""
    return tuple(drawable(name, str(number)) for number, name in enumerate(names))


def _is_known(letter: str) -> bool:
    """Whether the font has a letter. What it lacks, it draws like a code that is no letter."""
    return _drawn(letter) != _drawn("\uffff")


@functools.cache
def _drawn(letter: str) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("L", (2 * _LEAST, 2 * _LEAST))
    ImageDraw.Draw(image).text((2, 2), letter, fill=255, font=_font(_LEAST))
    return image.tobytes()


def _fitted(text: str, width: float, font: FreeTypeFont | ImageFont) -> str:
    """The text, cut to this width if it is longer."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…" if text else ""


def _size(width: int) -> int:
    """The size of letters beside images of this width."""
    return min(_MOST, max(_LEAST, width // 7))


@functools.cache
def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
