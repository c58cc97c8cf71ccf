"""Classes of image files from files beside them, by name.

Read are `metadata.csv`, `.jsonl` and `.parquet` with a column `file_name` (Hugging Face's
imagefolder), `dataset.json` (StyleGAN), and any file of names and classes that `data.labels` gives.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_gen.data.errors import CorruptImageError, DataError, reason
from ray_gen.data.sources import conditions as of_conditions
from ray_gen.data.sources import labels as of_labels
from ray_gen.data.sources.files import Files
from ray_gen.data.sources.labels import Classes, LabelColumn, listed, shown, visible

if TYPE_CHECKING:
    import pyarrow as pa

FIELD = "data.labels"
KEYWORDS = ("auto", "folders", "none")
"""Values of `data.labels` that are no file."""
NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "dataset.json")
"""Names of files that give labels to the images in and below their folder."""
_KINDS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
_TYPED = (".jsonl", ".json", ".parquet")
"""The others hold only text."""
_FILE_COLUMNS = ("file_name", "filename", "file", "image", "path", "name", "id")
"""Names of the column of file names, best first. Metadata files have the first."""
_FILE, _LABEL = _FILE_COLUMNS[0], of_labels.DEFAULTS[0]
_TRIED = 20
"""Number of rows that must show which column holds the file names."""
_NUMBERS = {
    "int64": r"^-?(0|[1-9]\d{0,17})$",
    "float64": r"^(-?(0|[1-9]\d{0,14})(\.\d*)?|nan|NaN)$",
}
"""Text that is a number, by its type. 001 is a name. So are numbers too long for the type."""
_REAL = r"^([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|NaN)$"


@dataclass(frozen=True)
class Labels:
    """What files beside the images say of them."""

    decides: bool
    """Whether folders are no classes."""
    of: Mapping[str, int] = field(default_factory=dict[str, int])
    """The class of each path that has one."""
    class_names: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()
    """Paths of the files that say it."""
    where: str = ""
    """The first of them, as messages name it."""
    notes: tuple[str, ...] = ()
    """See `Listing`."""
    no_classes: str = ""
    """See `Listing`."""


class _File(NamedTuple):
    """A file of names and labels."""

    path: str
    """In the tree; the absolute path of a file outside of it."""
    where: str
    """Its name in messages."""
    given: bool
    """Whether `data.labels` names it."""

    @property
    def suffix(self) -> str:
        """Its form, in small letters."""
        return PurePosixPath(self.path).suffix.lower()

    @property
    def outside(self) -> bool:
        """Whether it lies outside of the tree."""
        return posixpath.isabs(self.path)

    @property
    def folder(self) -> str:
        """The folder of the tree that it describes, with a slash; "" for the root."""
        folder = "" if self.outside else posixpath.dirname(self.path)
        return f"{folder}/" if folder else ""


@dataclass(frozen=True)
class _Table:
    """What a file holds."""

    file: _File
    rows: pa.Table
    """All columns but that of the names. null in the rows without an image."""
    paths: Sequence[str | None]
    """The image of each row. None: there is none."""
    strays: Sequence[str] = ()
    """Names of which there is no image."""


class _NoClassesError(Exception):
    """A file from which the images get no classes."""

    def __init__(self, file: _File, says: str) -> None:
        """says: what the file says."""
        self.file = file
        self.says = says


class _Tree:
    """The images of a tree, by the names that rows give them."""

    def __init__(self, files: Files, paths: Iterable[str]) -> None:
        self.files = files
        self._paths = frozenset(paths)

    @cached_property
    def _by_end(self) -> dict[str, tuple[str, ...]]:
        """At most two paths by each of their ends, with and without suffix."""
        found: dict[str, tuple[str, ...]] = {}
        for path in sorted(self._paths):
            parts = path.split("/")
            for depth in range(len(parts)):
                end = "/".join(parts[depth:])
                for name in {visible(end), visible(posixpath.splitext(end)[0])}:
                    found[name] = (*found.get(name, ()), path)[:2]
        return found

    @cached_property
    def _by_look(self) -> dict[str, tuple[str, ...]]:
        """At most two paths by what they look like. ASCII looks like nothing else."""
        found: dict[str, tuple[str, ...]] = {}
        for path in sorted(path for path in self._paths if not path.isascii()):
            found[visible(path)] = (*found.get(visible(path), ()), path)[:2]
        return found

    def matches(self, name: str, file: _File) -> tuple[str, ...]:
        """The image that a name in a file means: relative to the file's folder, or to the root; or
        the images whose paths look so (é may be one code point or two). If the file was given: also
        by the end of its path, with or without suffix. There may be two."""
        if (direct := file.folder + name) in self._paths:
            return (direct,)
        name = posixpath.normpath(name.replace("\\", "/"))
        candidates = [file.folder + name, name]
        if file.outside:
            whole = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), name))
            candidates.append(whole.removeprefix(f"{self.files.root}/"))
        found = next((path for path in candidates if path in self._paths), None)
        if found is not None:
            return (found,)
        alike = (self._by_look.get(visible(path)) for path in candidates if not path.isascii())
        if (paths := next(filter(None, alike), None)) is not None:
            return paths
        return self._by_end.get(visible(name), ()) if file.given else ()

    def path_of(self, name: str | None, file: _File) -> str | None:
        """The image that a name means. Raises DataError if there are several."""
        found = self.matches(name, file) if name else ()
        if len(found) > 1:
            raise DataError(
                f"{FIELD}: {file.where} names {name!r}, which may be {found[0]} or {found[1]}; give"
                f" paths relative to {self.files.root}, each as the file's name is written"
            )
        return found[0] if found else None


def stamp(setting: str) -> list[int] | None:
    """Size and time (ns) of a file that `data.labels` names outside of the tree. None for the
    others."""
    if setting in KEYWORDS or not posixpath.isabs(setting):
        return None
    try:
        status = Path(setting).stat()
    except OSError as error:
        raise _unreadable(setting, error) from error
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Numbers:
    """The numbers to condition on that files give to images."""

    names: tuple[str, ...] = ()
    of: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    """The numbers of each path."""
    files: tuple[str, ...] = ()
    """Paths in the tree of the files that say it."""


class Metadata:
    """What the files beside the images of a tree say of them, or the file that `data.labels` gives.
    They are read once, if they are needed."""

    def __init__(
        self, setting: str, files: Files, images: Sequence[str], others: Sequence[str]
    ) -> None:
        """setting: `data.labels`. images: paths in the tree. others: paths of the files that are no
        images."""
        self._setting = setting
        self._files = files
        self._images = images
        self._others = others

    @cached_property
    def _tables(self) -> tuple[list[_Table], list[str]]:
        """What the files hold, and what to tell of those that are not used. Raises DataError, and
        _NoClassesError."""
        tree = _Tree(self._files, self._images)
        if self._setting in KEYWORDS:
            return _beside(tree, self._others)
        return [_given(self._setting, tree, self._others)], []

    def labels(
        self, column: LabelColumn | None = None, besides: Sequence[str] = ()
    ) -> Labels | None:
        """The classes of images. None: the files say nothing. See `missing`, too.

        column: `data.label_column`. besides: columns that are no labels, unless `column` names
        them. Raises DataError.
        """
        if self._setting == "folders":
            return None
        if self._setting == "none":
            return Labels(True, no_classes="data.labels is none; set it to auto")
        try:
            tables, unnamed = self._tables
        except _NoClassesError as error:
            says = f"{error.file.where} {error.says}"
            return Labels(
                True,
                files=(error.file.path,),
                notes=(f"{says}; data.labels=folders makes classes of folders",),
                no_classes=f"{says}; set data.labels=folders if folders are classes",
            )
        root = self._files.root
        if not tables and column is not None:
            raise DataError(
                f"{of_labels.FIELD}: {root} has no {', '.join(NAMES[:-1])} with a column"
                f" {shown(column)}; set data.labels to a file of names and classes"
            )
        useful = [table for table in tables if any(path is not None for path in table.paths)]
        if tables and not useful:
            table = tables[0]
            says = f"{table.file.where} names no image of {root}"
            if table.strays:
                says += f"; the first name is {table.strays[0]!r}"
            if table.file.given or column is not None:
                raise DataError(f"{FIELD}: {says}; give paths relative to that folder")
            return Labels(False, notes=(f"{says}, so it is not used",))
        if not useful:
            return Labels(False, notes=tuple(unnamed)) if unnamed else None
        names = [name for name in useful[0].rows.column_names if name not in besides]
        if useful[0].file.given and len(names) == 1:
            column = column or names[0]
        labels = _read(useful, column, besides)
        return replace(labels, notes=(*labels.notes, *unnamed))

    def numbers(self, columns: Sequence[str], needed: Sequence[str]) -> Numbers:
        """The numbers to condition on. Raises DataError, also if an image has none.

        columns: `data.conditions`. needed: paths of the images that are read.
        """
        if not columns:
            return Numbers()
        try:
            tables, _ = self._tables
        except _NoClassesError as error:
            raise DataError(
                f"{of_conditions.FIELD}: {error.file.where} has no columns of numbers; set"
                " data.labels to a file of names and numbers"
            ) from error
        root = self._files.root
        if not tables:
            raise DataError(
                f"{of_conditions.FIELD}: {root} has no {', '.join(NAMES[:-1])} with a column"
                " file_name; write one, or set data.labels to a file of names and numbers"
            )
        useful = [table for table in tables if any(path is not None for path in table.paths)]
        if not useful:
            raise DataError(
                f"{of_conditions.FIELD}: {tables[0].file.where} names no image of {root}; the"
                f" first name is {next(iter(tables[0].strays), None)!r}; give paths relative to"
                " that folder"
            )
        for column in columns:
            useful = [_with_numbers(table, column) for table in useful]
        numbers = _numbers(useful, columns, needed)
        inside = tuple(table.file.path for table in useful if not table.file.outside)
        return replace(numbers, files=inside)


def _numbers(tables: Sequence[_Table], columns: Sequence[str], needed: Sequence[str]) -> Numbers:
    """The numbers in columns of tables. Raises DataError if one of the needed images has none."""
    chosen = of_conditions.conditions_of(
        columns, ((table.file.where, table.rows.schema) for table in tables)
    )
    found: dict[str, tuple[float, ...]] = {}
    for table in sorted(tables, key=lambda table: table.file.folder.count("/")):
        kept = [row for row, path in enumerate(table.paths) if path is not None]
        rows, where = table.rows, table.file.where
        if len(kept) < len(rows):
            rows, where = rows.take(kept), f"the rows of {where} that name an image"
        own: dict[str, tuple[float, ...]] = {}
        for row, numbers in zip(kept, chosen.of(rows, where) or (), strict=True):
            path = str(table.paths[row])
            if own.setdefault(path, numbers) != numbers:
                raise DataError(
                    f"{of_conditions.FIELD}: {table.file.where} gives {path!r} two rows with"
                    " different numbers; keep one row"
                )
        found |= own
    without = [path for path in needed if path not in found]
    if without:
        have = "image has" if len(without) == 1 else "images have"
        raise DataError(
            f"{of_conditions.FIELD}: {len(without):,} {have} no numbers in"
            f" {tables[0].file.where}; the first is {without[0]}; add them, or move the images away"
        )
    return Numbers(chosen.names, found)


def numbers_of_json(
    told: Mapping[str, Mapping[str, Any]], columns: Sequence[str], where: str, needed: Sequence[str]
) -> Numbers:
    """The numbers to condition on that JSON objects give to images. Raises DataError as
    `Metadata.numbers`.

    told: at least one object, by path in the tree. where: what gives them, as messages name it.
    """
    whole = {
        path: x for path, x in told.items() if all(x.get(name) is not None for name in columns)
    }
    table = _Table(
        _File("KEY.json", where, given=True), _columns(list(whole.values())), list(whole)
    )
    return _numbers([table], columns, needed)


def _with_numbers(table: _Table, name: str) -> _Table:
    """The table with float64 for a column of text. Raises DataError for text that is no number."""
    if table.file.suffix in _TYPED or name not in table.rows.column_names:
        return table
    pc = of_labels.functions()
    texts = table.rows.column(name)
    row = pc.index(pc.invert(pc.match_substring_regex(texts, _REAL)), True).as_py()
    if row >= 0:
        raise DataError(
            f"{of_conditions.FIELD}: row {row} of {table.file.where} has {texts[row].as_py()!r} in"
            f" {name!r}, which is no number; correct it, or leave the column out"
        )
    place = table.rows.column_names.index(name)
    return replace(table, rows=table.rows.set_column(place, name, texts.cast("float64")))


def labels_of_texts(texts: Mapping[str, str], where: str) -> Labels:
    """The classes that texts give to images: numbers, if all of them are. "" and -1 are no class.

    texts: at least one, by path in the tree. where: what gives them, as messages name it.
    """
    import pyarrow as pa

    rows = pa.table({"class": list(texts.values())})
    labels = _read([_Table(_File("", where, given=True), rows, list(texts))], "class")
    return replace(labels, files=(), notes=() if labels.class_names else labels.notes)


def missing(labels: Labels, images: Sequence[str]) -> Labels:
    """The labels, and why they are not used if some of the images have no class."""
    without = [path for path in images if path not in labels.of] if labels.class_names else []
    if not without:
        return labels
    have = "image has" if len(without) == 1 else "images have"
    why = f"{len(without):,} {have} no class in {labels.where}; the first is {without[0]}"
    return replace(labels, no_classes=f"{why}; add rows, or move the images away")


def _read(
    tables: Sequence[_Table], column: LabelColumn | None, besides: Sequence[str] = ()
) -> Labels:
    """The classes in files of names and labels."""
    tables = _typed(tables)
    where = tables[0].file.where

    def columns(name: LabelColumn) -> list[of_labels.Column]:
        return [
            of_labels.of_file([t.rows], len(t.rows), t.rows.schema, name, t.file.where)
            for t in tables
        ]

    schemas = {table.file.where: table.rows.schema for table in tables}
    choice = of_labels.choice(schemas, column, tuple(besides), columns)
    if choice.column is None or choice.classes is None:
        if tables[0].file.given and not besides:
            raise DataError(f"{of_labels.FIELD}: in {where}, {choice.no_classes}")
        return Labels(False, notes=choice.notes, no_classes=f"in {where}, {choice.no_classes}")
    files = tuple(table.file.path for table in tables)
    labels = Labels(True, files=files, where=where, notes=choice.notes)
    if not choice.classes.names:
        return replace(labels, no_classes=f"in {where}, {choice.no_classes}")
    kind = "column" if isinstance(choice.column, str) else "columns"
    more = f" and {len(tables) - 1:,} more" if tables[1:] else ""
    notes = [*choice.notes, f"labels are the {kind} {shown(choice.column)} of {where}{more}"]
    strays = [name for table in tables for name in table.strays]
    if strays:
        notes.append(f"{len(strays):,} rows of {where} name no image; the first is {strays[0]}")
    return replace(
        labels,
        of=_joined(tables, choice.column, choice.classes),
        class_names=choice.classes.names,
        notes=tuple(notes),
    )


def _typed(tables: Sequence[_Table]) -> list[_Table]:
    """The tables with numbers for a column of text, if all files have numbers there. CSV knows only
    text."""
    import pyarrow as pa

    pc = of_labels.functions()
    tables = list(tables)
    texts = [number for number, table in enumerate(tables) if table.file.suffix not in _TYPED]
    for name in {name for number in texts for name in tables[number].rows.column_names}:
        having = [number for number in texts if name in tables[number].rows.column_names]
        values = pa.concat_tables([tables[n].rows.select([name]) for n in having]).column(name)
        for kind, pattern in _NUMBERS.items():
            if pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py():
                for n in having:
                    rows = tables[n].rows
                    place = rows.column_names.index(name)
                    rows = rows.set_column(place, name, rows.column(name).cast(kind))
                    tables[n] = replace(tables[n], rows=rows)
                break
    return tables


def _joined(tables: Sequence[_Table], name: LabelColumn, classes: Classes) -> dict[str, int]:
    """The class of each image. A table in a folder comes before one above it. Raises DataError if a
    table gives an image two classes."""
    found: dict[str, int] = {}
    for table in sorted(tables, key=lambda table: table.file.folder.count("/")):
        own: dict[str, int] = {}
        values = of_labels.given(table.rows, name) or ()
        for path, value in zip(table.paths, values, strict=False):
            label = None if path is None else classes.of(table.file.where, value)
            if path is None or label is None:
                continue
            if own.setdefault(path, label) != label:
                raise DataError(
                    f"{FIELD}: {table.file.where} gives {path!r} two classes,"
                    f" {classes.names[own[path]]} and {classes.names[label]}; keep one row"
                )
        found |= own
    return found


def _beside(tree: _Tree, others: Iterable[str]) -> tuple[list[_Table], list[str]]:
    """The metadata files of a tree, and what to tell of those without a column of names. Raises
    DataError if two describe one folder."""
    unnamed: list[str] = []
    found: dict[str, _Table] = {}
    for path in sorted(path for path in others if posixpath.basename(path) in NAMES):
        file = _File(path, tree.files.name(path), given=False)
        rows = _rows(file, tree)
        if rows is None:
            continue  # some other JSON
        if _FILE not in rows.column_names:
            unnamed.append(
                f"{file.where} is not used: it has no column {_FILE}, but"
                f" {listed(rows.column_names) or 'none'}; rename the column of the files' names, or"
                f" set data.labels={path}"
            )
            continue
        if file.folder in found:
            raise DataError(
                f"{FIELD}: {found[file.folder].file.where} and {file.where} describe the same"
                f" images; set data.labels={path}, or remove one of them"
            )
        found[file.folder] = _table(file, rows, _FILE, tree)
    return list(found.values()), unnamed


def _given(setting: str, tree: _Tree, others: Sequence[str]) -> _Table:
    """The file that `data.labels` names: outside of the tree, or a path in it."""
    if not setting.lower().endswith(_KINDS):
        raise DataError(
            f"{FIELD}: {setting!r} is neither {', '.join(KEYWORDS)} nor a file in"
            f" {', '.join(_KINDS)}; give a file of names and classes"
        )
    if not posixpath.isabs(setting) and setting not in others:
        raise DataError(
            f"{FIELD}: {setting} is neither a file here nor one in {tree.files.root}; give a file"
            " of names and classes"
        )
    where = setting if posixpath.isabs(setting) else tree.files.name(setting)
    file = _File(setting, where, given=True)
    rows = _rows(file, tree)
    if rows is None:
        raise DataError(
            f'{FIELD}: {where} is not {{"labels": [["NAME", CLASS], …]}}, as StyleGAN writes it;'
            " write it so, or give a CSV file"
        )
    if rows.num_columns < 2:
        raise DataError(
            f"{FIELD}: {where} has only the column {''.join(rows.column_names)!r}; give a column of"
            " file names and one of classes"
        )
    return _table(file, rows, _file_column(file, rows, tree), tree)


def _file_column(file: _File, rows: pa.Table, tree: _Tree) -> str:
    """The column of file names: the first whose first values name images. Usual names are tried
    first."""
    usual = [name for name in _FILE_COLUMNS if name in rows.column_names]
    names = [*usual, *rows.column_names]
    for name in names:
        values = rows.column(name)[:_TRIED].to_pylist()
        if any(tree.matches(str(value), file) for value in values if value is not None):
            return name
    return names[0]


def _table(file: _File, rows: pa.Table, column: str, tree: _Tree) -> _Table:
    """The images of all rows, and their values. column: the file names."""
    import pyarrow as pa

    names = rows.column(column).cast(pa.string()).to_pylist()  # 17 may be stored as a number
    paths = [tree.path_of(name, file) for name in names]
    rows = rows.drop_columns([column])
    if None in paths:  # values of no image are no classes of the data set
        kept = [None if path is None else row for row, path in enumerate(paths)]
        rows = rows.take(pa.array(kept, pa.int64()))
    strays = [name for name, path in zip(names, paths, strict=True) if name and path is None]
    return _Table(file, rows, paths, strays)


def _rows(file: _File, tree: _Tree) -> pa.Table | None:
    """The columns of a file. None: it is not of the form that its name says."""
    import pyarrow as pa

    try:
        if file.outside:
            data = Path(file.path).read_bytes()
        else:
            with tree.files.open(file.path) as opened:
                data = opened.read()
    except (OSError, CorruptImageError) as error:
        raise _unreadable(file.where, error) from error
    try:
        if file.suffix == ".parquet":
            return _from_parquet(data)
        text = data.decode("utf-8-sig")
        if file.suffix == ".json":
            return _from_dataset_json(file, text)
        if file.suffix == ".jsonl":
            return _from_json_lines(text, file.where)
        return _from_csv(file, text, tree)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        what = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise DataError(
            f"{FIELD}: {file.where} cannot be read: {what}; write it again, or set"
            " data.labels=folders to do without it"
        ) from error


def _from_parquet(data: bytes) -> pa.Table:
    """The columns that can hold names, labels or conditions."""
    import pyarrow.parquet as pq
    from pyarrow import types

    file = pq.ParquetFile(io.BytesIO(data))
    schema = file.schema_arrow
    kept = [c for c in schema if of_labels.holds(c.type) or types.is_fixed_size_list(c.type)]
    return file.read(columns=[column.name for column in kept])


def _from_json_lines(text: str, where: str) -> pa.Table:
    """The keys of all lines; see `_columns`."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(
                f"{FIELD}: line {number} of {where} is not a JSON object; correct it, or set"
                " data.labels=folders to do without the file"
            )
        rows.append(row)
    return _columns(rows)


def _columns(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The keys of JSON objects whose values are no lists and no mappings, or are lists of equally
    many numbers."""
    import pyarrow as pa

    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in keys}
    flat = {key: _array(x) for key, x in columns.items() if not _any_nested(x)}
    lists = {key: made for key, x in columns.items() if (made := _lists(x)) is not None}
    return pa.table({**flat, **lists})


def _lists(values: Sequence[Any]) -> pa.Array | None:
    """A column of lists of equally many numbers. None if the values are something else."""
    import pyarrow as pa

    sizes = {len(value) for value in values if isinstance(value, list)}
    if len(sizes) != 1 or not all(isinstance(value, (list, type(None))) for value in values):
        return None
    try:
        return pa.array(values, pa.list_(pa.float64(), sizes.pop()))
    except (pa.ArrowException, TypeError):
        return None


def _any_nested(values: Iterable[Any]) -> bool:
    return any(isinstance(value, (list, dict)) for value in values)


def _array(values: list[Any]) -> pa.Array:
    """A column of numbers or of strings: of strings if there are both."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])


def _from_dataset_json(file: _File, text: str) -> pa.Table | None:
    """StyleGAN's form. Raises _NoClassesError if it has no labels, or vectors."""
    import pyarrow as pa

    try:
        pairs = json.loads(text)["labels"]
    except (ValueError, KeyError, TypeError):
        return None
    if pairs is None:
        raise _NoClassesError(file, "says that the images have no classes")
    if not isinstance(pairs, list) or any(
        not isinstance(pair, list) or len(pair) != 2 for pair in pairs
    ):
        return None
    labels = [label for _, label in pairs]
    if _any_nested(labels):
        raise _NoClassesError(file, "has vectors as labels, which are not read")
    return pa.table({_FILE: [str(name) for name, _ in pairs], _LABEL: _array(labels)})


def _from_csv(file: _File, text: str, tree: _Tree) -> pa.Table:
    """All columns, as strings without white space around them; null where they are empty."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    first = text.lstrip().partition("\n")[0]
    marks = "\t" if file.suffix == ".tsv" else ",\t;"
    separator = next((mark for mark in marks if mark in first), " ")
    names = [cell.strip() for cell in next(csv.reader(io.StringIO(text), delimiter=separator), [])]
    files = [file.given and bool(tree.matches(cell, file)) for cell in names]
    header = not any(files)
    if not header:
        place = files.index(True)
        names = [f"column {i + 1}" for i in range(len(names))]
        if len(names) == 2:
            names[1 - place] = _LABEL
        names[place] = _FILE
    if len(set(names)) < len(names):
        raise DataError(
            f"{FIELD}: {file.where} has two columns of one name ({listed(names)}); rename one"
        )
    rows = arrow_csv.read_csv(
        io.BytesIO(text.encode()),
        arrow_csv.ReadOptions(column_names=names, skip_rows=int(header)),
        arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=[""],
        ),
    )
    trimmed = [of_labels.functions().utf8_trim_whitespace(column) for column in rows.columns]
    return pa.table(trimmed, names=names)


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(
        f"{FIELD}: {where} cannot be read: {reason(error)}; give a file of names and classes"
    )
