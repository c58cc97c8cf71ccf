"""Tar files as trees of files: one, or the shards of a data set. Members are read at their places.

Images may lie in class folders, or beside files of the same key that hold their class, as
webdataset writes them: KEY.jpg, KEY.cls (a number or a name), KEY.json ("label" or "class", and the
numbers to condition on).
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from ray_gen.data.errors import CorruptImageError, DataError, Refuse
from ray_gen.data.formats import HEAD_BYTES, check_bytes, what_it_is
from ray_gen.data.sources import labels as of_labels
from ray_gen.data.sources.archives import (
    Handle,
    Tree,
    cannot_open,
    check_inside,
    follow,
    local_path,
    target_of,
)
from ray_gen.data.sources.base import SplitName
from ray_gen.data.sources.conditions import FIELD
from ray_gen.data.sources.files import File, Scan, is_data
from ray_gen.data.sources.images import Images
from ray_gen.data.sources.layout import (
    Layout,
    Place,
    layout_of,
    split_named,
    split_of_shard,
    splits_of_shards,
)
from ray_gen.data.sources.metadata import (
    Labels,
    Metadata,
    Numbers,
    labels_of_texts,
    numbers_of_json,
)

_SHARDS_AT_ONCE = 16
_OPEN_FILES = 128
_LARGEST_SIDECAR = 1 << 20
"""Bytes. A larger .json file is not read for a label."""
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
}
_REMEDY = "give a tar file, a folder of tar files, or a pattern such as shard-{000..009}.tar"


class _Member(NamedTuple):
    """Where a file lies."""

    shard: _Shard
    offset: int
    size: int


class _Told(NamedTuple):
    """What a file says of the files of its key."""

    class_name: str | None
    """A number or a name."""
    numbers: Mapping[str, Any]
    """Of the columns to condition on: those that it has."""


@dataclass(eq=False)
class _Shard:
    """A tar file, and what its headers tell."""

    name: str
    """Its path below the given folder. Empty if it was given itself."""
    path: Path
    size: int = 0
    mtime_ns: int = 0
    members: dict[str, _Member] = field(default_factory=dict[str, _Member])
    """By path, without the shard's name."""
    links: dict[str, str] = field(default_factory=dict[str, str])
    """The paths that links lead to."""
    tree: Tree = field(default_factory=Tree)
    told: dict[str, _Told] = field(default_factory=dict[str, _Told])
    """What files say of the files of their key, by their paths."""
    keys: set[str] = field(default_factory=set[str])
    """Keys of all .json files, where numbers are asked for."""
    has_end: bool = False

    @property
    def prefix(self) -> str:
        """What comes before the paths of its members."""
        return f"{self.name}/" if self.name else ""


class TarFiles:
    """The files in one tar file, or in several: then a path begins with the name of the shard."""

    kind = "tar"

    def __init__(self, path: str, conditions: tuple[str, ...] = ()) -> None:
        """conditions: names of the numbers to read from .json files."""
        self._path = path
        self._conditions = conditions
        self._forget()

    def _forget(self) -> None:
        self._shards: list[_Shard] | None = None
        self._members: dict[str, _Member] = {}
        self._opened = lru_cache(_OPEN_FILES)(Handle)  # a process may open only about 1,000

    def __reduce__(self) -> tuple[type[TarFiles], tuple[str, tuple[str, ...]]]:
        return type(self), (self._path, self._conditions)  # a process opens the files itself

    @property
    def root(self) -> str:
        """The absolute path, or the pattern."""
        return str(local_path(self._path, "tar files"))

    @property
    def shards(self) -> Sequence[_Shard]:
        """The tar files, and what their headers tell."""
        if self._shards is None:
            self.scan()
        assert self._shards is not None
        return self._shards

    @property
    def told(self) -> dict[str, list[_Told]]:
        """What .cls and .json files say of the files of a key, by key."""
        found: dict[str, list[_Told]] = {}
        for shard in self.shards:
            for path, told in shard.told.items():
                found.setdefault(shard.prefix + _key_of(path)[0], []).append(told)
        return found

    def shard_of(self, path: str) -> _Shard:
        """The shard that holds a file, or a link to nothing."""
        shards = self.shards
        if path in self._members:
            return self._members[path].shard
        return next(shard for shard in shards if path.startswith(shard.prefix))  # a broken link

    def scan(self) -> Scan:
        """Reads the headers of all shards. Raises DataError."""
        self._forget()
        shards = [_Shard(name, path) for name, path in _shards_at(self.root)]
        files: list[File] = []
        empty: list[str] = []
        broken: list[str] = []
        notes: list[str] = []
        with ThreadPoolExecutor(_SHARDS_AT_ONCE, "headers") as pool:
            for shard, to_nothing in zip(shards, pool.map(self._read_shard, shards), strict=True):
                prefix = shard.prefix
                broken += [prefix + path for path in to_nothing]
                empty += [prefix + path for path in shard.tree.empty]
                notes += [f"{shard.name}: {note}" if prefix else note for note in shard.tree.notes]
                for path, member in shard.members.items():
                    self._members[prefix + path] = member
                    if path not in shard.told:
                        files.append(File(prefix + path, member.size, shard.mtime_ns))
                shard.members.clear()
        self._shards = shards
        endless = [str(shard.path) for shard in shards if not shard.has_end]
        if endless:
            some = "has no end mark" if len(endless) == 1 else "and others have no end mark"
            notes.append(f"{endless[0]} {some}; it may be cut off between two files")
        files.sort(key=lambda file: file.path.split("/"))
        if not files:
            check_inside(self.root, *(shard.tree for shard in shards))
        return Scan(files, tuple(empty), tuple(sorted(broken)), tuple(notes))

    def open(self, path: str) -> IO[bytes]:
        """A member. Raises OSError."""
        return io.BytesIO(self._read(path))

    def head(self, path: str) -> bytes:
        """The first bytes of a member. Raises OSError."""
        return self._read(path, HEAD_BYTES)

    def name(self, path: str) -> str:
        """The path of the tar file, and the path in it."""
        shard = self.shard_of(path)
        return f"{shard.path}/{path.removeprefix(shard.prefix)}"

    def _read_shard(self, shard: _Shard) -> list[str]:
        """Finds the members of a tar file. Returns its links to nothing. Raises DataError if it is
        damaged or cut off."""
        try:
            with shard.path.open("rb") as file:
                status = os.fstat(file.fileno())
                shard.size, shard.mtime_ns = status.st_size, status.st_mtime_ns
                for info in _headers(shard, file):
                    _add(shard, info, file, self._conditions)
        except OSError as error:
            raise cannot_open(shard.path, error, _REMEDY) from error
        broken = follow(shard.links, shard.members)
        # What says something of no other file is a file of its own.
        keys = {_key_of(path)[0] for path in shard.members if path not in shard.told}
        shard.told = {path: x for path, x in shard.told.items() if _key_of(path)[0] in keys}
        return broken

    def _read(self, path: str, most: int | None = None) -> bytes:
        if self._shards is None:
            self.scan()
        shard, offset, size = self._members[path]
        wanted = size if most is None else min(size, most)
        check_bytes(wanted)
        data = self._opened(shard.path).read(offset, wanted)
        if len(data) < wanted:
            raise CorruptImageError("the tar file has become shorter while it was read")
        return data


def _shards_at(root: str) -> list[tuple[str, Path]]:
    """Names and paths of the tar files. The name is empty if the path is a tar file itself."""
    path = Path(root)
    if path.is_dir():
        # Compressed files are refused when they are opened.
        found = _below(path, "*.tar") or _below(path, "*.t*z*")
        if not found:
            raise DataError(f"data.path: {path} has no files whose names end in .tar; {_REMEDY}")
        return [(str(file.relative_to(path)), file) for file in found]
    if path.exists() or not re.search(r"[*?\[{]", root):
        return [("", path)]
    names = list(_expanded(root))
    found: list[Path] = []
    for name in names:
        here = sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207
        found += [Path(file) for file in here]
    found = list(dict.fromkeys(found))
    if not found:
        raise DataError(
            f"data.path: no file on the machine that reads it matches {root}; {_REMEDY}"
        )
    missing = [file for file in found if not file.exists()]
    if missing:
        more = f" and {len(missing) - 1:,} more" if missing[1:] else ""
        raise DataError(
            f"data.path: of {len(found):,} shards, {missing[0]}{more} do{'' if more else 'es'} not"
            " exist on the machine that reads them; restore them or correct the pattern"
        )
    common = Path(posixpath.commonpath([str(file.parent) for file in found]))
    return [(str(file.relative_to(common)), file) for file in found]


def _expanded(pattern: str) -> Iterator[str]:
    """{000..009} and {a,b} as all their values, as a shell does it."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last = pattern[: found.start()], pattern[found.end() :]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers is None:
        values = found[1].split(",")
    else:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        values = [f"{n:0{width}}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    for value in values:
        yield from _expanded(f"{first}{value}{last}")


def _below(folder: Path, pattern: str) -> list[Path]:
    """Files of a name that may be data."""
    return [
        file
        for file in sorted(folder.rglob(pattern))
        if all(map(is_data, file.relative_to(folder).parts))
    ]


def _add(shard: _Shard, info: tarfile.TarInfo, file: IO[bytes], conditions: Sequence[str]) -> None:
    """Adds one member."""
    path = shard.tree.path_of(info.name, folder=info.isdir())
    if path is None:
        return
    if info.issym():
        shard.links[path] = target_of(path, info.linkname)
    elif info.islnk():
        shard.links[path] = posixpath.normpath(info.linkname)
    elif info.isreg():
        if path in shard.members:
            shard.tree.twice.append(path)
            shard.told.pop(path, None)
        shard.members[path] = _Member(shard, info.offset_data, info.size)
        if info.size <= _LARGEST_SIDECAR and path.endswith((".cls", ".json")):
            content = os.pread(file.fileno(), info.size, info.offset_data)
            told = _told_in(path, content, conditions, shard.keys)
            if told is not None:
                shard.told[path] = told
    else:
        shard.tree.special.append(path)


def _headers(shard: _Shard, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The headers of all members. Joined tar files are read as one. What follows an end mark and is
    no tar file is not read."""
    place = 0
    archive = None
    while place < shard.size:
        file.seek(place)
        if not any(file.read(tarfile.BLOCKSIZE)):
            shard.has_end = True
            place += tarfile.BLOCKSIZE
            continue
        file.seek(place)
        try:
            archive = archive or tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115
            file.seek(place)
            info = tarfile.TarInfo.fromtarfile(archive)
            if info.size < 0:
                raise tarfile.HeaderError("negative size")
        except OSError:
            raise
        except Exception as error:  # damage gives TarError, ValueError, OverflowError
            if shard.has_end:
                return
            raise _no_header(shard, file, place, str(error)) from error
        if info.issparse():
            raise DataError(
                f"data.path: {info.name} in {shard.path} is stored as a sparse file; write the tar"
                " file without --sparse"
            )
        if info.isreg() and info.offset_data + info.size > shard.size:
            raise DataError(
                f"data.path: {shard.path} is cut off at byte {shard.size:,}: {info.name} in it ends"
                f" at byte {info.offset_data + info.size:,}; download or write it again"
            )
        yield info
        shard.has_end = False
        place = archive.offset


def _no_header(shard: _Shard, file: IO[bytes], place: int, why: str) -> DataError:
    """Why no header stands at a place."""
    file.seek(0)
    first = file.read(tarfile.BLOCKSIZE)
    if not place and first[257:262] != b"ustar":
        for start, (name, program) in _COMPRESSIONS.items():
            if first.startswith(start):
                return DataError(
                    f"data.path: {shard.path} is compressed with {name}, and images in it cannot be"
                    f" read in random order; decompress it with `{program} {shard.path}` and give"
                    " the .tar file that it leaves"
                )
        what = what_it_is(first, shard.size).replace("an image of a known format", "a tar file")
        return DataError(f"data.path: {shard.path} is not a tar file: {what}; {_REMEDY}")
    if why in ("truncated header", "empty header"):
        found = f"cut off at byte {shard.size:,}, inside a header"
    else:
        found = f"damaged at byte {place:,}: no header stands there"
    return DataError(f"data.path: {shard.path} is {found}; download or write it again")


def _key_of(path: str) -> tuple[str, str]:
    """Key and ending of a file, as webdataset divides its path: at the first dot of its name."""
    folder, slash, name = path.rpartition("/")
    stem, _, ending = name.partition(".")
    return f"{folder}{slash}{stem}", ending


def _told_in(path: str, content: bytes, conditions: Sequence[str], keys: set[str]) -> _Told | None:
    """What a file says of the files of its key. None: nothing. keys: gets the file's own."""
    text = content.decode("utf-8", "replace")
    if path.endswith(".cls"):
        return _Told(text.strip(), {})
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    if conditions:
        keys.update(told)
    class_name = _class_in(told)
    numbers = {name: told[name] for name in conditions if name in told}
    return _Told(class_name, numbers) if class_name is not None or numbers else None


def _class_in(told: Mapping[str, Any]) -> str | None:
    """The class that a JSON object tells."""
    for name in ("label", "class"):
        value = told.get(name)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return str(int(value)) if value.is_integer() else None
        if isinstance(value, (int, str)):
            return str(value)
    return None


class ImageTar(Images):
    """The image files in one tar file, a folder of tar files, or those that match a pattern."""

    def __init__(self, *, path: str, image_ending: str | None = None, **settings: Any) -> None:
        """settings: see `Images`."""
        self._tars = TarFiles(path, tuple(settings.get("conditions", ())))
        self._ending = image_ending.lstrip(".") if image_ending else None
        super().__init__(self._tars, **settings)

    def identity(self) -> object:
        """See `Images.identity`."""
        return [super().identity(), self._ending]

    def _labels(self, metadata: Metadata, paths: Sequence[str], refuse: Refuse) -> Labels:
        """What files of the same key say of the images; else as `Images`."""
        told = self._told(paths)
        texts = {path: x for path, told in told.items() for x, _ in told if x is not None}
        if self.labels != "auto" or not texts:
            return super()._labels(metadata, paths, refuse)
        return labels_of_texts(texts, f"the .cls and .json files of {self.files.root}")

    def _told_numbers(self, metadata: Metadata, kept: Sequence[str]) -> Numbers:
        """The numbers that .json files of the same key give; else as `Images`."""
        told = {path: x for path, all_ in self._told(kept).items() for _, x in all_ if x}
        where = f"the .json files of {self.files.root}"
        if told:
            return numbers_of_json(told, self.conditions, where, kept)
        try:
            return super()._told_numbers(metadata, kept)
        except DataError:
            keys = sorted({key for shard in self._tars.shards for key in shard.keys})
            for name in self.conditions if keys else ():
                of_labels.check_exists(keys, FIELD, name, f"{self.files.root}")
            raise

    def _told(self, paths: Sequence[str]) -> dict[str, list[_Told]]:
        """What files of the same key say of images, by path."""
        told = self._tars.told
        return {path: told[key] for path in paths if (key := _key_of(path)[0]) in told}

    def _layout(
        self, paths: Sequence[str], barren: Sequence[str], refuse: Refuse, *, classes: bool
    ) -> Layout:
        """See `Images`. Names of shards may be splits."""
        paths, unused = self._one_of_a_key(paths, refuse)
        shards = self._tars.shards
        if not shards[0].name:
            layout = layout_of(paths, self.splits, self.files.root, barren, refuse, classes=classes)
            return replace(layout, unused={**layout.unused, **unused})
        splits: dict[str, SplitName | None] = dict.fromkeys(shard.name for shard in shards)
        if self.splits == "auto":
            splits = splits_of_shards(list(splits), self.files.root)
        groups: dict[SplitName | None, dict[str, str]] = {}
        for path in paths:
            shard = self._tars.shard_of(path)
            if shard.name in splits:
                inner = path.removeprefix(shard.prefix)
                groups.setdefault(splits[shard.name], {})[path] = inner
            else:
                unused[f"the shards of {_split_of(shard.name)}"] += 1
        places: dict[str, Place] = {}
        for split, group in groups.items():
            cut = "" if split is None else _split_folder(group.values())
            below = {path: inner.removeprefix(cut) for path, inner in group.items()}
            layout = layout_of(
                list(dict.fromkeys(below.values())),
                self.splits if split is None else "none",
                self.files.root,
                (),
                refuse,
                classes=classes,
            )
            for path, inner in below.items():
                place = layout.places.get(inner)
                if place is None:
                    unused[inner.partition("/")[0]] += 1
                else:
                    places[path] = Place(path, split or place.split, place.class_name)
        names = sorted({p.class_name for p in places.values() if p.class_name is not None})
        if names and any(place.class_name is None for place in places.values()):
            refuse(
                DataError(
                    f"data.path: only some shards of {self.files.root} have class folders; lay out"
                    " all in the same way, or set data.labels=none"
                )
            )
        return Layout(places, tuple(names) or None, dict(unused))

    def _one_of_a_key(self, paths: Sequence[str], refuse: Refuse) -> tuple[list[str], Counter[str]]:
        """The images to read where several have one key; and the number of the others."""
        endings: dict[str, list[str]] = {}
        for path in paths:
            key, ending = _key_of(path)
            endings.setdefault(key, []).append(ending)
        kinds = Counter(itertools.chain.from_iterable(endings.values()))
        wanted = self._ending
        if wanted is not None and wanted in kinds:
            others = Counter({f"*.{kind}": n for kind, n in kinds.items() if kind != wanted})
            return [path for path in paths if _key_of(path)[1] == wanted], others
        shown = of_labels.listed([kind for kind, _ in kinds.most_common()])
        if wanted is not None:
            refuse(
                DataError(
                    f"data.image_ending: no image in {self.files.root} ends in .{wanted}; they end"
                    f" in {shown}"
                )
            )
        elif _are_kinds(kinds, len(endings)) or any(
            len(endings.get(key, ())) > 1 for key in self._tars.told
        ):
            refuse(
                DataError(
                    f"data.image_ending: {self.files.root} has several images of one key"
                    f" ({shown}); set data.image_ending to one of them, e.g."
                    f" {kinds.most_common(1)[0][0]}"
                )
            )
        return list(paths), Counter()


def _are_kinds(endings: Mapping[str, int], keys: int) -> bool:
    """Whether several images of a key are its kinds (jpg, seg.png), and not images of their own
    (cat.0.jpg, cat.1.jpg). endings: with their numbers. keys: the number of keys."""
    of_all = [ending for ending, count in endings.items() if count == keys > 1]
    numbered = any(ending.partition(".")[0].isdecimal() for ending in of_all)
    return len(of_all) > 1 and not numbered


def _split_of(name: str) -> str:
    """The split that the name of a shard, or of its folder, means."""
    return split_of_shard(name)[0] or name


def _split_folder(paths: Iterable[str]) -> str:
    """The folder that holds all files, with a slash, if it has the name of a split; else ""."""
    tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
    if len(tops) != 1:
        return ""
    (top,) = tops
    return f"{top}/" if split_named(top) else ""
