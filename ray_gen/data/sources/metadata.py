"""Classes of image files from files beside them, by name.

Read are `metadata.csv`, `.jsonl` and `.parquet` with a column `file_name` (Hugging Face's
imagefolder), `dataset.json` (StyleGAN), and any file of names and classes that `data.labels` gives.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ray_gen.data.errors import DataError, reason
from ray_gen.data.sources import conditions as of_conditions
from ray_gen.data.sources import labels as of_labels
from ray_gen.data.sources.files import Files
from ray_gen.data.sources.labels import Classes, LabelColumn, NoLabelsError, listed, shown

if TYPE_CHECKING:
    import pyarrow as pa

FIELD = "data.labels"
KEYWORDS = ("auto", "folders", "none")
"""Values of `data.labels` that are no file."""
NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "dataset.json")
"""Names of files that give labels to the images in and below their folder."""
_KINDS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
_FILE_COLUMNS = ("file_name", "filename", "file", "image", "path", "name", "id")
"""Names of the column of file names, best first. Metadata files have the first."""
_FILE, _LABEL = _FILE_COLUMNS[0], of_labels.DEFAULTS[0]
_TRIED = 20
"""Number of rows that must show which column holds the file names."""
_WHOLE = r"^-?(0|[1-9]\d*)$"
_REAL = r"^([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|NaN)$"
_NUMBER = r"^(-?(0|[1-9]\d*)(\.\d*)?|nan|NaN)$"


@dataclass(frozen=True)
class Labels:
    """What files beside the images say of them."""

    decides: bool
    """Whether folders are no classes."""
    of: Mapping[str, int] = field(default_factory=dict[str, int])
    """The class of each path that has one."""
    class_names: tuple[str, ...] | None = None
    files: tuple[str, ...] = ()
    """Paths in the tree of the files that say it."""
    where: str = ""
    """The first of them, as messages name it."""
    notes: tuple[str, ...] = ()
    """See `Listing`."""
    no_classes: str = ""
    """See `Listing`."""


@dataclass(frozen=True)
class _Table:
    """A file of names and labels."""

    path: str
    """In the tree; the absolute path of a file outside of it."""
    where: str
    """Its name in messages."""
    given: bool
    """Whether `data.labels` names it."""
    rows: pa.Table | None = None
    """None if it says only that there are no labels."""
    file_column: str = _FILE
    text: bool = False
    """Whether all values are text, as in CSV."""
    paths: Sequence[str | None] = ()
    """The image of each row. None: there is no such image."""

    @cached_property
    def outside(self) -> bool:
        """Whether it lies outside of the tree."""
        return _is_absolute(self.path)

    @cached_property
    def folder(self) -> str:
        """The folder of the tree that it describes, with a slash; "" for the root."""
        folder = "" if self.outside else posixpath.dirname(self.path)
        return f"{folder}/" if folder else ""


class _Tree:
    """The images of a tree, by the names that rows give them."""

    def __init__(self, files: Files, paths: Iterable[str]) -> None:
        self.files = files
        self._paths = frozenset(paths)

    @cached_property
    def _common(self) -> str:
        """The folder that holds all images, with a slash."""
        folders = {posixpath.dirname(path) for path in self._paths}
        common = posixpath.commonpath(folders) if folders and "" not in folders else ""
        return f"{common}/" if common else ""

    @cached_property
    def _by_end(self) -> dict[str, tuple[str, ...]]:
        """At most two paths by their name, by their name without suffix, and by their path without
        suffix."""
        found: dict[str, tuple[str, ...]] = {}
        for path in sorted(self._paths):
            whole = PurePosixPath(path)
            for end in {whole.name, whole.stem, str(whole.with_suffix(""))}:
                found[end] = (*found.get(end, ()), path)[:2]
        return found

    def path_of(self, name: str, table: _Table) -> str | None:
        """The path of a named image, relative to the table's folder, to the root, or to the folder
        that holds all images. If the table was given: also by its bare name, with or without
        suffix. None: there is no such image. Raises DataError if there are several."""
        if (direct := table.folder + name) in self._paths:
            return direct
        name = posixpath.normpath(name.replace("\\", "/"))
        candidates = [table.folder + name, name, self._common + name]
        if table.outside:
            whole = posixpath.normpath(posixpath.join(posixpath.dirname(table.path), name))
            candidates.append(whole.removeprefix(f"{self.files.root}/"))
        found = next((path for path in candidates if path in self._paths), None)
        if found is not None or not table.given:
            return found
        ends = self._by_end.get(name, ())
        if len(ends) > 1:
            raise DataError(
                f"{FIELD}: {table.where} names {name!r}, which may be {ends[0]} or {ends[1]}; give"
                f" paths relative to {self.files.root}"
            )
        return ends[0] if ends else None


def stamp(setting: str) -> list[int] | None:
    """Size and time (ns) of a file that `data.labels` names outside of the tree. None for the
    others."""
    if setting in KEYWORDS or not _is_absolute(setting):
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


def numbers_of(
    columns: Sequence[str],
    setting: str,
    files: Files,
    images: Sequence[str],
    others: Sequence[str],
    needed: Sequence[str],
) -> Numbers:
    """The numbers in columns of the files that give labels. Raises DataError, also if an image has
    none.

    columns: `data.conditions`. needed: paths of the images that are read. The others: see
    `labels_of`.
    """
    if not columns:
        return Numbers()
    tree = _Tree(files, images)
    given = setting not in KEYWORDS
    tables = [_given(setting, tree, others)] if given else list(_beside(files, others))
    tables = [_matched(table, tree) for table in tables if table.rows is not None]
    if not tables:
        raise DataError(
            f"{of_conditions.FIELD}: {files.root} has no {', '.join(NAMES[:-1])} with a column"
            " file_name; write one, or set data.labels to a file of names and numbers"
        )
    useful = [table for table in tables if any(path is not None for path in table.paths)]
    if not useful:
        raise DataError(
            f"{of_conditions.FIELD}: {tables[0].where} names no image of {files.root}; the first"
            f" name is {next(iter(_names(tables[0])), None)!r}; give paths relative to that folder"
        )
    tables = useful
    for column in columns:
        tables = [_as_numbers(table, column) for table in tables]
    chosen = of_conditions.conditions_of(columns, ((t.where, _schema(t)) for t in tables))
    found: dict[str, tuple[float, ...]] = {}
    for table in sorted(tables, key=lambda table: table.folder.count("/")):
        kept = [row for row, path in enumerate(table.paths) if path is not None]
        rows, where = _rows(table), table.where
        if len(kept) < len(rows):
            rows, where = rows.take(kept), f"the rows of {where} that name an image"
        own: dict[str, tuple[float, ...]] = {}
        for row, numbers in zip(kept, chosen.of(rows, where) or (), strict=True):
            path = str(table.paths[row])
            if own.setdefault(path, numbers) != numbers:
                raise DataError(
                    f"{of_conditions.FIELD}: {table.where} gives {path!r} two rows with different"
                    " numbers; keep one row"
                )
        found |= own
    without = [path for path in needed if path not in found]
    if without:
        have = "image has" if len(without) == 1 else "images have"
        raise DataError(
            f"{of_conditions.FIELD}: {len(without):,} {have} no row in {tables[0].where}; the first"
            f" is {without[0]}; add rows, or move the images away"
        )
    return Numbers(chosen.names, found, _inside(tables))


def labels_of(
    setting: str,
    column: LabelColumn | None,
    files: Files,
    images: Sequence[str],
    others: Sequence[str],
    besides: Sequence[str] = (),
) -> Labels | None:
    """The classes that files give to images. None: they say nothing. See `missing`, too.

    setting: `data.labels`. column: `data.label_column`. images: paths in the tree. others: paths of
    the files that are no images. besides: columns that are no labels, unless `column` names them.
    Raises DataError.
    """
    if setting == "folders":
        return None
    if setting == "none":
        return Labels(True, no_classes="data.labels is none; set it to auto")
    tree = _Tree(files, images)
    tables = list(_beside(files, others)) if setting == "auto" else [_given(setting, tree, others)]
    if not tables and column is not None:
        raise DataError(
            f"{of_labels.FIELD}: {files.root} has no {', '.join(NAMES[:-1])} with a column"
            f" {shown(column)}; set data.labels to a file of names and classes"
        )
    silent = [table for table in tables if table.rows is None]
    if silent:
        says = f"{silent[0].where} says that the images have no classes"
        return Labels(
            True,
            files=_inside(silent),
            notes=(f"{says}; data.labels=folders makes classes of folders",),
            no_classes=f"{says}; set data.labels=folders if folders are classes",
        )
    tables = [_matched(table, tree) for table in tables]
    useful = [table for table in tables if any(path is not None for path in table.paths)]
    if tables and not useful:
        table = tables[0]
        says = (
            f"{table.where} names no image of {files.root}; the first name is"
            f" {next(iter(_names(table)), None)!r}"
        )
        if table.given or column is not None:
            raise DataError(f"{FIELD}: {says}; give paths relative to that folder")
        return Labels(False, notes=(f"{says}, so it is not used",))
    return _read(useful, column, besides) if useful else None


def missing(labels: Labels, images: Sequence[str]) -> Labels:
    """The labels, and why they are not used if some of the images have no class."""
    without = [path for path in images if path not in labels.of] if labels.class_names else []
    if not without:
        return labels
    have = "image has" if len(without) == 1 else "images have"
    why = f"{len(without):,} {have} no class in {labels.where}; the first is {without[0]}"
    return replace(labels, no_classes=f"{why}; add rows, or move the images away")


def _matched(table: _Table, tree: _Tree) -> _Table:
    """The table with the image of each row. Values of rows without an image become null: they are
    no classes of the data set."""
    import pyarrow as pa

    paths = [tree.path_of(name, table) if name else None for name in _names(table)]
    if None not in paths:
        return replace(table, paths=paths)
    chosen = pa.array([None if path is None else row for row, path in enumerate(paths)], pa.int64())
    rows = _rows(table)
    columns = [
        column if name == table.file_column else column.take(chosen)
        for name, column in zip(rows.column_names, rows.columns, strict=True)
    ]
    return replace(table, rows=pa.table(columns, schema=rows.schema), paths=paths)


def _names(table: _Table) -> list[str | None]:
    """The names of files in all rows."""
    return _rows(table).column(table.file_column).to_pylist()


def _read(
    tables: Sequence[_Table], column: LabelColumn | None, besides: Sequence[str]
) -> Labels | None:
    """The classes in files of names and labels."""
    chosen = _classes(tables, column, besides)
    used = of_labels.columns_of(chosen[0]) if chosen else ()
    more = of_labels.others(_schema(tables[0]), (tables[0].file_column, *used, *besides))
    where = tables[0].where
    if chosen is None:
        if tables[0].given and not besides:
            raise DataError(
                f"{of_labels.FIELD}: {where} has several columns; set data.label_column to one of"
                f" {listed(more) or 'them'}"
            )
        if not more:
            return None
        return Labels(
            False,
            notes=(
                f"no column of {where} is used as labels; data.label_column can name one of"
                f" {listed(more)}",
            ),
            no_classes=f"no column of {where} is chosen; set data.label_column to one of"
            f" {listed(more)}",
        )
    name, classes, tables = chosen
    found = _joined(tables, name, classes)
    strays = [
        file
        for table in tables
        for file, path in zip(_names(table), table.paths, strict=True)
        if path is None
    ]
    notes = [*of_labels.notes_of(classes, name, more)]
    labels = Labels(True, files=_inside(tables), where=where)
    if not classes.names:
        rows = sum(len(_rows(table)) for table in tables)
        why = of_labels.why_none(classes, name, rows, more) or ""
        return replace(labels, notes=tuple(notes), no_classes=f"in {where}, {why}")
    kind = "column" if isinstance(name, str) else "columns"
    more_files = _and_more(len(tables) - 1, "file")
    notes.append(f"classes are the {kind} {shown(name)} of {where}{more_files}")
    if strays:
        notes.append(
            f"{len(strays):,} row{_s(strays)} of {where} name{'' if len(strays) > 1 else 's'} no"
            f" image; the first is {strays[0]}"
        )
    return replace(labels, of=found, class_names=classes.names, notes=tuple(notes))


def _classes(
    tables: Sequence[_Table], asked: LabelColumn | None, besides: Sequence[str]
) -> tuple[LabelColumn, Classes, Sequence[_Table]] | None:
    """The label column, its classes, and the tables with typed values. None: no column is
    chosen."""
    if asked is not None:
        for table in tables:
            of_labels.candidates(_schema(table), asked, table.where)
        names = [asked]
    else:
        likely = dict.fromkeys(name for table in tables for name in _likely(table, besides))
        usual = of_labels.DEFAULTS
        names = sorted(likely, key=lambda name: usual.index(name) if name in usual else 0)
    for name in names:
        typed = tables
        for one in of_labels.columns_of(name):
            typed = _typed(typed, one)
        try:
            columns = [_observed(table, name) for table in typed]
        except NoLabelsError:
            if asked is not None or (len(names) == 1 and tables[0].given):
                raise
            continue
        return name, of_labels.classes_of(columns, name), typed
    return None


def _likely(table: _Table, besides: Sequence[str]) -> list[LabelColumn]:
    """The columns that may be meant as labels, best first."""
    no_labels = (table.file_column, *besides)
    names = [name for name in _rows(table).column_names if name not in no_labels]
    if table.given and len(names) == 1:
        return of_labels.candidates(_schema(table), names[0], table.where)
    return [n for n in of_labels.candidates(_schema(table), None, table.where) if n in names]


def _observed(table: _Table, name: LabelColumn) -> of_labels.Column:
    rows = _rows(table)
    return of_labels.of_file([rows], len(rows), rows.schema, name, table.where)


def _typed(tables: Sequence[_Table], name: str) -> list[_Table]:
    """The tables, with numbers in a column of text if all of them have numbers there."""
    import pyarrow as pa

    pc = of_labels.functions()
    texts = {
        table.where: _rows(table).column(name)
        for table in tables
        if table.text and name in _rows(table).column_names
    }

    def all_match(pattern: str) -> bool:
        matches = (pc.match_substring_regex(text, pattern) for text in texts.values())
        return all(pc.all(match, min_count=0).as_py() for match in matches)

    kind = pa.int64() if all_match(_WHOLE) else pa.float64() if all_match(_NUMBER) else None
    if kind is None:
        return list(tables)
    try:
        typed = {where: text.cast(kind) for where, text in texts.items()}
    except pa.ArrowInvalid:  # numbers beyond 64 bits
        return list(tables)

    def with_numbers(table: _Table) -> _Table:
        rows = _rows(table)
        place = rows.column_names.index(name)
        return replace(table, rows=rows.set_column(place, name, typed[table.where]))

    return [with_numbers(table) if table.where in typed else table for table in tables]


def _as_numbers(table: _Table, name: str) -> _Table:
    """The table, with float64 in a column of text. Raises DataError for text that is no number."""
    import pyarrow as pa

    pc = of_labels.functions()
    rows = _rows(table)
    if not table.text or name not in rows.column_names:
        return table
    texts = rows.column(name)
    wrong = pc.invert(pc.match_substring_regex(texts, _REAL))
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise DataError(
            f"{of_conditions.FIELD}: row {row} of {table.where} has {texts[row].as_py()!r} in"
            f" {name!r}, which is no number; correct it, or leave the column out"
        )
    place = rows.column_names.index(name)
    return replace(table, rows=rows.set_column(place, name, texts.cast(pa.float64())))


def _joined(tables: Sequence[_Table], name: LabelColumn, classes: Classes) -> dict[str, int]:
    """The class of each image. A table in a folder comes before one above it. Raises DataError if a
    table gives an image two classes."""
    found: dict[str, int] = {}
    for table in sorted(tables, key=lambda table: table.folder.count("/")):
        values = of_labels.given(_rows(table), name)
        if values is None:
            continue
        own: dict[str, int] = {}
        for path, value in zip(table.paths, values, strict=True):
            label = None if path is None else classes.of(table.where, value)
            if path is None or label is None:
                continue
            if own.setdefault(path, label) != label:
                raise DataError(
                    f"{FIELD}: {table.where} gives {path!r} two classes,"
                    f" {classes.names[own[path]]} and {classes.names[label]}; keep one row"
                )
        found |= own
    return found


def _beside(files: Files, others: Iterable[str]) -> Iterator[_Table]:
    """The metadata files of a tree. Raises DataError if two describe one folder."""
    found: dict[str, str] = {}
    for path in sorted(path for path in others if posixpath.basename(path) in NAMES):
        where = files.name(path)
        table = _table(_Table(path, where, given=False), _bytes_of(files, path, where), None)
        if table is None:
            continue
        if table.rows is not None and _FILE not in table.rows.column_names:
            continue  # some other table
        if table.folder in found:
            raise DataError(
                f"{FIELD}: {files.name(found[table.folder])} and {where} describe the same images;"
                f" set data.labels={path}, or remove one of them"
            )
        found[table.folder] = path
        yield table


def _given(setting: str, tree: _Tree, others: Sequence[str]) -> _Table:
    """The file that `data.labels` names: outside of the tree, or a path in it."""
    if not setting.lower().endswith(_KINDS):
        raise DataError(
            f"{FIELD}: {setting!r} is neither {', '.join(KEYWORDS)} nor a file in"
            f" {', '.join(_KINDS)}; give a file of names and classes"
        )
    if _is_absolute(setting):
        where = setting
        try:
            data = Path(setting).read_bytes()
        except OSError as error:
            raise _unreadable(setting, error) from error
    elif setting in others:
        where = tree.files.name(setting)
        data = _bytes_of(tree.files, setting, where)
    else:
        raise DataError(
            f"{FIELD}: {setting} is neither a file here nor one in {tree.files.root}; give a file"
            " of names and classes"
        )
    table = _table(_Table(setting, where, given=True), data, tree)
    if table is None:
        raise DataError(
            f'{FIELD}: {where} is not {{"labels": [["NAME", CLASS], …]}}, as StyleGAN writes it;'
            " write it so, or give a CSV file"
        )
    if table.rows is None:
        return table
    names = table.rows.column_names
    if len(names) < 2:
        raise DataError(
            f"{FIELD}: {where} has only the column {''.join(names)!r}; give a column of file names"
            " and one of classes"
        )
    return _with_names(table, _file_column(table, tree))


def _file_column(table: _Table, tree: _Tree) -> str:
    """The column of file names: the first whose first values name images. Usual names are tried
    first."""
    rows = _rows(table)
    usual = [name for name in _FILE_COLUMNS if name in rows.column_names]
    names = list(dict.fromkeys((*usual, *rows.column_names)))
    for name in names:
        values = rows.column(name)[:_TRIED].to_pylist()
        if any(value is not None and _is_file(str(value), table, tree) for value in values):
            return name
    return names[0]


def _table(table: _Table, data: bytes, tree: _Tree | None) -> _Table | None:
    """`table` with its rows. None: it is not of the form that its name says. tree: to tell a first
    row from a header; None: there is a header."""
    import pyarrow as pa

    suffix = PurePosixPath(table.path).suffix.lower()
    try:
        if suffix == ".parquet":
            return _with_names(replace(table, rows=_from_parquet(data)), _FILE)
        text = data.decode("utf-8-sig")
        if suffix == ".json":
            return _from_dataset_json(table, text)
        if suffix == ".jsonl":
            rows = _from_json_lines(text, table.where)
            return _with_names(replace(table, rows=rows), _FILE)
        return replace(table, rows=_from_csv(table, text, suffix == ".tsv", tree), text=True)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        what = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise DataError(
            f"{FIELD}: {table.where} cannot be read: {what}; write it again, or set"
            " data.labels=folders to do without it"
        ) from error


def _with_names(table: _Table, column: str) -> _Table:
    """The table, with a column of file names as text: a name such as 17 may be stored as a
    number."""
    import pyarrow as pa

    rows = _rows(table)
    if column not in rows.column_names:
        return table
    names = rows.column(column).cast(pa.string())
    rows = rows.set_column(rows.column_names.index(column), column, names)
    return replace(table, rows=rows, file_column=column)


def _from_parquet(data: bytes) -> pa.Table:
    """The columns that can hold names, labels or conditions."""
    import pyarrow.parquet as pq
    from pyarrow import types

    file = pq.ParquetFile(io.BytesIO(data))
    schema = file.schema_arrow
    kept = [c for c in schema if of_labels.holds(c.type) or types.is_fixed_size_list(c.type)]
    return file.read(columns=[column.name for column in kept])


def _from_json_lines(text: str, where: str) -> pa.Table:
    """The keys of all lines whose values are no lists and no mappings, or are lists of equally many
    numbers."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
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
        for key in row:
            columns.setdefault(key, [None] * count)
        for key, values in columns.items():
            values.append(row.get(key))
        count += 1
    flat = {
        key: values
        for key, values in columns.items()
        if not any(isinstance(value, (list, dict)) for value in values)
    }
    lists = {key: made for key, values in columns.items() if (made := _lists(values)) is not None}
    return pa.table({**{key: _array(values) for key, values in flat.items()}, **lists})


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


def _array(values: list[Any]) -> pa.Array:
    """A column of numbers or of strings: of strings if there are both."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])


def _from_dataset_json(table: _Table, text: str) -> _Table | None:
    import pyarrow as pa

    try:
        given = json.loads(text)
        labels = given["labels"]
    except (ValueError, KeyError, TypeError):
        return None
    if labels is None:
        return table  # it says that there are none
    pairs = [pair for pair in labels if isinstance(pair, list) and len(pair) == 2]
    if not isinstance(labels, list) or len(pairs) != len(labels):
        return None
    if any(isinstance(label, (list, dict)) for _, label in pairs):
        return table  # vectors
    names = [str(name) for name, _ in pairs]
    return replace(table, rows=pa.table({_FILE: names, _LABEL: _array([y for _, y in pairs])}))


def _from_csv(table: _Table, text: str, tabs: bool, tree: _Tree | None) -> pa.Table:
    """All columns, as strings without white space around them; null where they are empty."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    pc = of_labels.functions()
    separator = "\t" if tabs else _separator(text)
    cells = next(csv.reader(io.StringIO(text), delimiter=separator), [])
    cells = [cell.strip() for cell in cells]
    files = [tree is not None and _is_file(cell, table, tree) for cell in cells]
    header = not any(files)
    if header:
        names = cells
    else:
        number = files.index(True)
        names = [f"column {i + 1}" for i in range(len(cells))]
        names[number] = _FILE
        if len(names) == 2:
            names[1 - number] = _LABEL
    if len(set(names)) < len(names):
        raise DataError(
            f"{FIELD}: {table.where} has two columns of one name ({listed(names)}); rename one"
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
    trimmed = [pc.utf8_trim_whitespace(column) for column in rows.columns]
    return pa.table(trimmed, names=names)


def _separator(text: str) -> str:
    """What stands between the cells of the first row."""
    counts = {
        separator: len(next(csv.reader(io.StringIO(text), delimiter=separator), []))
        for separator in (",", "\t", ";", " ")
    }
    best = max((",", "\t", ";"), key=lambda separator: counts[separator])
    return best if counts[best] > 1 or counts[" "] != 2 else " "


def _is_file(cell: str, table: _Table, tree: _Tree) -> bool:
    try:
        return tree.path_of(cell, table) is not None
    except DataError:
        return True


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute()


def _rows(table: _Table) -> pa.Table:
    assert table.rows is not None
    return table.rows


def _schema(table: _Table) -> pa.Schema:
    return _rows(table).schema


def _inside(tables: Iterable[_Table]) -> tuple[str, ...]:
    return tuple(table.path for table in tables if not table.outside)


def _s(many: Sequence[Any]) -> str:
    return "s" if len(many) > 1 else ""


def _and_more(count: int, what: str) -> str:
    return f" and of {count} more {what}{'s' if count > 1 else ''}" if count else ""


def _bytes_of(files: Files, path: str, where: str) -> bytes:
    try:
        with files.open(path) as file:
            return file.read()
    except (OSError, KeyError) as error:
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(
        f"{FIELD}: {where} cannot be read: {reason(error)}; give a file of names and classes"
    )
