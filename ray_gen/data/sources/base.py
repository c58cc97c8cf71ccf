"""The interface between a source of images and the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

SplitName = Literal["train", "held_out"]

HELD_OUT_NAMES = ("validation", "valid", "val", "test")
"""Names of a held-out split, best first. The held-out split chooses the best checkpoint. So a
validation split comes before a test split, and the test split stays unseen."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not yet read."""

    key: str
    """Relative path or row. It decides the split, so it must not depend on the other items."""
    name: str
    """The image's name in errors: its path, or its file and row."""
    split: SplitName | None
    """The source's own split. None: a hash of the key decides."""
    load: Callable[[], tuple[Image, int | None]]
    """Reads and decompresses the image. Returns it with its class. Called from several threads."""
    encoded: Callable[[], bytes] | None = None
    """Reads the bytes of the image's file. None if the image is not stored as a file."""


@dataclass(frozen=True)
class Listing:
    """All items of a source, in an order that is the same on every machine."""

    count: int
    items: Iterator[Item]
    class_names: tuple[str, ...] | None
    watched: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Files (absolute path -> size, mtime in ns) that `identity` could not know before loading. If
    one of them changes, the store is decoded again."""


class Source(Protocol):
    """A source of images. Its construction reads nothing. Both methods raise DataError."""

    @property
    def kind(self) -> str:
        """First part of the name of the cache entry."""
        ...

    @property
    def field(self) -> str:
        """Dotted field of the experiment, for errors about unreadable images."""
        ...

    def identity(self) -> object:
        """The key of the cache entry, as JSON. Cheap: reads no image, imports nothing heavy."""
        ...

    def listing(self) -> Listing:
        """The items. May download files, and may import the libraries that decoding needs."""
        ...


def read_image(file: IO[bytes]) -> Image:
    """The decompressed image in a binary file of a common picture format.

    The list of formats keeps Pillow from trying others. EPS, for example, would start Ghostscript.
    """
    from PIL import Image

    image = Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"))
    image.load()
    return image
