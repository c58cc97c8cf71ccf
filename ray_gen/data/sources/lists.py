"""A text file of paths as a tree of files, one path a line, with classes in a second column."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple
from unicodedata import normalize

from ray_gen.data.errors import DataError, Refuse, reason
from ray_gen.data.formats import HEAD_BYTES, what_it_is
from ray_gen.data.sources import labels as of_labels
from ray_gen.data.sources.archives import cannot_open, local_path
from ray_gen.data.sources.files import File, Scan
from ray_gen.data.sources.images import Images
from ray_gen.data.sources.layout import Layout, Place
from ray_gen.data.sources.metadata import Labels, Metadata

_STATS_AT_ONCE = 16
_STATS_EACH = 256
_MOST_NAMED = 3
_HEADERS = ("path", "file", "filename", "filepath", "image", "images", "imagepath", "name")
"""What the first column of a list with a header is called, in small letters, without spaces."""
_SPACES = re.compile(r"[\s_-]")
_ENDS = re.compile(r"\r\n|\n|\r")


class _Row(NamedTuple):
    """A line of a list."""

    number: int
    path: str
    class_name: str
    """Empty: none."""


class ListedFiles:
    """The files that a list names. Their paths in the tree are as the list writes them."""

    kind = "list"

    def __init__(self, path: str) -> None:
        self._path = path
        self.classes: dict[str, str] = {}
        """Class by path, where the list has a second column. Known after `scan`."""
        self.digest = ""
        """Digest of the list. Known after `scan`."""

    @property
    def root(self) -> str:
        """The absolute path of the list."""
        return str(local_path(self._path, "lists"))

    def scan(self) -> Scan:
        """Reads the list, and looks for its files. Raises DataError if one does not exist."""
        path = local_path(self._path, "lists")
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder", str(path))
            content = path.read_bytes()
        except OSError as error:
            raise cannot_open(path, error, "give a text file of paths") from error
        if b"\0" in content:
            what = what_it_is(content[:HEAD_BYTES], len(content))
            what = what.replace("an image of a known format", "a text file of paths")
            raise DataError(f"data.path: {path} is no list: {what}; give a text file of paths")
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        text = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf"))
        rows = _rows(text, str(path), self._place)
        self.classes = {}
        lines: dict[str, int] = {}
        names: dict[tuple[str, str], str] = {}  # of each file: the first of its paths
        folder_of = cache(os.path.realpath)
        for row in rows:
            folder, base = os.path.split(self._place(row.path))
            name = names.setdefault((folder_of(folder), base), row.path)
            lines.setdefault(name, row.number)
            if not row.class_name:
                continue
            if self.classes.setdefault(name, row.class_name) != row.class_name:
                raise DataError(
                    f"data.path: {path} gives {name} two classes, {self.classes[name]} and"
                    f" {row.class_name} in line {row.number}; correct it"
                )
        files = self._found(lines)
        twice = len(rows) - len(lines)
        notes = (f"lines of {path} that repeat a file: {twice:,}; each file is read once",)
        files.sort(key=lambda file: file.path.split("/"))
        return Scan(files, notes=notes if twice else ())

    def _place(self, name: str) -> Path:
        """The file of a name, which may be written in another form of Unicode than the file's."""
        folder = Path(self.root).parent
        place = folder / os.path.expanduser(name)  # noqa: PTH111 -- raises nothing
        if name.isascii() or os.path.lexists(place):
            return place
        forms = [Path(normalize(form, str(place))) for form in ("NFC", "NFD")]
        return next(filter(os.path.lexists, forms), place)

    def _found(self, lines: dict[str, int]) -> list[File]:
        """The listed files. Raises DataError that names those that do not exist."""

        def look(names: Sequence[str]) -> list[os.stat_result | OSError]:
            return [self._status(name) for name in names]

        names = list(lines)
        parts = [names[i : i + _STATS_EACH] for i in range(0, len(names), _STATS_EACH)]
        with ThreadPoolExecutor(_STATS_AT_ONCE, "files") as pool:
            told = [one for part in pool.map(look, parts) for one in part]
        missing = [name for name, one in zip(names, told, strict=True) if isinstance(one, OSError)]
        if missing:
            shown = ", ".join(
                f"{self.name(name)} (line {lines[name]})" for name in missing[:_MOST_NAMED]
            )
            more = f" and {len(missing) - _MOST_NAMED:,} more" if missing[_MOST_NAMED:] else ""
            error = told[names.index(missing[0])]
            assert isinstance(error, OSError)
            raise DataError(
                f"data.path: {self.root} names {len(missing):,} of {len(names):,} files that cannot"
                f" be read ({reason(error)}): {shown}{more}; correct these lines (PATH, or"
                " PATH,CLASS) or remove them"
            )
        return [
            File(name, one.st_size, one.st_mtime_ns)
            for name, one in zip(names, told, strict=True)
            if isinstance(one, os.stat_result)
        ]

    def _status(self, name: str) -> os.stat_result | OSError:
        place = self._place(name)
        try:
            status = place.stat()
            if not stat.S_ISREG(status.st_mode):
                is_folder = stat.S_ISDIR(status.st_mode)
                raise OSError(0, f"it is a {'folder' if is_folder else 'pipe or a device'}")
            return status
        except OSError as error:
            return error

    def open(self, path: str) -> IO[bytes]:
        """A file of the list. Raises OSError."""
        return self._place(path).open("rb")

    def head(self, path: str) -> bytes:
        """The first bytes of a file. Raises OSError."""
        with self._place(path).open("rb", buffering=0) as file:
            return file.read(HEAD_BYTES)

    def name(self, path: str) -> str:
        """The absolute path."""
        return str(self._place(path))


def _rows(text: str, where: str, place: Callable[[str], Path]) -> list[_Row]:
    """The lines that are not empty, without a header. Raises DataError. place: the file of a path.

    Columns are divided by tabs if there is any; else by commas, unless the first line with a comma
    is as a whole the path of a file. Cells may be in quotes.
    """
    lines = [(number, line.strip(" ")) for number, line in enumerate(_ENDS.split(text), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    mark = "\t" if any("\t" in line for _, line in lines) else ","
    first = next((line for _, line in lines if "," in line), None)
    whole = mark == "," and first is not None and os.path.exists(place(first))  # noqa: PTH110
    rows: list[_Row] = []
    for number, line in lines:
        path, *more = next(csv.reader([line], delimiter=mark, skipinitialspace=True))
        if whole and more:
            path, more = line, []
        cells = [cell.strip() for cell in more]
        if any(cells[1:]):
            raise DataError(
                f"data.path: line {number} of {where} has {1 + len(cells)} columns; a list has only"
                " paths and, in a second column, classes (put a path with commas in quotes)"
            )
        class_name = of_labels.visible(cells[0]) if cells else ""
        rows.append(_Row(number, path.strip(), class_name))
    if rows and _SPACES.sub("", rows[0].path.lower()) in _HEADERS:
        rows = rows[not os.path.exists(place(rows[0].path)) :]  # noqa: PTH110
    if not rows:
        raise DataError(f"data.path: {where} is empty; write the path of an image in each line")
    return rows


class ImageList(Images):
    """The image files that a list names. Their keys are the list's paths. They have the classes of
    the list's second column, and no others."""

    def __init__(self, *, path: str, **settings: Any) -> None:
        """settings: see `Images`."""
        self._list = ListedFiles(path)
        super().__init__(self._list, **settings)

    def identity(self) -> object:
        """See `Images.identity`."""
        return [super().identity(), self._list.digest]

    def _labels(self, metadata: Metadata, paths: Sequence[str], refuse: Refuse) -> Labels:
        """The second column of the list."""
        named = self._list.classes
        values: dict[str, int | str] = dict(named)
        if all(_is_number(name) for name in named.values()):
            values = {path: int(name) for path, name in named.items() if int(name) != -1}
        where = self._list.root
        without = len(paths) - len(values)
        column = of_labels.Column(where, tuple(set(values.values())), None, len(paths), without)
        classes = of_labels.classes_of([column], "class")
        chosen = {path: classes.of(where, value) for path, value in values.items()}
        why = of_labels.why_none(classes, "class", len(paths), ()) if named else None
        return Labels(
            True,
            {path: number for path, number in chosen.items() if number is not None},
            classes.names or None,
            where=where,
            notes=tuple(of_labels.notes_of(classes, "class", ())),
            no_classes=why or ("" if named else "the list has no second column of classes"),
        )

    def _layout(
        self, paths: Sequence[str], barren: Sequence[str], refuse: Refuse, *, classes: bool
    ) -> Layout:
        """Nothing: a list has no splits."""
        return Layout({path: Place(path, None, None) for path in paths}, None)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) is not None  # 01 is a name
