"""Trees of files: what a source of image files reads from, and the folder as one."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ray_gen.data.errors import DataError, unreadable
from ray_gen.data.formats import HEAD_BYTES

NEVER_DATA = frozenset(
    {
        *("@eadir", "__macosx", "__pycache__", "#recycle", "$recycle.bin", "lost+found"),
        *("system volume information", "thumbs.db", "desktop.ini"),
    }
)
"""Lower-case names of what systems write beside images: thumbnails, forks, bins. Hidden names,
with a dot in front, are never data either."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a tree, not yet read."""

    path: str
    """Relative to the root of the tree, with "/" between its parts."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change. In an archive: of the archive, or 0 where it keeps checksums."""
    crc: int = 0
    """CRC-32 of its bytes, where an archive keeps one."""


@dataclass(frozen=True)
class Scan:
    """All files of a tree that may be data, in an order that is the same on every machine."""

    files: list[File]
    empty: tuple[str, ...] = ()
    """Folders without anything that may be data."""
    broken: tuple[str, ...] = ()
    """Symbolic links to nothing."""
    notes: tuple[str, ...] = ()
    """What a user should know about the tree."""


class Files(Protocol):
    """A tree of files. Its construction reads nothing."""

    kind: str
    """First part of the name of the cache entry."""

    @property
    def root(self) -> str:
        """The tree, as messages name it."""
        ...

    def scan(self) -> Scan:
        """Everything that may be data. Reads no file. Raises DataError."""
        ...

    def open(self, path: str) -> IO[bytes]:
        """A file of the tree, to be read from its start. Called from several threads. Raises
        OSError."""
        ...

    def head(self, path: str) -> bytes:
        """The first HEAD_BYTES of a file. Called from several threads. Raises OSError."""
        ...

    def name(self, path: str) -> str:
        """A file of the tree, as messages name it."""
        ...


def parts_of(path: str) -> tuple[str, ...]:
    """The order of a tree's files: folder by folder, by name."""
    return tuple(path.split("/"))


def is_data(name: str) -> bool:
    """Whether a file or folder of this name may be data."""
    return not name.startswith(".") and name.lower() not in NEVER_DATA


class FolderFiles:
    """The files below a folder. Follows symbolic links, except to a folder that holds the link."""

    kind = "folder"

    def __init__(self, path: str) -> None:
        self._root = Path(path).expanduser().absolute()
        # Text, because joining paths takes a quarter of the time of a small image.
        self._prefix = f"{self._root}/"

    @property
    def root(self) -> str:
        """The absolute path."""
        return str(self._root)

    def scan(self) -> Scan:
        """All visible files. Raises DataError if the folder or a part of it cannot be read."""
        root = self._root
        try:
            if not root.is_dir():
                root.stat()
                raise DataError(f"data.path: {root} is a file; {_remedy_for_file(root)}")
            files: list[File] = []
            empty: list[str] = []
            broken: list[str] = []
            special: list[str] = []
            for path, entry in _walk(root):
                if entry is None:
                    empty.append(path)
                elif entry.is_symlink() and not Path(entry.path).exists():
                    broken.append(path)
                elif stat.S_ISREG((status := entry.stat()).st_mode):
                    files.append(File(path, status.st_size, status.st_mtime_ns))
                else:  # to open it may wait for ever
                    special.append(path)
            return Scan(files, tuple(empty), tuple(broken), _notes(special))
        except OSError as error:
            where = Path(error.filename or root)
            if isinstance(error, FileNotFoundError) and where == root:
                raise DataError(
                    f"data.path: {root} does not exist on the machine that reads it;"
                    " give a folder of images there"
                ) from error
            raise unreadable("data.path", where, error) from error

    def open(self, path: str) -> IO[bytes]:
        """The file, without Python's buffer: readers ask for large parts."""
        return io.open(self._prefix + path, "rb", buffering=0)  # noqa: UP020

    def head(self, path: str) -> bytes:
        """The first bytes of the file."""
        with self.open(path) as file:
            return file.read(HEAD_BYTES)

    def name(self, path: str) -> str:
        """The absolute path."""
        return self._prefix + path


def _notes(special: list[str]) -> tuple[str, ...]:
    """What to tell of pipes, sockets and devices."""
    told = f"pipes, sockets and devices, which are not read: {len(special):,}; the first is "
    return (f"{told}{special[0]}",) if special else ()


def _remedy_for_file(path: Path) -> str:
    for kind, suffixes in {
        "zip": (".zip",),
        "tar": (".tar", ".tar.gz", ".tgz"),
        "parquet": (".parquet",),
        "list": (".txt", ".lst"),
    }.items():
        if path.name.lower().endswith(suffixes):
            return f"set data={kind}:{path}"
    return "give a folder of images"


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if is_data(entry.name)]
    return sorted(visible, key=lambda entry: entry.name)


def _walk(
    folder: Path | str, prefix: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, os.DirEntry[str] | None]]:
    """(relative path, entry) of every file below a folder. For an empty folder: (path, None)."""
    status = Path(folder).stat()
    this = (status.st_dev, status.st_ino)
    if this in above:
        return
    entries = _visible(folder)
    if not entries and prefix:
        yield prefix.rstrip("/"), None
    for entry in entries:
        if _is_folder(entry):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, this))
        else:
            yield f"{prefix}{entry.name}", entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is a link to nothing
            return False
        raise
