"""A text file of paths as a tree of files, one path a line, with classes in a second column."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from ray_gen.data.errors import DataError, Refuse, reason
from ray_gen.data.formats import HEAD_BYTES, format_named, what_it_is
from ray_gen.data.sources import labels as of_labels
from ray_gen.data.sources.archives import cannot_open, local_path
from ray_gen.data.sources.files import File, Scan
from ray_gen.data.sources.images import Found, Images
from ray_gen.data.sources.layout import Layout, Place
from ray_gen.data.sources.metadata import Labels

_STATS_AT_ONCE = 16
_STATS_EACH = 256
_MOST_NAMED = 3
_HEADERS = ("path", "file", "file_name", "filename", "image", "images", "image_path", "name")
"""What the first column of a list with a header is called."""


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
        if b"\0" in content[:HEAD_BYTES]:
            what = what_it_is(content[:HEAD_BYTES], len(content))
            what = what.replace("an image of a known format", "a text file of paths")
            raise DataError(f"data.path: {path} is no list: {what}; give a text file of paths")
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        rows = _rows(os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")), self._place)
        self.classes = {}
        lines: dict[str, int] = {}
        twice = 0
        for number, (name, class_name) in rows:
            twice += name in lines
            lines.setdefault(name, number)
            if class_name is None:
                continue
            if self.classes.setdefault(name, class_name) != class_name:
                raise DataError(
                    f"data.path: {path} gives {name} two classes, {self.classes[name]} and"
                    f" {class_name} in line {number}; correct it"
                )
        files = self._found(lines)
        notes = (f"{twice:,} lines of {path} repeat a path; each file is read once",)
        files.sort(key=lambda file: file.path.split("/"))
        return Scan(files, notes=notes if twice else ())

    def _place(self, name: str) -> Path:
        return Path(self.root).parent / Path(name).expanduser()

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
                f" be read ({reason(error)}): {shown}{more}; correct these lines or remove them"
            )
        return [
            File(name, one.st_size, one.st_mtime_ns)
            for name, one in zip(names, told, strict=True)
            if isinstance(one, os.stat_result)
        ]

    def _status(self, name: str) -> os.stat_result | OSError:
        place = self._place(name)
        try:
            if place.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            return place.stat()
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


def _rows(text: str, place: Any) -> list[tuple[int, tuple[str, str | None]]]:
    """Line, path and class of each line that is not empty. place: the file of a path.

    Columns are divided by tabs if there is any; else by commas if every line has exactly one that
    is not in quotes, and the first line as a whole is no file.
    """
    lines = [(n, line.strip(" \r")) for n, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        return []
    rows: list[tuple[int, tuple[str, str | None]]]
    if any("\t" in line for _, line in lines):
        rows = [(n, _two(line.partition("\t"))) for n, line in lines]
    else:
        cells = [next(csv.reader([line])) for _, line in lines]
        whole = any(len(found) != 2 for found in cells) or place(lines[0][1]).exists()
        rows = [
            (number, (line, None) if whole else (found[0].strip(), found[1].strip() or None))
            for (number, line), found in zip(lines, cells, strict=True)
        ]
    first = rows[0][1][0]
    if first.lower() in _HEADERS and format_named(first) is None and not place(first).exists():
        rows = rows[1:]
    return rows


def _two(cells: tuple[str, str, str]) -> tuple[str, str | None]:
    return cells[0].strip(), cells[2].strip() or None


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

    def _labels(self, paths: Sequence[str], found: Found, refuse: Refuse) -> Labels:
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
    return text.removeprefix("-").isdecimal()
