"""Image files in a tree of files: by class folders, by splits, or all in one folder."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Literal

from ray_gen.data.errors import CorruptImageError, DataError, Refuse, raised, reason, unreadable
from ray_gen.data.formats import (
    COMPRESSED_TIFF,
    NPY,
    check_bytes,
    format_named,
    format_of,
    formats_read,
    is_read,
    remedy,
    suffix_of,
    what_it_is,
)
from ray_gen.data.pictures import frames_of, lacks_codec, read_picture
from ray_gen.data.sources.base import Item, Listing
from ray_gen.data.sources.files import File, Files, FolderFiles, Scan
from ray_gen.data.sources.labels import MOST_CLASSES, LabelColumn, too_many_folders
from ray_gen.data.sources.layout import Layout, Place, Splits, layout_of, splits_in_names
from ray_gen.data.sources.metadata import Labels, Metadata, Numbers, missing, stamp

if TYPE_CHECKING:
    from ray_gen.data.sources.base import Picture

Frames = Literal["first", "all", "channels"]
"""Which images of a file with several are read: the first; all, each for itself; or all as channels
of one."""
_HEADS_AT_ONCE = 16
"""A network drive answers in milliseconds: in parallel, a million files take minutes, not hours."""
_HEADS_EACH = 64
"""Number of files in one task of a thread. With one, the hand-over costs more than the read."""
_ARRAY = b"\x93NUMPY"
"""How a file in NumPy's format begins."""
_MOVING = ("GIF", "WEBP", "PNG", "TIFF", "AVIF", NPY)
"""Formats of which a file can hold several images."""


def may_hold_several(known: str, head: bytes) -> bool:
    """Whether a file may hold several images. A still PNG, WebP or AVIF tells it in its first
    bytes; an animated PNG that other chunks hide is missed."""
    if known == "WEBP":
        return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)
    mark = {"PNG": b"acTL", "AVIF": b"avis"}.get(known)
    return mark in head if mark else known in ("GIF", "TIFF", NPY)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that holds an image, or should."""

    path: str
    known: str | None
    """Its format."""
    damage: str | None = None
    """Why it cannot be read, if its first bytes tell."""
    several: bool = False
    """Whether it may hold several images, as far as its first bytes tell."""


@dataclass
class Found:
    """What the files of a tree are."""

    images: list[ImageFile]
    unread: list[ImageFile]
    """Images of formats that are not read."""
    others: list[str]
    """Paths of files that are no images."""
    broken: int = 0
    """Number of links to nothing that do not have the name of an image."""


class Images:
    """The image files of a tree.

    Files are known by their first bytes. Folders of images are the classes, in the order of their
    sorted names, or the splits: see `layout.py`. Images beside each other, without folders, have no
    labels. Files beside the images may give labels, too; then folders are no classes: see
    `metadata.py`. `labels` is "auto", "folders", "none", or such a file: an absolute path, or one
    in the tree. `label_column` is its column of labels, `conditions` are its columns of numbers.
    """

    field = "data.path"

    def __init__(
        self,
        files: Files,
        *,
        splits: Splits = "auto",
        frames: Frames = "first",
        labels: str = "auto",
        label_column: LabelColumn | None = None,
        conditions: Sequence[str] = (),
    ) -> None:
        self.files = files
        self.labels = labels
        self.label_column = label_column
        self.conditions = tuple(conditions)
        self.kind = files.kind
        self.splits: Splits = splits
        self.frames: Frames = frames
        self._scanned: Scan | None = None
        self._found: Found | None = None

    def identity(self) -> object:
        """Digest of every file's relative path, size and time. Reads no file."""
        digest = hashlib.blake2b(digest_size=16)
        self._scanned = scan = self.files.scan()
        self._found = None
        for file in scan.files:
            digest.update(os.fsencode(f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.crc}\n"))
        digest.update(repr((scan.empty, scan.broken)).encode())
        return {
            "files": digest.hexdigest(),
            "count": len(scan.files),
            "formats": formats_read(),
            "splits": self.splits,
            "frames": self.frames,
            "labels": [self.labels, self.label_column, stamp(self.labels)],
            **({"conditions": self.conditions} if self.conditions else {}),
        }

    def found(self, refuse: Refuse = raised) -> Found:
        """What the files are, by their first bytes. The next `listing` is of them."""
        self._scanned = self._scanned or self.files.scan()
        self._found = self._told_apart(self._scanned, refuse)
        return self._found

    def listing(self, refuse: Refuse = raised) -> Listing:
        """See `Source.listing`. refuse: if it goes on, all that can be read is listed."""
        scan = self._scanned or self.files.scan()
        found = self._found or self.found(refuse)
        images = [*found.images, *found.unread]
        broken = [path for path in scan.broken if format_named(path) is None]
        barren = [*found.others, *(f"{path}/" for path in (*scan.empty, *broken))]
        if not found.images:
            refuse(DataError(self._no_images(found)))
        paths = [image.path for image in images]
        metadata = Metadata(self.labels, self.files, paths, found.others)
        labels = self._labels(metadata, paths, refuse)
        layout = self._layout(paths, barren, refuse, classes=not labels.decides)
        self._check_classes(layout, found, refuse)
        kept = [image for image in found.images if image.path in layout.places]
        kept.sort(key=lambda image: image.path.split("/"))
        if len(layout.class_names or ()) > MOST_CLASSES:
            told = too_many_folders(self.files.root, len(layout.class_names or ()))
            layout = replace(layout, class_names=None)
            labels = replace(labels, notes=(*labels.notes, told), no_classes=told)
        labels = missing(labels, [image.path for image in kept])
        class_names = labels.class_names if labels.decides else layout.class_names
        names = class_names or ()
        index = {name: i for i, name in enumerate(layout.class_names or ())}
        numbers = self._numbers(metadata, [image.path for image in kept], refuse)
        kept, frames, notes = self._frames(kept, refuse)
        of_several = _KeptFiles(self.files)

        def label_of(path: str) -> int | None:
            if labels.decides:
                return labels.of.get(path)
            return index.get(layout.places[path].class_name or "")

        items = (
            self._item(
                *(image, layout.places[image.path], label, names, frame),
                numbers.of.get(image.path),
                self.files if frame is None else of_several,
            )
            for image in kept
            for label in (label_of(image.path),)
            for frame in frames.get(image.path, (None,))
        )
        count = len(kept) + sum(len(of_file) - 1 for of_file in frames.values())
        return Listing(
            count,
            items,
            class_names,
            not_read=_counted(found, (*labels.files, *numbers.files)),
            notes=(
                *scan.notes,
                *notes,
                *(f"{n:,} images in {name} are not read" for name, n in layout.unused.items()),
                *self._names_like_splits(layout),
                *labels.notes,
            ),
            no_classes="" if class_names and not labels.decides else labels.no_classes,
            condition_names=numbers.names,
        )

    def _numbers(self, metadata: Metadata, kept: Sequence[str], refuse: Refuse) -> Numbers:
        """The numbers to condition on that files beside the images give. kept: the images that are
        read."""
        try:
            return self._told_numbers(metadata, kept)
        except DataError as error:
            refuse(error)
            return Numbers()

    def _told_numbers(self, metadata: Metadata, kept: Sequence[str]) -> Numbers:
        """As `_numbers`. Raises DataError."""
        return metadata.numbers(self.conditions, kept)

    def _labels(self, metadata: Metadata, paths: Sequence[str], refuse: Refuse) -> Labels:
        """What files beside the images say of them."""
        try:
            said = metadata.labels(self.label_column, self.conditions)
        except DataError as error:
            refuse(error)
            said = None
        return said or Labels(decides=False)

    def _names_like_splits(self, layout: Layout) -> Iterator[str]:
        """What to tell of files that are named like splits, if no folder is a split."""
        if self.splits != "auto" or any(place.split for place in layout.places.values()):
            return
        if (names := splits_in_names(layout.places)) is not None:
            yield (
                f"names of files make no splits ({names[0]}, {names[1]}): data.held_out_fraction is"
                " taken of all images; for splits, move the files to a folder of each split"
                " (data.splits names other folders than train and test)"
            )

    def _layout(
        self,
        paths: Sequence[str],
        barren: Sequence[str],
        refuse: Refuse,
        *,
        classes: bool,
    ) -> Layout:
        """Splits and classes of image files. Here: from the names of their folders. classes: False
        if they have no classes, or others."""
        return layout_of(paths, self.splits, self.files.root, barren, refuse, classes=classes)

    def _told_apart(self, scan: Scan, refuse: Refuse) -> Found:
        """Looks at the first bytes of every file. Refuses a file that cannot be opened."""

        def head_of(file: File) -> _Head | OSError | CorruptImageError:
            try:
                head = self.files.head(file.path)
            except (OSError, CorruptImageError) as error:
                return error
            known = format_of(head, file.path)
            if known == "TIFF":
                with suppress(Exception), self.files.open(file.path) as opened:
                    if lacks_codec(opened, pages=self.frames == "channels"):
                        known = COMPRESSED_TIFF
            return head, known

        def heads_of(files: Sequence[File]) -> list[_Head | OSError | CorruptImageError]:
            return [head_of(file) for file in files]

        found = Found([], [], [])
        parts = [scan.files[i : i + _HEADS_EACH] for i in range(0, len(scan.files), _HEADS_EACH)]
        with ThreadPoolExecutor(_HEADS_AT_ONCE, "heads") as pool:
            heads = chain.from_iterable(pool.map(heads_of, parts))
            for file, told in zip(scan.files, heads, strict=True):
                if isinstance(told, OSError):
                    refuse(unreadable(self.field, self.files.name(file.path), told))
                    continue
                if isinstance(told, CorruptImageError):
                    if format_named(file.path) is None:
                        found.others.append(file.path)
                    else:
                        found.images.append(ImageFile(file.path, None, str(told)))
                    continue
                head, known = told
                if known is not None:
                    kind = found.images if is_read(known) else found.unread
                    several = may_hold_several(known, head)
                    kind.append(ImageFile(file.path, known, several=several))
                elif format_named(file.path) is not None:
                    found.images.append(ImageFile(file.path, None, what_it_is(head, file.size)))
                else:
                    found.others.append(file.path)
        for path in scan.broken:
            if format_named(path) is not None:
                found.images.append(ImageFile(path, None, "it is a link to nothing"))
            else:
                found.broken += 1
        return found

    def _frames(
        self, images: Sequence[ImageFile], refuse: Refuse
    ) -> tuple[Sequence[ImageFile], dict[str, range], list[str]]:
        """The files, the numbers of the images to read in those that hold several, and what to tell
        of them. If all images are wanted and cannot be counted, the file is damaged.

        If only the first images are read, a file is opened only if its first bytes suggest several.
        """
        moving = [
            image
            for image in images
            if image.damage is None
            and (image.several or (self.frames != "first" and image.known in _MOVING))
        ]

        every = self.frames == "all"
        damaged: dict[str, ImageFile] = {}

        def count(image: ImageFile) -> int:
            try:
                with self.files.open(image.path) as file:
                    return frames_of(file, image.known, every=every)
            except Exception as error:
                if every:
                    why = str(error) if isinstance(error, CorruptImageError) else reason(error)
                    damaged[image.path] = replace(image, damage=why)
                return 1

        with ThreadPoolExecutor(_HEADS_AT_ONCE, "frames") as pool:
            counts = pool.map(count, moving) if moving else ()
            several = [(i, number) for i, number in zip(moving, counts, strict=True) if number > 1]
        images = [damaged.get(image.path, image) for image in images]
        if self.frames == "channels":
            for image, number in several:
                if image.known != "TIFF":
                    refuse(
                        DataError(
                            f"data.frames: {self.files.name(image.path)} holds {number:,} images in"
                            f" {image.known}, and only pages of TIFF files become channels; convert"
                            " it to TIFF, or set data.frames=all or first"
                        )
                    )
            return images, {}, []
        if not several:
            return images, {}, []
        total = sum(number for _, number in several)
        hold = "1 file holds" if len(several) == 1 else f"{len(several):,} files hold"
        if every:
            return images, {i.path: range(n) for i, n in several}, [f"{hold} {total:,} images"]
        first = f"{hold} {total:,} images: the first is read; data.frames=all reads all"
        return images, {}, [first]

    def _item(
        self,
        image: ImageFile,
        place: Place,
        label: int | None,
        names: Sequence[str],
        frame: int | None,
        conditions: tuple[float, ...] | None,
        files: Files | _KeptFiles,
    ) -> Item:
        suffix = "" if frame is None else f"#{frame}"
        return Item(
            key=place.key,
            name=self.files.name(image.path) + suffix,
            split=place.split,
            load=partial(_load, files, image, label, frame, self.frames == "channels"),
            encoded=partial(_bytes_of, self.files, image.path) if frame is None else None,
            class_name=names[label] if label is not None and names else None,
            conditions=conditions,
        )

    def _check_classes(self, layout: Layout, found: Found, refuse: Refuse) -> None:
        """Refuses if a class has images, but none of a format that is read."""
        readable = {
            layout.places[i.path].class_name for i in found.images if i.path in layout.places
        }
        for image in found.unread:
            place = layout.places.get(image.path)
            if place is not None and place.class_name not in readable:
                what = f"class {place.class_name}" if place.class_name else "split"
                readable.add(place.class_name)
                refuse(
                    DataError(
                        f"{self.field}: the {what} of {self.files.name(image.path)} has only"
                        f" images in {image.known}, which is not read;"
                        f" {remedy(image.known or '')}, or move the folder away"
                    )
                )

    def _no_images(self, found: Found) -> str:
        where = f"{self.field}: {self.files.root}"
        if found.unread:
            known = found.unread[0].known or ""
            return (
                f"{where} has no images that are read, but {len(found.unread):,} files in {known};"
                f" {remedy(known)}"
            )
        if not found.others:
            return f"{where} is empty; put images into it or give another folder"
        message = f"{where} has no images, but has {found.others[0]}"
        if any(other.endswith(".parquet") for other in found.others):
            return f"{message}; for Parquet files set data.kind=parquet"
        if any(other.endswith(".arrow") for other in found.others):
            return f"{message}; for a folder of `datasets` set data=arrow:{self.files.root}"
        for suffix, kind in ((".zip", "zip"), (".tar", "tar")):
            other = next((path for path in found.others if path.endswith(suffix)), None)
            if other is not None:
                return f"{message}; for this file set data={kind}:{self.files.name(other)}"
        return f"{message}; give another folder or convert the files"


class ImageFolder(Images):
    """The image files below a folder."""

    def __init__(self, *, path: str, **settings: Any) -> None:
        """settings: see `Images`."""
        super().__init__(FolderFiles(path), **settings)


def _counted(found: Found, read: Sequence[str]) -> dict[str, int]:
    """Number of files that were not read, by kind. The largest number first. read: paths of files
    that are no images, but were read."""
    kinds: Counter[str] = Counter()
    for image in found.unread:
        known = image.known or ""
        what = "" if format_named(image.path) == known else f"{known}: "
        kinds[f"{_suffix(image.path)} ({what}{remedy(known)})"] += 1
    kinds.update(_suffix(path) for path in found.others if path not in read)
    if found.broken:
        kinds["links to nothing"] = found.broken
    return dict(kinds.most_common())


def _suffix(path: str) -> str:
    return suffix_of(path) or "without suffix"


_Head = tuple[bytes, str | None]
"""The first bytes of a file, and its format."""


class _KeptFiles:
    """Files that hold several images: each is read once, and not once for each of its images. Keeps
    the last two. Threads read the images in order, so some may still be at the first."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._kept: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _KeptFiles, (self._files,)

    def open(self, path: str) -> IO[bytes]:
        """See `Files.open`. An array on a disk stays there: its images are read at their places."""
        with self._lock:
            data = self._kept.pop(path, None)
            if data is None:
                file = self._files.open(path)
                if isinstance(file, io.FileIO) and file.read(len(_ARRAY)) == _ARRAY:
                    return file
                with file:
                    check_bytes(file.seek(0, io.SEEK_END))
                    file.seek(0)
                    data = file.read()
            self._kept[path] = data
            if len(self._kept) > 2:
                del self._kept[next(iter(self._kept))]
        return io.BytesIO(data)


def _load(
    files: Files | _KeptFiles,
    image: ImageFile,
    label: int | None,
    frame: int | None,
    pages: bool,
) -> tuple[Picture, int | None]:
    if image.damage is not None:
        raise CorruptImageError(image.damage)
    with files.open(image.path) as file:
        return read_picture(file, image.known, frame, pages=pages), label


def _bytes_of(files: Files, path: str) -> bytes:
    with files.open(path) as file:
        return file.read()
