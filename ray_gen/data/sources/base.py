"""What every source of images tells the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

SplitName = Literal["train", "held_out"]

HELD_OUT_NAMES = ("validation", "valid", "val", "test")
"""Names of a held-out split, best first: the held-out split chooses the best checkpoint, so a
validation split is taken before a test split, which then stays unseen."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not yet read."""

    key: str
    """Relative path or row: what decides the split, so it must not depend on the other items."""
    name: str
    """What an error calls the image: its path, or its file and row."""
    split: SplitName | None
    """The source's own split, or None: then a hash of the key decides."""
    load: Callable[[], tuple[Image, int | None]]
    """Reads and decompresses the image; gives it with its class. Called from several threads."""
    encoded: Callable[[], bytes] | None = None
    """The image as the file it was stored in; None where it is no file."""


@dataclass(frozen=True)
class Listing:
    """All items of a source, in an order that is the same on every machine."""

    count: int
    items: Iterator[Item]
    class_names: tuple[str, ...] | None
    watched: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Files (absolute path -> size, mtime in ns) that `identity` could not know of before loading;
    a store is decoded again when one of them changes."""


class Source(Protocol):
    """Where images come from. Making one reads nothing; both methods raise DataError."""

    @property
    def kind(self) -> str:
        """First part of the name of the cache entry."""
        ...

    @property
    def field(self) -> str:
        """The dotted field of the experiment that an unreadable image is blamed on."""
        ...

    def identity(self) -> object:
        """What the cache is keyed by, as JSON. Cheap: no image is read, nothing heavy imported."""
        ...

    def listing(self) -> Listing:
        """The items. May download, and may import what decoding needs."""
        ...


def read_image(file: IO[bytes]) -> Image:
    """The decompressed image in a binary file, in one of the formats that pictures are stored in.

    Naming the formats keeps Pillow from trying the others, of which EPS would start Ghostscript.
    """
    from PIL import Image

    image = Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"))
    image.load()
    return image
