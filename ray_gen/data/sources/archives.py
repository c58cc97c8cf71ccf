"""Zip files as trees of files. Nothing is extracted: members are read at their places.

What all archives share is here, too: reads at given places, and members' names as a tree.
"""

from __future__ import annotations

import io
import itertools
import os
import posixpath
import re
import stat
import struct
import weakref
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from ray_gen.data.errors import CorruptImageError, DataError, reason, unreadable
from ray_gen.data.formats import HEAD_BYTES, check_bytes, what_it_is
from ray_gen.data.sources.files import File, Scan, is_data
from ray_gen.data.sources.images import Images

_LOCAL_BYTES = 30
_BEFORE_DATA = 512
"""Bytes that are read before a member's data for its local header, name and extra fields. A longer
one costs a second read."""
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd"}
_MADE_ON_UNIX = (3, 19)
_LINKS_FOLLOWED = 8
_SHOWN = 3


class Handle:
    """A file that is read at given places, by many threads at once."""

    def __init__(self, path: str | Path) -> None:
        """Raises OSError."""
        self.file = Path(path).open("rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        self.size = os.fstat(self.file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Fewer at the end of the file, however many are asked."""
        size = min(size, self.size - offset)
        return os.pread(self.file.fileno(), size, offset) if size > 0 else b""


class Tree:
    """The names of an archive's members as a tree of files."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._filled: set[str] = set()
        self.unsafe: list[str] = []
        """Names that lead out of the archive."""
        self.twice: list[str] = []
        """Paths that occur again."""
        self.foreign: list[str] = []
        """Paths with letters of an unknown encoding."""
        self.special: list[str] = []
        """Paths of pipes and devices."""

    def path_of(self, name: str, *, folder: bool = False) -> str | None:
        """The path of a member. None if it is a folder, may not be data, or leads out."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:[/\\]", name):
            self.unsafe.append(name)
            return None
        visible = list(itertools.takewhile(is_data, parts))
        if folder or name.endswith("/") or not parts or visible != parts:
            self._folders.add("/".join(visible))
            return None
        self._filled.add("/".join(visible[:-1]))
        return "/".join(visible)

    @property
    def empty(self) -> tuple[str, ...]:
        """Folders without anything that may be data."""
        full = {""} | self._filled
        for path in self._folders | self._filled:
            while (path := posixpath.dirname(path)) not in full:
                full.add(path)
        return tuple(sorted(self._folders - full))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the names."""
        found = {
            "members with names that lead out of the archive are not read": self.unsafe,
            "members have the name of an earlier one, which is not read": self.twice,
            "names are not UTF-8 and are read as code page 437, so their letters may be"
            " wrong": self.foreign,
            "members are pipes or devices, which are not read": self.special,
        }
        return tuple(
            f"{len(names):,} {what}: {_named(names)}" for what, names in found.items() if names
        )


def check_inside(root: str, *trees: Tree) -> None:
    """Raises DataError if an archive without files has members whose names lead out of it. root:
    its path."""
    unsafe = [name for tree in trees for name in tree.unsafe]
    if unsafe:
        raise DataError(
            f"data.path: all names in {root} lead out of it ({_named(unsafe)}), so nothing is read;"
            " pack it again with relative names, from inside the folder"
        )


def _named(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:_SHOWN])
    return shown + (", …" if names[_SHOWN:] else "")


def target_of(link: str, target: str) -> str:
    """The path that a symbolic link leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), target))


def follow(links: Mapping[str, str], members: dict[str, Any]) -> list[str]:
    """Makes each link the member that it leads to. Returns the links to nothing.

    links: paths that links lead to, by the links' own paths. members: by their paths.
    """
    broken: list[str] = []
    for link in links:
        path = link
        for _ in range(_LINKS_FOLLOWED):
            path = links.get(path, "")
            if path in members:
                members[link] = members[path]
                break
        else:
            broken.append(link)
    return broken


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
    return unreadable("data.path", path, error)


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
        path = Path(self.root)
        try:
            handle = Handle(path)
            infos = _directory(handle, path)
        except OSError as error:
            raise cannot_open(path, error, "give a zip file") from error
        tree = Tree()
        members: dict[str, _Member] = {}
        links: dict[str, str] = {}
        for info in infos:
            name = _name(info, tree)
            place = tree.path_of(name)
            if place is None:
                continue
            member = _member(info, place, path)
            if info.create_system in _MADE_ON_UNIX and stat.S_ISLNK(info.external_attr >> 16):
                links[place] = _target(handle, member, place)
                continue
            if place in members:
                tree.twice.append(place)
            members[place] = member
        broken = follow(links, members)
        self._opened = handle, members
        files = [File(name, member.size, 0, member.crc) for name, member in members.items()]
        files.sort(key=lambda file: file.path.split("/"))
        if not files:
            check_inside(self.root, tree)
        return Scan(files, tree.empty, tuple(sorted(broken)), tree.notes)

    def open(self, path: str) -> IO[bytes]:
        """A member, decompressed. Raises OSError; CorruptImageError if it is damaged."""
        return io.BytesIO(_content(*self._member(path)))

    def head(self, path: str) -> bytes:
        """The first bytes of a member. Raises OSError; CorruptImageError if it is damaged."""
        return _content(*self._member(path), HEAD_BYTES)

    def name(self, path: str) -> str:
        """The path of the zip file, and the path in it."""
        return f"{self.root}/{path}"

    def _member(self, path: str) -> tuple[Handle, _Member]:
        if self._opened is None:
            self.scan()
        assert self._opened is not None
        handle, members = self._opened
        return handle, members[path]


def _directory(handle: Handle, path: Path) -> list[zipfile.ZipInfo]:
    """All entries of the archive's directory."""
    try:
        with zipfile.ZipFile(handle.file) as archive:
            infos = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # damage gives BadZipFile, UnicodeDecodeError, NotImplementedError
        head = handle.read(0, HEAD_BYTES)
        if not head.startswith(b"PK"):
            why = what_it_is(head, handle.size)
            why = why.replace("an image of a known format", "a zip file")
        elif str(error) == "File is not a zip file":
            why = f"it ends at byte {handle.size:,} without a directory, as an interrupted download"
        else:
            why = f"its directory is damaged ({reason(error)})"
        raise _not_whole(path, why) from error
    if any(info.volume not in (0, 0xFFFF) for info in infos):  # 0xFFFF: see the extra fields
        raise DataError(
            f"data.path: {path} is the last part of a zip file; join all parts with"
            f" `zip -s 0 {path.name} --out whole.zip`"
        )
    if any(info.header_offset < 0 for info in infos):
        raise _not_whole(path, "its beginning is missing")
    return infos


def _name(info: zipfile.ZipInfo, tree: Tree) -> str:
    """The name of a member. Many programs write UTF-8 without the flag that says so."""
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        try:
            name = name.encode("cp437").decode()
        except UnicodeDecodeError:
            tree.foreign.append(name)
    return name if info.create_system in _MADE_ON_UNIX else name.replace("\\", "/")


def _member(info: zipfile.ZipInfo, place: str, path: Path) -> _Member:
    """Where a member lies. Raises DataError if members of its kind are not read."""
    if info.flag_bits & 1:
        raise DataError(
            f"data.path: {place} in {path} is encrypted; write the zip file without a password"
        )
    method = info.compress_type
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"data.path: {place} in {path} is compressed with"
            f" {_METHODS.get(method, f'method {method}')}, and only stored and deflated members are"
            " read; unpack it and zip it with deflate"
        )
    deflated = method == zipfile.ZIP_DEFLATED
    return _Member(info.header_offset, info.compress_size, info.file_size, info.CRC, deflated)


def _target(handle: Handle, member: _Member, link: str) -> str:
    try:
        return target_of(link, _content(handle, member).decode(errors="replace"))
    except CorruptImageError:
        return ""  # to nothing


def _not_whole(path: Path, why: str) -> DataError:
    return DataError(
        f"data.path: {path} is not a whole zip file: {why}; download or write it again"
    )


def _content(handle: Handle, member: _Member, most: int | None = None) -> bytes:
    """The decompressed bytes of a member, or at most the first `most` of them."""
    if most is None:
        check_bytes(member.size)  # which a small archive can claim
    wanted = member.stored if most is None else min(member.stored, 2 * most + 64)
    data = handle.read(member.header, _BEFORE_DATA + wanted)
    if not data.startswith(b"PK\3\4") or len(data) < _LOCAL_BYTES:
        raise CorruptImageError("the zip file is damaged: it has no header at its place")
    begin = _LOCAL_BYTES + sum(struct.unpack_from("<HH", data, 26))
    if begin > _BEFORE_DATA:
        data = handle.read(member.header, begin + wanted)
    content = memoryview(data)[begin : begin + wanted]
    if len(content) < wanted:
        raise CorruptImageError(f"the zip file ends inside it, at byte {handle.size:,}")
    if member.deflated:
        try:
            # A damaged or hostile member must not become larger than the directory says.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                content, most or member.size + 1
            )
        except (zlib.error, OverflowError) as error:
            raise CorruptImageError("its compressed bytes are damaged") from error
    if most is not None:
        return bytes(content[:most])
    if len(content) != member.size:
        raise CorruptImageError(
            f"it has {len(content):,} bytes, and the zip file says {member.size:,}"
        )
    if zlib.crc32(content) != member.crc:
        raise CorruptImageError("its checksum is wrong: the zip file is damaged")
    return bytes(content)


class ImageZip(Images):
    """The image files in a zip file."""

    def __init__(self, *, path: str, **settings: Any) -> None:
        """settings: see `Images`."""
        super().__init__(ZipFiles(path), **settings)
