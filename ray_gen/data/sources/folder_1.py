"""A folder of image files by the first rules of reading (see `rules_1.py`): one sub-folder per
class (the ImageFolder layout), or flat and unlabelled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray_gen.data.errors import DataError, reason
from ray_gen.data.sources.base import HELD_OUT_NAMES, Item, Listing, SplitName, read_image_1

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    """Relative to the root, with "/" between its parts."""
    split: SplitName | None
    class_name: str | None
    size: int
    mtime_ns: int


class ImageFolder1:
    """Image files below `path`.

    Sub-folders that hold images are the classes, in the order of their sorted names. Images
    directly in `path` have no labels. If `train` and one of `validation`, `valid`, `val` or `test`
    exist, they are the data set's own splits, each laid out as above. If several of these
    held-out names exist, the first in this order is held out, and the others are not read. Hidden
    files and folders are ignored.
    """

    kind = "folder"
    field = "data.path"

    def __init__(self, *, path: str) -> None:
        self.root = Path(path).expanduser().absolute()
        self._found: list[_File] | None = None

    def identity(self) -> object:
        """Digest of every file's relative path, size and time. Scans the folder, reads no file."""
        digest = hashlib.blake2b(digest_size=16)
        self._found = self._scan_all()
        for file in self._found:
            digest.update(os.fsencode(f"{file.split}\0{file.path}\0{file.size}\0{file.mtime_ns}\n"))
        return {"files": digest.hexdigest(), "count": len(self._found)}

    def listing(self) -> Listing:
        files = self._found or self._scan_all()
        names = sorted({file.class_name for file in files if file.class_name is not None})
        index = {name: i for i, name in enumerate(names)}
        items = (
            Item(
                key=file.path,
                name=str(self.root / file.path),
                split=file.split,
                load=partial(
                    _load,
                    self.root / file.path,
                    None if file.class_name is None else index[file.class_name],
                ),
                encoded=(self.root / file.path).read_bytes,
            )
            for file in files
        )
        return Listing(len(files), items, tuple(names) or None)

    def _scan_all(self) -> list[_File]:
        try:
            if not self.root.is_dir():
                self.root.stat()
                raise DataError(
                    f"data.path: {self.root} is a file; give the folder that contains it"
                )
            return self._scan_root()
        except OSError as error:
            where = Path(error.filename or self.root)
            if isinstance(error, FileNotFoundError) and where == self.root:
                raise DataError(
                    f"data.path: {self.root} does not exist on the machine that reads it;"
                    " give a folder of images there"
                ) from error
            raise DataError(
                f"data.path: {where} cannot be read: {reason(error)};"
                " restore it or give this user access to it"
            ) from error

    def _scan_root(self) -> list[_File]:
        """All images with their splits. Raises OSError if something cannot be read."""
        folders = [entry.name for entry in _visible(self.root) if entry.is_dir()]
        held_out = next((name for name in HELD_OUT_NAMES if name in folders), None)
        if "train" not in folders or (held_out is None and len(folders) > 1):
            return self._scan_split(self.root, None)
        if held_out is None:
            raise DataError(
                f"data.path: the only folder in {self.root} is train, which is not a class; give"
                f" {self.root}/train itself, or put held-out images into {self.root}/test"
            )
        for name in sorted({*folders} - {"train", *HELD_OUT_NAMES}):
            if any(_is_image(entry.name) for _, entry in _walk(self.root / name)):
                raise DataError(
                    f"data.path: {self.root} has the splits train and {held_out}, but {name} is no"
                    f" split; move {name} away, or give {self.root}/train itself"
                )
        files = [
            *self._scan_split(self.root / "train", "train"),
            *self._scan_split(self.root / held_out, "held_out"),
        ]
        if len({file.class_name is None for file in files}) > 1:
            raise DataError(
                f"data.path: {self.root} has class folders in only one of train and {held_out};"
                " lay out both in the same way"
            )
        return files

    def _scan_split(self, folder: Path, split: SplitName | None) -> list[_File]:
        """The images of one split. The class of a file is the folder directly below `folder`."""
        prefix = "" if folder == self.root else folder.name + "/"
        files: list[_File] = []
        others: list[str] = []
        for path, entry in _walk(folder):
            if not _is_image(entry.name):
                others.append(path)
                continue
            status = entry.stat()
            class_name = path.partition("/")[0] if "/" in path else None
            file = _File(prefix + path, split, class_name, status.st_size, status.st_mtime_ns)
            files.append(file)
        if not files:
            raise DataError(_no_images(folder, others))
        loose = next((file for file in files if file.class_name is None), None)
        classed = next((file for file in files if file.class_name is not None), None)
        if loose and classed:
            raise DataError(
                f"data.path: {folder} has images beside class folders that hold images"
                f" ({loose.path}, {classed.path}); move the loose images into a class folder, or"
                " away"
            )
        return files


def _no_images(folder: Path, others: list[str]) -> str:
    if not others:
        return f"data.path: {folder} is empty; put images into it or give another folder"
    kinds = f"{', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}"
    message = f"data.path: {folder} has no images (names that end in {kinds}), but has {others[0]}"
    if any(other.endswith(".parquet") for other in others):
        return f"{message}; for Parquet files set data.kind=parquet"
    return f"{message}; give another folder or convert the files"


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """Visible entries of a folder, sorted by name, so that every machine has the same order."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _walk(
    folder: Path | str, prefix: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative path, entry) of every visible file below a folder.

    Follows symbolic links, except a link to a folder that contains the link. A broken link counts
    as a file, so that a data set with missing files does not look like a smaller one.
    """
    status = Path(folder).stat()
    this = (status.st_dev, status.st_ino)
    if this in above:
        return
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, this))
        elif entry.is_file() or entry.is_symlink():
            yield f"{prefix}{entry.name}", entry


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _load(path: Path, label: int | None) -> tuple[Image, int | None]:
    with path.open("rb") as file:
        return read_image_1(file), label
