"""Tar files as trees of files: one, or the shards of a data set. Members are read at their places.

Images may lie in class folders, or beside files of the same key that hold their class, as
webdataset writes them: KEY.jpg, KEY.cls (a number or a name), KEY.json ("label" or "class").
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from ray_gen.data.errors import CorruptImageError, DataError, Refuse
from ray_gen.data.formats import HEAD_BYTES, what_it_is
from ray_gen.data.sources import labels as of_labels
from ray_gen.data.sources.archives import Handle, Tree, cannot_open, local_path, target_of
from ray_gen.data.sources.base import SplitName
from ray_gen.data.sources.files import File, Scan, is_data
from ray_gen.data.sources.images import Found, Images
from ray_gen.data.sources.layout import Layout, Place, layout_of, split_named, splits_of_shards
from ray_gen.data.sources.metadata import Labels

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_WINDOW = 64 << 10
"""Bytes that are read at once while headers stand close together."""
_SHARDS_AT_ONCE = 16
_OPEN_FILES = 128
_LARGEST_SIDECAR = 1 << 20
"""Bytes. A larger .json file is not read for a label."""
_MOST_ENDINGS = 8
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip", (".tar.gz", ".tgz")),
    b"BZh": ("bzip2", "bunzip2", (".tar.bz2", ".tbz2")),
    b"\xfd7zXZ\0": ("xz", "unxz", (".tar.xz", ".txz")),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd", (".tar.zst", ".tzst")),
}
_REMEDY = "give a tar file, a folder of tar files, or a pattern such as shard-{000..009}.tar"


class _Member(NamedTuple):
    """Where a file lies."""

    shard: int
    offset: int
    size: int


@dataclass
class _Shard:
    """A tar file, and what its headers tell."""

    number: int
    name: str
    """Its path below the given folder. Empty if it was given itself."""
    path: Path
    size: int
    mtime_ns: int
    members: dict[str, _Member] = field(default_factory=dict[str, _Member])
    """By path, without the shard's name."""
    links: dict[str, str] = field(default_factory=dict[str, str])
    """Paths and targets of symbolic links."""
    tree: Tree = field(default_factory=Tree)
    said: dict[str, tuple[str, int | str | None]] = field(
        default_factory=dict[str, tuple[str, int | str | None]]
    )
    """By path of a file that holds a class: the key of the files that have it, and the class."""
    has_end: bool = False

    @property
    def prefix(self) -> str:
        """What comes before the paths of its members."""
        return f"{self.name}/" if self.name else ""


class TarFiles:
    """The files in one tar file, or in several: then a path begins with the name of the shard."""

    kind = "tar"

    def __init__(self, path: str) -> None:
        self._path = path
        self._shards: list[_Shard] | None = None
        self._members: dict[str, _Member] = {}
        self._handle: Callable[[Path], Handle] = Handle

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the files itself."""
        return {**self.__dict__, "_shards": None, "_members": {}, "_handle": Handle}

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

    def shard_of(self, path: str) -> _Shard:
        """The shard that holds a file, or a link to nothing."""
        shards = self.shards
        if path in self._members:
            return shards[self._members[path].shard]
        return next(shard for shard in shards if path.startswith(shard.prefix))  # a broken link

    def scan(self) -> Scan:
        """Reads the headers of all shards. Raises DataError."""
        paths = _shards_at(self.root)

        def read(numbered: tuple[int, tuple[str, Path]]) -> _Shard:
            number, (name, path) = numbered
            try:
                handle = Handle(path)
                shard = _Shard(number, name, path, handle.size, handle.mtime_ns)
                _read_headers(shard, _Window(handle))
            except OSError as error:
                raise cannot_open(path, error, _REMEDY) from error
            return shard

        self._handle = _open_files()
        with ThreadPoolExecutor(_SHARDS_AT_ONCE, "headers") as pool:
            self._shards = shards = list(pool.map(read, enumerate(paths)))
        self._members = {}
        files: list[File] = []
        empty: list[str] = []
        broken: list[str] = []
        notes: list[str] = []
        for shard in shards:
            prefix = shard.prefix
            broken += [prefix + path for path in _follow_links(shard)]
            empty += [prefix + path for path in shard.tree.empty]
            where = f"{shard.name}: " if shard.name else ""
            notes += [where + note for note in shard.tree.notes]
            _drop_strays(shard)
            for path, member in shard.members.items():
                self._members[prefix + path] = member
                if path not in shard.said:
                    files.append(File(prefix + path, member.size, shard.mtime_ns))
        endless = [str(shard.path) for shard in shards if not shard.has_end]
        if endless:
            some = "has no end mark" if len(endless) == 1 else "and others have no end mark"
            notes.append(f"{endless[0]} {some}; it may be cut off between two files")
        files.sort(key=lambda file: file.path.split("/"))
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

    def _read(self, path: str, most: int | None = None) -> bytes:
        shards = self.shards
        member = self._members[path]
        wanted = member.size if most is None else min(member.size, most)
        data = self._handle(shards[member.shard].path).read(member.offset, wanted)
        if len(data) < wanted:
            raise CorruptImageError("the tar file has become shorter while it was read")
        return data


def _open_files() -> Callable[[Path], Handle]:
    """Opens files, and keeps some of them open: a process may open only about 1,000."""
    return lru_cache(_OPEN_FILES)(Handle)


def _shards_at(root: str) -> list[tuple[str, Path]]:
    """Names and paths of the tar files. The name is empty if the path is a tar file itself."""
    path = Path(root)
    if path.is_dir():
        found = sorted(
            file
            for file in path.rglob("*.tar")
            if all(is_data(part) for part in file.relative_to(path).parts)
        )
        if not found:
            _refuse_compressed(path)
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


def _refuse_compressed(folder: Path) -> None:
    """Raises DataError if a folder holds compressed tar files."""
    for file in sorted(folder.rglob("*")):
        for name, program, suffixes in _COMPRESSIONS.values():
            if file.name.lower().endswith(suffixes):
                raise _compressed(file, name, program)


def _compressed(path: Path, name: str, program: str) -> DataError:
    return DataError(
        f"data.path: {path} is compressed with {name}, and images in it cannot be read in random"
        f" order; decompress it with `{program} {path}` and give the .tar file that it leaves"
    )


class _Window:
    """Reads a file from its beginning to its end, in large parts while steps are small."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._start = 0
        self._data = b""

    def at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._data):
            near = begin <= len(self._data) + _WINDOW
            self._start = offset
            self._data = self._handle.read(offset, max(size, _WINDOW if near else 4 * _BLOCK))
            begin = 0
        return self._data[begin : begin + size]


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int
    """Bytes of data."""
    target: str
    """Of a link."""
    data: int
    """Offset of the data."""


def _read_headers(shard: _Shard, window: _Window) -> None:
    """Finds the members of a tar file. Raises DataError if it is damaged or cut off."""
    hard: list[tuple[str, str]] = []
    for header in _headers(shard, window):
        kind = header.kind
        place = shard.tree.path_of(header.name, folder=kind == b"5" or header.name.endswith("/"))
        if place is None:
            continue
        if kind == b"2":
            shard.links[place] = header.target
        elif kind == b"1":
            hard.append((place, header.target))
        elif kind in (b"0", b"\0", b"7"):
            if place in shard.members:
                shard.tree.twice(place)
                shard.said.pop(place, None)
            shard.members[place] = _Member(shard.number, header.data, header.size)
            if header.size <= _LARGEST_SIDECAR and place.endswith((".cls", ".json")):
                said = _class_in(place, window.at(header.data, header.size))
                if said is not None:
                    shard.said[place] = (_key_of(place)[0], said[0])
    for place, target in hard:
        path = Tree().path_of(target)
        if path in shard.members:
            shard.members[place] = shard.members[path]
        else:
            shard.links[place] = f"/{target}"  # to nothing


def _headers(shard: _Shard, window: _Window) -> Iterator[_Header]:
    """The headers of all members, with their long names."""
    place = 0
    told: dict[str, str] = {}  # of the next member
    after_end = False
    while place < shard.size:
        block = window.at(place, _BLOCK)
        if block == _ZEROS:
            after_end = shard.has_end = True
            place += _BLOCK
            continue
        ustar = block[257:262] == b"ustar"
        if len(block) < _BLOCK or not (ustar or _has_checksum(block)) or not place:
            if after_end:  # not of the archive
                return
            _check_header(shard, block, place)
        kind = block[156:157]
        size = _number(shard, block[124:136], place)
        data = place + _BLOCK
        name = _text(block[:100])
        if ustar and block[262:263] == b"\0" and block[345:346] != b"\0":
            name = f"{_text(block[345:500])}/{name}"
        target = told.pop("linkpath", None) or _text(block[157:257])
        if kind not in b"xgLK":
            name = told.pop("path", name)
            written = told.pop("size", "")
            size = int(written) if written.isdecimal() else size
        if kind in b"123456":  # they have no data, whatever their size says
            size = 0
        if kind in b"xLK" and size > _LARGEST_SIDECAR:
            raise _damaged(shard, place)
        place = data + -(-size // _BLOCK) * _BLOCK
        if data + size > shard.size:
            raise DataError(
                f"data.path: {shard.path} is cut off at byte {shard.size:,}: {name} in it ends at"
                f" byte {data + size:,}; download or write it again"
            )
        if kind == b"x":
            told |= _extended(window.at(data, size))
        elif kind in (b"L", b"K"):
            text = _text(window.at(data, size))
            told["path" if kind == b"L" else "linkpath"] = text
        elif kind == b"S" or any(key.startswith("GNU.sparse") for key in told):
            raise DataError(
                f"data.path: {name} in {shard.path} is stored as a sparse file; write the tar file"
                " without --sparse"
            )
        elif kind != b"g":
            yield _Header(name, kind, size, target, data)
            told.clear()
        after_end = False


def _check_header(shard: _Shard, block: bytes, place: int) -> None:
    """Raises DataError if a block is no header."""
    if not place:
        for start, (name, program, _) in _COMPRESSIONS.items():
            if block.startswith(start):
                raise _compressed(shard.path, name, program)
    if len(block) == _BLOCK and _has_checksum(block):
        return
    if not place:
        what = what_it_is(block, shard.size).replace("an image of a known format", "a tar file")
        raise DataError(f"data.path: {shard.path} is not a tar file: {what}; {_REMEDY}")
    if len(block) < _BLOCK:
        raise DataError(
            f"data.path: {shard.path} is cut off at byte {shard.size:,}, inside a header;"
            " download or write it again"
        )
    raise _damaged(shard, place)


def _damaged(shard: _Shard, place: int) -> DataError:
    return DataError(
        f"data.path: {shard.path} is damaged at byte {place:,}: no header stands there; download"
        " or write it again"
    )


def _has_checksum(block: bytes) -> bool:
    try:
        told = int(block[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return False
    return told == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(shard: _Shard, written: bytes, place: int) -> int:
    """Octal digits, or GNU's binary form for 8 GiB and more."""
    if written[0] & 0x80:
        return int.from_bytes(written[1:], "big")
    try:
        return int(written.strip(b" \0") or b"0", 8)
    except ValueError:
        raise DataError(
            f"data.path: {shard.path} is damaged at byte {place:,}: its header tells no size;"
            " download or write it again"
        ) from None


def _text(written: bytes) -> str:
    return written.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _extended(records: bytes) -> dict[str, str]:
    """The fields of a POSIX extended header: "LENGTH KEY=VALUE" in lines."""
    found: dict[str, str] = {}
    while records:
        length, _, rest = records.partition(b" ")
        if not length.isdigit() or int(length) < len(length) + 3:
            break
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        records = records[int(length) :]
    return found


def _follow_links(shard: _Shard) -> list[str]:
    """Makes links the members that they lead to. Returns those to nothing."""
    broken: list[str] = []
    for link, target in shard.links.items():
        found = target_of(link, target, shard.members, shard.links)
        if found is None:
            broken.append(link)
        else:
            shard.members[link] = shard.members[found]
    return broken


def _key_of(path: str) -> tuple[str, str]:
    """Key and ending of a file, as webdataset divides its path: at the first dot of its name."""
    folder, slash, name = path.rpartition("/")
    stem, _, ending = name.partition(".")
    return f"{folder}{slash}{stem}", ending


def _class_in(path: str, content: bytes) -> tuple[int | str | None] | None:
    """The class that a file holds for the files of its key. None: it holds none."""
    if path.endswith(".cls"):
        return (_class_of(content.decode("utf-8", "replace").strip()),)
    try:
        told = json.loads(content)
    except ValueError:
        return None
    for name in ("label", "class"):
        value: Any = told.get(name) if isinstance(told, dict) else None
        if isinstance(value, bool):
            return (str(value).lower(),)
        if isinstance(value, float) and not value.is_integer():  # NaN too
            return None
        if isinstance(value, (int, float, str)):
            return (_class_of(str(value)),)
    return None


def _class_of(text: str) -> int | str | None:
    """A whole number as one. None for "" and -1, which are no class."""
    if re.fullmatch(r"[+-]?\d+(\.0*)?", text):
        number = int(text.partition(".")[0])
        return None if number == -1 else number
    return text or None


def _drop_strays(shard: _Shard) -> None:
    """Forgets classes that no other file has: a file of this name is something else."""
    keys = {_key_of(path)[0] for path in shard.members if path not in shard.said}
    shard.said = {path: told for path, told in shard.said.items() if told[0] in keys}


class ImageTar(Images):
    """The image files in one tar file, a folder of tar files, or those that match a pattern."""

    def __init__(self, *, path: str, image_ending: str | None = None, **settings: Any) -> None:
        """settings: see `Images`."""
        self._tars = TarFiles(path)
        self._ending = image_ending.lstrip(".") if image_ending else None
        super().__init__(self._tars, **settings)

    def identity(self) -> object:
        """See `Images.identity`."""
        return [super().identity(), self._ending]

    def _labels(self, paths: Sequence[str], found: Found, refuse: Refuse) -> Labels:
        """What files of the same key say of the images; else as `Images`."""
        said = {
            shard.prefix + key: label
            for shard in self._tars.shards
            for key, label in shard.said.values()
        }
        if self.labels != "auto" or not said:
            return super()._labels(paths, found, refuse)
        where = f"the .cls and .json files of {self.files.root}"
        of_paths = {path: said[key] for path in paths if (key := _key_of(path)[0]) in said}
        values = {label for label in of_paths.values() if label is not None}
        if any(isinstance(label, str) for label in values):
            values = {str(label) for label in values}
            of_paths = {
                path: None if label is None else str(label) for path, label in of_paths.items()
            }
        without = sum(label is None for label in of_paths.values())
        column = of_labels.Column(where, tuple(values), None, len(of_paths), without)
        classes = of_labels.classes_of([column], "class")
        chosen = {path: classes.of(where, label) for path, label in of_paths.items()}
        return Labels(
            True,
            {path: number for path, number in chosen.items() if number is not None},
            classes.names or None,
            where=where,
            notes=tuple(of_labels.notes_of(classes, "class", ())),
            no_classes=of_labels.why_none(classes, "class", len(of_paths), ()) or "",
        )

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
        shown = of_labels.listed([kind for kind, _ in kinds.most_common(_MOST_ENDINGS)])
        if wanted is not None:
            refuse(
                DataError(
                    f"data.image_ending: no image in {self.files.root} ends in .{wanted}; they end"
                    f" in {shown}"
                )
            )
        else:
            alike = {frozenset(found) for found in endings.values()}
            labelled = {key for shard in self._tars.shards for key, _ in shard.said.values()}
            if any(len(endings.get(key, ())) > 1 for key in labelled) or _are_kinds(
                alike, len(endings)
            ):
                refuse(
                    DataError(
                        f"data.image_ending: {self.files.root} has several images of one key"
                        f" ({shown}); set data.image_ending to one of them, e.g."
                        f" {kinds.most_common(1)[0][0]}"
                    )
                )
        return list(paths), Counter()


def _are_kinds(alike: Collection[frozenset[str]], keys: int) -> bool:
    """Whether several images of a key are its kinds (jpg, seg.png), and not images of their own
    (cat.0.jpg, cat.1.jpg). alike: the sets of endings of all keys."""
    if len(alike) != 1:
        return False
    (kinds,) = alike
    numbered = any(kind.partition(".")[0].isdecimal() for kind in kinds)
    return 1 < len(kinds) <= _MOST_ENDINGS and keys >= 2 * len(kinds) and not numbered


def _split_of(name: str) -> str:
    """The split that the name of a shard, or of its folder, means."""
    folder, _, file = name.rpartition("/")
    return split_named(file.rpartition(".")[0])[0] or split_named(folder)[0] or name


def _split_folder(paths: Iterable[str]) -> str:
    """The folder that holds all files, with a slash, if it has the name of a split; else ""."""
    tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
    if len(tops) != 1:
        return ""
    (top,) = tops
    return f"{top}/" if split_named(top)[1] else ""
