"""The interface between a source of images and the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Literal, Protocol

from ray_gen.data.formats import FORMATS_1

if TYPE_CHECKING:
    from PIL.Image import Image

    from ray_gen.data.pictures import Bands

    Picture = Image | Bands

SplitName = Literal["train", "held_out"]

HELD_OUT_NAMES = ("validation", "valid", "val", "test")
"""Names of a held-out split, best first. The held-out split chooses the best checkpoint. So a
validation split comes before a test split, and the test split stays unseen."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not yet read."""

    key: str
    """Relative path or row. It decides the split, so it must not depend on the other items. All
    images of one file have its path."""
    name: str
    """The image's name in errors: its path, or its file and row."""
    split: SplitName | None
    """The source's own split. None: a hash of the key decides."""
    load: Callable[[], tuple[Picture, int | None]]
    """Reads the image. Returns it with its class: an image of Pillow's, decompressed or not, or
    the numbers of one that Pillow cannot hold. Called from several threads."""
    encoded: Callable[[], bytes] | None = None
    """Reads the bytes of the image's file. None if the image is not stored as a file."""
    source: int = 0
    """Number of its source, where several are joined. Items come source by source."""
    class_name: str | None = None
    """Name of its class, if that is known before the image is read."""
    conditions: tuple[float, ...] | None = None
    """The numbers of `Listing.condition_names`, in the data's own units. None if there are none."""


@dataclass(frozen=True)
class Listing:
    """All items of a source, in an order that is the same on every machine."""

    count: int
    items: Iterator[Item]
    class_names: tuple[str, ...] | None
    watched: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Files (absolute path -> size, mtime in ns) that `identity` could not know before loading. If
    one of them changes, the store is decoded again."""
    not_read: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of files that are no items, by their kind: ".heic (install pillow-heif)", ".txt"."""
    notes: tuple[str, ...] = ()
    """What else was decided about the data, as short sentences for the user."""
    no_classes: str = ""
    """Why there are no classes, and what to do about it, as a clause for who needs classes. Empty:
    there are classes, or there is nothing to say."""
    sources: int = 1
    """Number of joined sources."""
    condition_names: tuple[str, ...] = ()
    """Names of the numbers that each image has to condition on."""


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


def read_image_1(file: IO[bytes]) -> Image:
    """The decompressed image in a binary file, as the first rules of reading read it."""
    from PIL import Image

    image = Image.open(file, formats=FORMATS_1)
    image.load()
    return image
