"""Zip files as trees of files. Nothing is extracted: members are read at their places.

What all archives share is here, too: reads at given places, and members' names as a tree.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
import struct
import weakref
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ray_gen.data.errors import CorruptImageError, DataError, reason
from ray_gen.data.formats import HEAD_BYTES, what_it_is
from ray_gen.data.sources.files import File, Scan, is_data
from ray_gen.data.sources.images import Images

_END = struct.Struct("<4s4H2LH")
_END_64_PLACE = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL_BYTES = 30
_LONGEST_END = _END.size + 0xFFFF
"""An archive may end with a comment of this length."""
_BEFORE_DATA = 512
"""Bytes that are read before a member's data for its local header, name and extra fields. A longer
one costs a second read."""
_STORED, _DEFLATED = 0, 8
_METHODS = {
    **{1: "shrink", 6: "implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA"},
    **{93: "Zstandard", 95: "xz", 98: "PPMd"},
}
_MADE_ON_WINDOWS = (0, 10, 11, 14)
_MADE_ON_UNIX = (3, 19)
_LINKS_FOLLOWED = 8
_SHOWN = 3
_ODD = re.compile(r"[\\\0]")


class Handle:
    """A file that is read at given places, by many threads at once."""

    def __init__(self, path: str | Path) -> None:
        """Raises OSError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(0, "it is a folder", str(path))
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Fewer at the end of the file, however many are asked."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        data = os.pread(self._descriptor, size, offset)
        if len(data) in (size, 0):
            return data
        parts = [data]  # the kernel reads at most 2 GiB at once
        done = len(data)
        while done < size and (data := os.pread(self._descriptor, size - done, offset + done)):
            parts.append(data)
            done += len(data)
        return b"".join(parts)


class Tree:
    """The names of an archive's members as a tree of files."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._filled: set[str] = set()
        self._unsafe: list[str] = []
        self._twice: list[str] = []
        self._foreign: list[str] = []
        self._known: dict[str, str] = {}
        """Paths of folders that hold a file, by their names in the archive."""

    def path_of(self, name: str, *, folder: bool = False) -> str | None:
        """The path of a member. None if it is a folder, may not be data, or leads out."""
        above, _, last = name.rpartition("/")
        known = self._known.get(above)
        if known is not None and not folder and last.strip(".") and not _ODD.search(last):
            if not is_data(last):
                return None
            return f"{known}/{last}" if known else last
        if name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name) or "\0" in name:
            self._unsafe.append(name)
            return None
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            self._unsafe.append(name)
            return None
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            above = "/".join(parts[:depth])
            if above:
                self._folders.add(above)
            if not is_data(part):
                return None
            self._filled.add(above)
            if last and not folder:
                self._known[name.rpartition("/")[0]] = above
                return "/".join(parts)
        self._folders.add("/".join(parts))
        return None

    def twice(self, path: str) -> None:
        """Tells that a path occurs again."""
        self._twice.append(path)

    def foreign(self, path: str) -> None:
        """Tells that a name has letters of an unknown encoding."""
        self._foreign.append(path)

    @property
    def empty(self) -> tuple[str, ...]:
        """Folders without anything that may be data."""
        return tuple(sorted(self._folders - self._filled - {""}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the names."""
        found: list[str] = []
        if self._unsafe:
            found.append(
                f"{len(self._unsafe):,} members with names that lead out of the archive are not"
                f" read: {_named(self._unsafe)}"
            )
        if self._twice:
            found.append(
                f"{len(self._twice):,} members have the name of an earlier one, which is not read:"
                f" {_named(self._twice)}"
            )
        if self._foreign:
            found.append(
                f"{len(self._foreign):,} names are not UTF-8 and are read as code page 437, so"
                f" their letters may be wrong: {_named(self._foreign)}"
            )
        return tuple(found)


def _named(names: list[str]) -> str:
    more = len(names) - _SHOWN
    shown = ", ".join(repr(name) if not name.isprintable() else name for name in names[:_SHOWN])
    return shown + (", …" if more > 0 else "")


def target_of(link: str, target: str, files: Iterable[str], links: dict[str, str]) -> str | None:
    """The file of the archive that a symbolic link leads to. None: there is none.

    files: paths of the archive's files. links: paths and targets of its links.
    """
    for _ in range(_LINKS_FOLLOWED):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
        if path in files:
            return path
        if path not in links:
            return None
        link, target = path, links[path]
    return None


def local_path(path: str, kind: str) -> Path:
    """The absolute path. Raises DataError for a URI."""
    if "://" in path:
        raise DataError(
            f"data.path: {path} is a URI, and {kind} are read only from a disk; copy them to a"
            f" disk, or write Parquet with `ray-gen data convert` where they lie"
        )
    return Path(path).expanduser().absolute()


def cannot_open(path: Path, error: OSError, remedy: str) -> DataError:
    """The error for a file that a source names."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"data.path: {path} does not exist on the machine that reads it; {remedy}")
    if isinstance(error, IsADirectoryError):
        return DataError(f"data.path: {path} is a folder; set data=folder:{path}, or {remedy}")
    return DataError(
        f"data.path: {path} cannot be read: {reason(error)};"
        " restore it or give this user access to it"
    )


class _Member(NamedTuple):
    """Where a file lies in a zip file."""

    header: int
    """Offset of its local header."""
    stored: int
    """Number of bytes in the archive."""
    size: int
    crc: int
    deflated: bool


class ZipFiles:
    """The files in a zip file. A symbolic link to another member is that member."""

    kind = "zip"

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: tuple[Handle, dict[str, _Member]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}  # another process opens it again

    @property
    def root(self) -> str:
        """The absolute path of the zip file."""
        return str(local_path(self._path, "zip files"))

    def scan(self) -> Scan:
        """Reads the archive's directory. Raises DataError."""
        path = local_path(self._path, "zip files")
        try:
            handle = Handle(path)
            members, tree, broken = _read_directory(handle, path)
        except OSError as error:
            raise cannot_open(path, error, "give a zip file") from error
        self._opened = handle, members
        files = [File(name, member.size, 0, member.crc) for name, member in members.items()]
        files.sort(key=lambda file: file.path.split("/"))
        return Scan(files, tree.empty, tuple(sorted(broken)), tree.notes)

    def open(self, path: str) -> IO[bytes]:
        """A member, decompressed. Raises OSError; CorruptImageError if it is damaged."""
        handle, member = self._member(path)
        return io.BytesIO(_content(handle, member))

    def head(self, path: str) -> bytes:
        """The first bytes of a member. Raises OSError; CorruptImageError if it is damaged."""
        handle, member = self._member(path)
        return _content(handle, member, HEAD_BYTES)

    def name(self, path: str) -> str:
        """The path of the zip file, and the path in it."""
        return f"{self.root}/{path}"

    def _member(self, path: str) -> tuple[Handle, _Member]:
        if self._opened is None:
            self.scan()
        assert self._opened is not None
        handle, members = self._opened
        return handle, members[path]


def _read_directory(handle: Handle, path: Path) -> tuple[dict[str, _Member], Tree, list[str]]:
    """All members that may be data, their names as a tree, and links to nothing."""
    members: dict[str, _Member] = {}
    tree = Tree()
    links: dict[str, str] = {}
    for name, member, is_link in _entries(handle, path, tree):
        place = tree.path_of(name, folder=name.endswith("/"))
        if place is None:
            continue
        if member.stored < 0:
            raise _unreadable_method(path, place, member)
        if is_link:
            links[place] = _content(handle, member).decode(errors="replace")
            continue
        if place in members:
            tree.twice(place)
        members[place] = member
    broken: list[str] = []
    for link, target in links.items():
        found = target_of(link, target, members, links)
        if found is None:
            broken.append(link)
        else:
            members[link] = members[found]
    return members, tree, broken


def _unreadable_method(path: Path, place: str, member: _Member) -> DataError:
    if member.stored == -1:
        return DataError(
            f"data.path: {place} in {path} is encrypted; write the zip file without a password"
        )
    method = _METHODS.get(member.size, f"method {member.size}")
    return DataError(
        f"data.path: {place} in {path} is compressed with {method}, and only stored and deflated"
        " members are read; unpack it and zip it with deflate"
    )


def _entries(handle: Handle, path: Path, tree: Tree) -> Iterator[tuple[str, _Member, bool]]:
    """Name and place of each entry of the directory, and whether it is a symbolic link.

    An encrypted member has -1 for its stored bytes. One of another method has -2, and the method
    for its size.
    """
    directory, count, shift = _directory(handle, path)
    place = done = 0
    while place + _ENTRY.size <= len(directory) and directory[place : place + 4] == b"PK\1\2":
        entry = _ENTRY.unpack_from(directory, place)
        _, made, _, flags, method, _, _, crc, stored, size, *lengths, _, _, mode, header = entry
        place += _ENTRY.size
        encoded = directory[place : place + lengths[0]]
        extra = directory[place + lengths[0] : place + lengths[0] + lengths[1]]
        place += sum(lengths)
        done += 1
        if 0xFFFFFFFF in (size, stored, header):
            size, stored, header = _of_64_bits(extra, size, stored, header)
        try:
            name = encoded.decode()
        except UnicodeDecodeError:
            name = encoded.decode("cp437")
            tree.foreign(name)
        if made >> 8 in _MADE_ON_WINDOWS:
            name = name.replace("\\", "/")
        if flags & 0x41 or method == 99:
            stored = -1
        elif method not in (_STORED, _DEFLATED):
            stored, size = -2, method
        is_link = made >> 8 in _MADE_ON_UNIX and stat.S_ISLNK(mode >> 16)
        yield name, _Member(header + shift, stored, size, crc, method == _DEFLATED), is_link
    if done != count:
        raise _not_whole(path, f"its directory holds {done:,} of {count:,} members")


def _directory(handle: Handle, path: Path) -> tuple[bytes, int, int]:
    """The bytes of the directory, the number of its entries, and the number of bytes before the
    archive (of a program that unpacks it)."""
    first = max(0, handle.size - _LONGEST_END)
    tail = handle.read(first, _LONGEST_END)
    at = tail.rfind(b"PK\5\6")
    while at >= 0 and (
        at + _END.size > len(tail) or at + _END.size + _END.unpack_from(tail, at)[7] > len(tail)
    ):
        at = tail.rfind(b"PK\5\6", 0, at)
    if at < 0:
        head = handle.read(0, HEAD_BYTES)
        cut = head.startswith(b"PK")
        raise _not_whole(
            path,
            f"it ends at byte {handle.size:,} without a directory, as an interrupted download"
            if cut
            else what_it_is(head, handle.size).replace("an image of a known format", "a zip file"),
        )
    _, disk, _, _, count, size, offset, _ = _END.unpack_from(tail, at)
    end = first + at
    before = handle.read(max(0, end - _END_64_PLACE.size), _END_64_PLACE.size)
    if before.startswith(b"PK\6\7") and len(before) == _END_64_PLACE.size:
        _, _, place, _ = _END_64_PLACE.unpack(before)
        for at_64 in (place, end - _END_64_PLACE.size - _END_64.size):
            written = handle.read(at_64, _END_64.size) if 0 <= at_64 < handle.size else b""
            if written.startswith(b"PK\6\6") and len(written) == _END_64.size:
                _, _, _, _, disk, _, _, count, size, offset = _END_64.unpack(written)
                end = at_64
                break
    if disk not in (0, 0xFFFF):
        raise DataError(
            f"data.path: {path} is the last of {disk + 1} parts of a zip file; join them with"
            f" `zip -s 0 {path.name} --out whole.zip`"
        )
    shift = end - size - offset
    if shift < 0 or size > end:
        raise _not_whole(path, "its directory lies outside of it: its beginning is missing")
    return handle.read(offset + shift, size), count, shift


def _of_64_bits(extra: bytes, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """The numbers of an entry that need 64 bits, from its extra field."""
    place = 0
    while place + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, place)
        if tag == 1:
            written = extra[place + 4 : place + 4 + length // 8 * 8]
            numbers = (
                number for (number,) in struct.iter_unpack("<Q", written[: len(written) & -8])
            )
            size, stored, header = (
                next(numbers, value) if value == 0xFFFFFFFF else value
                for value in (size, stored, header)
            )
        place += 4 + length
    return size, stored, header


def _not_whole(path: Path, why: str) -> DataError:
    return DataError(
        f"data.path: {path} is not a whole zip file: {why}; download or write it again"
    )


def _content(handle: Handle, member: _Member, most: int | None = None) -> bytes:
    """The decompressed bytes of a member, or at most the first `most` of them."""
    wanted = member.stored if most is None else min(member.stored, 2 * most + 64)
    data = handle.read(member.header, _BEFORE_DATA + wanted)
    if not data.startswith(b"PK\3\4") or len(data) < _LOCAL_BYTES:
        raise CorruptImageError("the zip file is damaged: it has no header at its place")
    begin = _LOCAL_BYTES + sum(struct.unpack_from("<HH", data, 26))
    missing = begin + wanted - len(data)
    if missing > 0:
        data += handle.read(member.header + len(data), missing)
    found = memoryview(data)[begin : begin + wanted]
    if len(found) < wanted:
        raise CorruptImageError(f"the zip file ends inside it, at byte {handle.size:,}")
    if not member.deflated:
        content = bytes(found if most is None else found[:most])
    else:
        try:
            # A damaged or hostile member must not become larger than the directory says.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                found, member.size + 1 if most is None else most
            )
        except zlib.error as error:
            raise CorruptImageError("its compressed bytes are damaged") from error
    if most is None:
        if len(content) != member.size:
            raise CorruptImageError(
                f"it has {len(content):,} bytes, and the zip file says {member.size:,}"
            )
        if zlib.crc32(content) != member.crc:
            raise CorruptImageError("its checksum is wrong: the zip file is damaged")
    return content


class ImageZip(Images):
    """The image files in a zip file."""

    def __init__(self, *, path: str, **settings: Any) -> None:
        """settings: see `Images`."""
        super().__init__(ZipFiles(path), **settings)
