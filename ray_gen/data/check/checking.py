"""Checks a data set: reads it once, finds duplicates, and says what training would do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_gen.data.check.duplicates import Groups, crosses, groups_of
from ray_gen.data.check.findings import Findings
from ray_gen.data.check.look import Looking
from ray_gen.data.check.outlook import Asked, Outlook, outlook_of
from ray_gen.data.check.prints import resized
from ray_gen.data.check.reading import Contents, Progress, contents_of, looked_at
from ray_gen.data.decode import decode
from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.sources.base import Item, Source
from ray_gen.data.wanted import Wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Read = Callable[[Contents, Looking, Progress], Generator[Findings]]
"""Reads the parts of a source: here (`looked_at`), or on a cluster."""
SHOWN_GROUPS, SHOWN_OF_GROUP = 24, 4
"""Number of groups of duplicates of each kind whose images are shown, and of images of a group."""


@dataclass(frozen=True)
class Copy:
    """An image that has duplicates."""

    name: str
    held_out: bool
    label: int
    """-1 without a class."""
    position: int


@dataclass(frozen=True)
class Copies:
    """Images that are duplicates of each other."""

    images: tuple[Copy, ...]

    @property
    def leaks(self) -> bool:
        """Whether images of both splits are among them."""
        return len({image.held_out for image in self.images}) == 2

    def telling(self) -> list[Copy]:
        """The images that are shown: the first ones, among them one of each split."""
        held_out = next((image for image in self.images if image.held_out), self.images[0])
        first = self.images[:SHOWN_OF_GROUP]
        if not self.leaks or len({image.held_out for image in first}) == 2:
            return list(first)
        other = held_out if not first[0].held_out else self._first_of_training()
        return [*first[:-1], other]

    def _first_of_training(self) -> Copy:
        return next(image for image in self.images if not image.held_out)


@dataclass
class Checked:
    """All that was found."""

    contents: Contents
    asked: Asked
    found: Findings
    complete: bool
    """Whether all images were looked at. False if the user interrupted it."""
    outlook: Outlook
    exact: list[Copies] = field(default_factory=list[Copies])
    near: list[Copies] = field(default_factory=list[Copies])
    """Groups of duplicates; those with images of both splits first."""
    plain: int = 0
    """Number of images without contrast, which were not compared with others."""
    all_compared: bool = True
    """Whether all near duplicates were found."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers if they have no names. Empty without classes."""
        listing = self.contents.listing
        if listing is not None and listing.class_names is not None:
            return listing.class_names
        return tuple(str(label) for label in range(max(self.found.labels, default=-1) + 1))

    def pictures(self) -> dict[int, NDArray[np.uint8]]:
        """Small pictures, uint8 (H, W, C), of the duplicates that are shown, by position. Reads
        them again."""
        shown = [
            image.position
            for groups in (self.exact, self.near)
            for copies in groups[:SHOWN_GROUPS]
            for image in copies.telling()
        ]
        items = self.contents.items(shown)
        small = {position: _small(item) for position, item in items.items()}
        return {position: picture for position, picture in small.items() if picture is not None}


def check(source: Source, asked: Asked, progress: Progress, read: Read = looked_at) -> Checked:
    """Checks a data set. Where the user interrupts it, returns what was found so far."""
    contents = Contents(source)
    found = Findings()
    complete = False
    try:
        progress(0, 1, "listing")
        contents = contents_of(source)
        looking = Looking(asked.wanted, asked.held_out_fraction, asked.field)
        with closing(read(contents, looking, progress)) as parts:
            for part in parts:
                with _unbroken():
                    found.merge(part)
        complete = True
    except KeyboardInterrupt:
        pass
    except DataError as error:  # of a whole file: Parquet that cannot be read
        contents.refused.append(str(error))
    groups = Groups([], [], 0, complete=False)
    try:
        groups = groups_of(
            found.digests, found.prints, lambda done, total: progress(done, total, "duplicates")
        )
    except KeyboardInterrupt:
        complete = False
    return _told(contents, asked, found, groups, complete)


@contextmanager
def _unbroken() -> Generator[None]:
    """An interrupt that comes inside is heard at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt


def _told(
    contents: Contents, asked: Asked, found: Findings, groups: Groups, complete: bool
) -> Checked:
    """All of it, with names."""
    repeated = [index for kind in (groups.exact, groups.near) for group in kind for index in group]
    names = contents.names(found.positions[index] for index in repeated)

    def copies(group: list[int]) -> Copies:
        return Copies(
            tuple(
                Copy(
                    names[found.positions[index]],
                    bool(found.held_out[index]),
                    found.labels[index],
                    found.positions[index],
                )
                for index in group
            )
        )

    def name_of(position: int) -> str:
        return contents.names([position])[position]

    def leaks_first(some: list[list[int]]) -> list[Copies]:
        ordered = sorted(some, key=lambda group: not crosses(group, found.held_out))
        return [copies(group) for group in ordered]

    return Checked(
        contents,
        asked,
        found,
        complete,
        outlook_of(found, contents.listing, asked, contents.refused, name_of, complete),
        leaks_first(groups.exact),
        leaks_first(groups.near),
        groups.plain,
        groups.complete,
    )


def _small(item: Item, side: int = 96) -> NDArray[np.uint8] | None:
    """A small picture of an image, whole. None if it cannot be read any more."""
    try:
        decoded = decode(item, Wanted(None, None, None), "data")
    except DataError:
        decoded = decode(item, Wanted(None, None, None, value_range=(0.0, 1.0)), "data")
        if not isinstance(decoded, CorruptImageError) and decoded.look.range is not None:
            wanted = Wanted(None, None, None, value_range=decoded.look.range)
            decoded = decode(item, wanted, "data")
    if isinstance(decoded, CorruptImageError):
        return None
    values = decoded.values_HWC
    height, width = values.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return values
    return resized(values, (max(1, round(width * scale)), max(1, round(height * scale))))
