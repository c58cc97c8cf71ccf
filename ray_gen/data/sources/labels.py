"""Classes from columns of labels: of Parquet and Arrow files, and of metadata beside images.

The values that occur are the classes, in their sorted order: {1, 5, 10001} are three. A column that
names its classes (Hugging Face's ClassLabel) has all of them in its own order, also those that do
not occur. null, NaN, -1 and "" are no class.

A name may be written in several ways that nobody can see: é is one code point (NFC) or two (NFD, as
macOS writes it). Both are one class, and its name is in NFC.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

from ray_gen.data.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

LabelColumn = str | tuple[str, ...]
"""One column of labels; or several, whose combinations are the classes."""
FIELD = "data.label_column"
DEFAULTS = ("label", "labels", "fine_label", "class", "target")
"""Names of columns that are used as labels if the settings name none. The first that holds labels
is used."""
MOST_CLASSES = 10_000
"""A column of more values holds no classes, but numbers of images or texts."""
_MOST_NAMED = 8


def visible(name: str) -> str:
    """A name in NFC: the same for all names that look alike."""
    return name if name.isascii() else normalize("NFC", name)


class NoLabelsError(DataError):
    """A column whose values are no labels, for example numbers that are not whole. Its argument is
    the fact, without field and remedy."""

    def __str__(self) -> str:
        return f"{FIELD}: {self.args[0]}; give another column, or set data.labels=none"


@dataclass(frozen=True)
class Column:
    """What the label column of one file holds."""

    where: str
    """The file, as messages name it."""
    values: tuple[Any, ...]
    """The values that occur, whole numbers or strings: at most MOST_CLASSES + 1 of them. Of several
    columns: a tuple of values for each combination."""
    names: tuple[str, ...] | None = None
    """The names that the file gives to the classes 0, 1, …"""
    rows: int = 0
    without: int = 0
    """Number of rows that have no class."""
    several: tuple[Column, ...] = ()
    """What each of several columns holds. Empty for one column."""

    @property
    def kind(self) -> Literal["numbers", "named", "words"] | None:
        """What the values are. None: there are none."""
        if not self.values:
            return None
        if isinstance(self.values[0], str):
            return "words"
        return "numbers" if self.names is None else "named"


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, and the class of each value in each of its files."""

    names: tuple[str, ...]
    of_values: Mapping[Any, int] = field(default_factory=dict[Any, int])
    of_files: Mapping[str, Mapping[Any, int]] = field(default_factory=dict[str, Mapping[Any, int]])
    """Of files that name their classes in an order of their own. By `Column.where`."""
    without: int = 0
    """Number of rows that have no class."""
    first_without: str = ""
    """The first file with such rows."""
    too_many: bool = False
    """Whether there are more than MOST_CLASSES values. Then `names` is empty."""
    several: tuple[Classes, ...] = ()
    """The classes of each of several columns. Then `of_values` is by combinations of them."""

    def of(self, where: str, value: Any) -> int | None:
        """The class of a value in a file; of a tuple of values, if there are several columns. None
        for a value that is no class."""
        if self.several:
            return self.of_values.get(self.numbers(where, value))
        if value is None or value != value:  # NaN
            return None
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float):
            value = int(value) if value.is_integer() else None
        elif isinstance(value, str):
            value = visible(value)
        return self.of_files.get(where, self.of_values).get(value)

    def numbers(self, where: str, values: Sequence[Any]) -> tuple[int | None, ...]:
        """The class of each value, in its own of several columns."""
        return tuple(part.of(where, x) for part, x in zip(self.several, values, strict=True))


def columns_of(column: LabelColumn | None) -> tuple[str, ...]:
    """The names of the columns."""
    return () if column is None else (column,) if isinstance(column, str) else column


def shown(column: LabelColumn) -> str:
    """The columns, as messages name them."""
    return " and ".join(map(repr, columns_of(column)))


def given(rows: pa.Table | pa.RecordBatch, column: LabelColumn | None) -> list[Any] | None:
    """The values of all rows: tuples, if there are several columns. None if the rows lack one."""
    names = columns_of(column)
    if not names or not set(names) <= set(rows.schema.names):
        return None
    values = [rows.column(name).to_pylist() for name in names]
    return values[0] if isinstance(column, str) else list(zip(*values, strict=True))


def candidates(schema: pa.Schema, asked: LabelColumn | None, where: str) -> list[LabelColumn]:
    """Columns to use as labels, the best first. Whether their values are labels is not known yet.

    Raises DataError if the asked column does not exist or cannot hold labels.
    """
    if asked is None:
        return [
            name for name in DEFAULTS if name in schema.names and holds(schema.field(name).type)
        ]
    for name in columns_of(asked):
        check_exists(schema.names, FIELD, name, where)
        kind = schema.field(name).type
        if not holds(kind):
            raise DataError(
                f"{FIELD}: {name!r} of {where} is {kind}; give a column of whole numbers or strings"
            )
    return [asked]


def others(schema: pa.Schema, without: Iterable[str]) -> list[str]:
    """Further columns that may hold labels: those that name classes, then others by their type."""
    besides = set(without)
    left = [c.name for c in schema if c.name not in besides and holds(c.type, floats=False)]
    return sorted(left, key=lambda name: names_in(schema, name) is None)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, not too many."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_exists(names: Sequence[str], field: str, name: str, where: str) -> None:
    """Raises DataError if a column does not exist. The message has near names."""
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
    raise DataError(f"{field}: {where} has no column {name!r}; {hint}")


def holds(kind: pa.DataType, *, floats: bool = True) -> bool:
    """Whether a column of this type may hold labels."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return holds(kind.value_type, floats=floats)
    return (
        types.is_integer(kind)
        or types.is_boolean(kind)
        or (floats and types.is_floating(kind))
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    )


def features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Hugging Face's description of each column. Empty if there is none."""
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in written.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError):
        return {}


def functions() -> Any:
    """pyarrow.compute. It makes its functions on import, so type checkers do not know them."""
    import pyarrow.compute

    return pyarrow.compute


def names_in(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's ClassLabel stores with a column of numbers, as they are
    written."""
    known = features(schema).get(column, {}).get("names")
    if not isinstance(known, list) or not known:
        return None
    return tuple(str(name) for name in known)


def observed(
    batches: Iterable[pa.Table | pa.RecordBatch],
    column: LabelColumn,
    where: str,
    schema: pa.Schema,
) -> Column:
    """The values that occur in a column, or the combinations in several, batch by batch in the
    order of the rows.

    Memory: one batch, and at most MOST_CLASSES values besides; it stops reading at more. Raises
    NoLabelsError for a number that is not whole, DataError for one beyond the named classes.
    """
    import pyarrow as pa

    columns = columns_of(column)
    numbers = [str(number) for number in range(len(columns))]
    written = {name: names_in(schema, name) for name in columns}
    names = {name: told and tuple(map(visible, told)) for name, told in written.items()}
    seen: Any = None
    rows = without = 0
    for batch in batches:
        plain: list[Any] = []
        for name in columns:
            values = _plain(batch.column(name), rows, name, where)
            _check_named(values, names[name], rows, name, where)
            plain.append(values)
        table = pa.table(plain, numbers).drop_null()
        rows += len(batch)
        without += len(batch) - len(table)
        table = table if seen is None else pa.concat_tables([seen, table])
        seen = table.group_by(numbers).aggregate([]).select(numbers)
        if len(seen) > MOST_CLASSES:
            break
    found = [] if seen is None else given(seen.slice(0, MOST_CLASSES + 1), tuple(numbers)) or []
    if isinstance(column, str):
        values = tuple(value for (value,) in found)
        return Column(where, values, names[column], rows=rows, without=without)
    several = tuple(
        Column(where, tuple(dict.fromkeys(value[place] for value in found)), names[name])
        for place, name in enumerate(columns)
    )
    return Column(where, tuple(found), several=several, rows=rows, without=without)


def _plain(values: Any, first_row: int, column: str, where: str) -> Any:
    """Labels as int64, uint64 or strings, with null for rows without a class."""
    import pyarrow as pa
    from pyarrow import types

    pc = functions()
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if types.is_boolean(values.type):
        return values.cast(pa.string())
    if types.is_floating(values.type):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), None, values)
        whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**63))
        if not pc.all(whole, min_count=0).as_py():
            row = pc.index(whole, False).as_py()
            raise NoLabelsError(
                f"row {first_row + row} of {where} has {values[row].as_py():g} in {column!r}, and a"
                " class is a whole number or a name"
            )
        values = values.cast(pa.int64())
    if types.is_integer(values.type):
        if types.is_unsigned_integer(values.type):
            return values.cast(pa.uint64())
        values = values.cast(pa.int64())
        return pc.if_else(pc.equal(values, -1), None, values)
    values = pc.utf8_normalize(values.cast(pa.string()), "NFC")
    return pc.if_else(pc.equal(values, ""), None, values)


def _check_named(
    values: Any, names: Sequence[str] | None, first_row: int, column: str, where: str
) -> None:
    """Raises DataError if a number is beyond the named classes."""
    from pyarrow import types

    pc = functions()
    if names is None or types.is_string(values.type):
        return
    beyond = pc.or_(pc.less(values, 0), pc.greater_equal(values, len(names)))
    row = pc.index(beyond, True).as_py()
    if row < 0:
        return
    raise DataError(
        f"{FIELD}: row {first_row + row} of {where} has the label {values[row].as_py()} in"
        f" {column!r}, but the file names only the classes 0 to {len(names) - 1}; correct the"
        " label, or set data.labels=none"
    )


def classes_of(columns: Sequence[Column], column: LabelColumn) -> Classes:
    """The classes of a data set, from the label columns of all its files. Raises DataError if the
    files contradict each other."""
    found = _combined(columns, column) if isinstance(column, tuple) else _alone(columns, column)
    first = next((part.where for part in columns if part.without), "")
    without = sum(part.without for part in columns)
    return replace(found, without=without, first_without=first)


def _alone(columns: Sequence[Column], column: str) -> Classes:
    """The classes of one column."""
    kinds: dict[str, Column] = {}
    for part in columns:
        if part.kind is not None:
            kinds.setdefault(part.kind, part)
    if "numbers" in kinds and len(kinds) > 1:
        other = kinds.get("words") or kinds["named"]
        raise DataError(
            f"{FIELD}: {column!r} holds numbers without names in {kinds['numbers'].where} and names"
            f" in {other.where}, so they cannot be matched; write one kind in all files, or set"
            " data.labels=none"
        )
    values: set[int | str] = set()
    for part in columns:
        values.update(part.values)
        if len(values) > MOST_CLASSES:
            break
    named = [part for part in columns if part.names is not None and part.kind != "words"]
    names = tuple(dict.fromkeys(chain.from_iterable(part.names or () for part in named)))
    if len(values) > MOST_CLASSES or len(names) > MOST_CLASSES:
        return Classes((), too_many=True)
    if "numbers" in kinds or not names:
        ordered = sorted(values)  # pyright: ignore[reportArgumentType]
        found = tuple(map(str, ordered))
        return Classes(found, {value: i for i, value in enumerate(ordered)})
    return _by_name(columns, names, column)


def _combined(columns: Sequence[Column], names: tuple[str, ...]) -> Classes:
    """The combinations of the classes of several columns that occur, sorted column by column."""
    several = tuple(
        classes_of([part.several[place] for part in columns if part.several], name)
        for place, name in enumerate(names)
    )
    of_each = Classes((), several=several)
    found = {of_each.numbers(part.where, values) for part in columns for values in part.values}
    if len(found) > MOST_CLASSES or any(part.too_many for part in several):
        return Classes((), too_many=True)
    ordered: list[Any] = sorted(found)  # pyright: ignore[reportArgumentType]
    told = tuple(
        ", ".join(
            f"{name}={part.names[number]}"
            for name, part, number in zip(names, several, numbers, strict=True)
        )
        for numbers in ordered
    )
    index = {numbers: i for i, numbers in enumerate(ordered)}
    return Classes(told, index, several=several)


def _by_name(columns: Sequence[Column], names: tuple[str, ...], column: str) -> Classes:
    """The classes of files of which some name their classes. In the order of the first; names that
    others have besides follow."""
    index = {name: i for i, name in enumerate(names)}
    of_order: dict[tuple[str, ...], Mapping[Any, int]] = {}
    of_files: dict[str, Mapping[Any, int]] = {}
    for part in columns:
        if part.kind == "words":
            other = next((value for value in part.values if value not in index), None)
            if other is not None:
                raise DataError(
                    f"{FIELD}: {part.where} has the label {other!r} in {column!r}, which is none of"
                    f" the classes that other files name ({listed(names)}); correct the label, or"
                    " set data.labels=none"
                )
        elif part.names is not None:
            order = part.names
            if order not in of_order:
                of_order[order] = {number: index[name] for number, name in enumerate(order)}
            of_files[part.where] = of_order[order]
    if len(of_order) == 1:  # memory: one table serves all files
        (only,) = of_order.values()
        return Classes(names, {**index, **only})
    return Classes(names, index, of_files)


@dataclass(frozen=True)
class Choice:
    """The label column of a data set."""

    column: LabelColumn | None = None
    classes: Classes | None = None
    notes: tuple[str, ...] = ()
    """See `Listing`."""
    no_classes: str = ""
    """See `Listing`."""


def choice(
    schemas: Mapping[str, pa.Schema],
    asked: LabelColumn | None,
    besides: Sequence[str],
    read: Callable[[LabelColumn], Sequence[Column]],
) -> Choice:
    """The label column of files, and its classes. Raises DataError.

    schemas: of each file, by its name in messages. asked: the column that the settings name.
    besides: columns that are no labels. read: what a column holds in each file; see `of_file`.
    """
    first = next(iter(schemas))
    names = candidates(schemas[first], asked, first)
    unusable: dict[str, str] = {}
    if asked is None:  # a split without labels may lack the column, and may come first
        found = {
            name for where, schema in schemas.items() for name in candidates(schema, None, where)
        }
        names = sorted(found - set(besides), key=DEFAULTS.index)
        unusable = _of_other_types(schemas, {*besides, *names})
    column, classes, rows = None, None, 0
    for name in names:
        try:
            parts = read(name)
        except NoLabelsError as error:
            if asked is not None:
                raise
            unusable[str(name)] = error.args[0]
            continue
        column, rows = name, sum(part.rows for part in parts)
        classes = classes_of(parts, name)
        break
    more = others(schemas[first], (*besides, *columns_of(column), *unusable))
    if column is None and unusable:
        why = next(iter(unusable.values()))
        hint = f"; data.label_column can name {listed(more)}" if more else ""
        return Choice(notes=(f"labels are not used: {why}{hint}",), no_classes=f"{why}{hint}")
    return Choice(
        column,
        classes,
        tuple(notes_of(classes, column, more)),
        why_none(classes, column, rows, more) or "",
    )


def _of_other_types(
    schemas: Mapping[str, pa.Schema], without: Collection[LabelColumn]
) -> dict[str, str]:
    """Columns that have a name of labels, but whose type holds none: what is said of each."""
    return {
        name: f"{name!r} of {where} is {schema.field(name).type}, and a class is a whole number or"
        " a name"
        for name in DEFAULTS
        for where, schema in schemas.items()
        if name in schema.names and name not in without
    }


def of_file(
    batches: Iterable[pa.Table | pa.RecordBatch],
    rows: int,
    schema: pa.Schema,
    column: LabelColumn,
    where: str,
) -> Column:
    """What a column holds in a file. batches: its rows, in order; not read if the file lacks the
    column. rows: of the file."""
    if not set(columns_of(column)) <= set(schema.names):
        return Column(where, (), rows=rows, without=rows)
    candidates(schema, column, where)  # its type may differ from that in other files
    return observed(batches, column, where, schema)


def too_many_folders(where: str, count: int) -> str:
    """What to tell if a data set has more than MOST_CLASSES folders of classes."""
    return (
        f"{where} has {count:,} class folders, more than {MOST_CLASSES:,} and too many for classes,"
        " so labels are left out"
    )


def why_none(
    classes: Classes | None, column: LabelColumn | None, rows: int, more: Sequence[str]
) -> str | None:
    """Why images have no classes, and what to do about it, for who needs classes. None: they have.

    rows: of all files. more: other columns that may hold labels.
    """
    hint = f"; data.label_column can also name {listed(more)}" if more else ""
    if column is None or classes is None:
        if not more:
            return "the data has no column of labels"
        return f"no column is chosen; set data.label_column to one of {listed(more)}"
    if classes.too_many:
        return f"{shown(column)} has more than {MOST_CLASSES:,} different values{hint}"
    if not classes.names:
        return f"{shown(column)} has no label in any of {rows:,} rows{hint}"
    if classes.without:
        return (
            f"{classes.without:,} of {rows:,} rows have no label in {shown(column)} (null, NaN, -1"
            f" or empty), the first of them in {classes.first_without}; label or remove them{hint}"
        )
    return None


def notes_of(classes: Classes | None, column: LabelColumn | None, more: Sequence[str]) -> list[str]:
    """What to tell everybody about labels."""
    if column is None:
        if not more:
            return []
        return [f"no column is used as labels; data.label_column can name one of {listed(more)}"]
    if classes is not None and classes.too_many:
        return [
            f"{shown(column)} has more than {MOST_CLASSES:,} different values, too many for"
            " classes, so labels are left out"
        ]
    return []
