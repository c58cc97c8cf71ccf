"""Parquet files with an image in each row: Hugging Face's layout, or a plain binary column."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from ray_gen.data.errors import DataError, reason
from ray_gen.data.pictures import LARGEST_CHANNELS, Bands, read_picture
from ray_gen.data.rules_1 import checked_labels, label_column_1
from ray_gen.data.rules_1 import splits_of_shards as splits_of_shards_1
from ray_gen.data.sources.base import Item, Listing, SplitName, read_image_1
from ray_gen.data.sources.conditions import Conditions, conditions_of
from ray_gen.data.sources.labels import (
    Classes,
    Column,
    LabelColumn,
    check_exists,
    choice,
    columns_of,
    given,
    names_in,
    of_file,
)
from ray_gen.data.sources.layout import splits_of_shards
from ray_gen.data.sources.rows import Beside, Stored, bytes_of, image_column
from ray_gen.data.wanted import ELEMENTS
from ray_gen.storage import tried

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray
    from PIL.Image import Image

_T = TypeVar("_T")
PLAN = "_plan.json"
"""Name of a file in a folder that `ray-gen data convert` has begun to write."""
MANIFEST = "_manifest.json"
"""Name of a file in a folder that `ray-gen data convert` has written completely."""
_RAW = b"ray_gen"
_ROWS_AT_ONCE = 64
_LABELS_AT_ONCE = 1 << 20
"""Labels of about this many rows are in memory at once, for each of the shards that are read."""
_FOOTERS_AT_ONCE = 16
"""An object store answers in about 50 ms: in parallel, 1,000 shards take 3 s, not a minute."""


@dataclass(frozen=True, slots=True)
class _Shard:
    location: str
    """Path, as the file system names it."""
    path: str
    """Path relative to the given folder, or the file's own name. It is the same wherever the data
    lie."""
    split: SplitName | None
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The part of a Parquet file that is read at once."""

    shard: _Shard
    number: int
    rows: int
    bytes: int
    """Size of all columns, before compression."""

    @property
    def key(self) -> str:
        """A name that is the same wherever the data lie."""
        return f"{self.shard.path}#{self.number}"


@dataclass(frozen=True)
class Columns:
    """The columns to read."""

    image: str
    label: LabelColumn | None
    class_names: tuple[str, ...] | None
    label_count: int | None
    """Number of classes. None without labels."""
    shape_HWC: tuple[int, int, int] | None
    """Shape of images that are stored as raw pixels. None if images are encoded."""
    element: str = "uint8"
    """Type of raw pixels."""
    rules: Literal[1, 2] = 2
    classes: Classes | None = None
    """The class of each label. None without labels, and by the first rules."""
    no_classes: str = ""
    """Why images have no classes; see `Listing`."""
    notes: tuple[str, ...] = ()
    """What to tell about labels; see `Listing`."""
    beside: Beside | None = None
    """The files that rows name. None by the first rules, which read no such files."""

    conditions: Conditions = field(default_factory=Conditions)
    """The columns of numbers to condition on."""

    @property
    def names(self) -> list[str]:
        """Names of the image column, the label columns and the columns of conditions."""
        return list(dict.fromkeys((self.image, *columns_of(self.label), *self.conditions.columns)))

    @property
    def watched(self) -> Mapping[str, tuple[int, int]]:
        """See `Listing.watched`: filled in while rows are read."""
        return self.beside.watched if self.beside is not None else {}

    @cached_property
    def index(self) -> dict[str, int]:
        """The class of each label that is a string."""
        return {name: i for i, name in enumerate(self.class_names or ())}


class RowsInMemory(Sequence[Item]):
    """The rows of a row group in memory, encoded as they were stored."""

    def __init__(self, table: pa.Table, shard: _Shard, first_row: int, columns: Columns) -> None:
        self._images: Any = table.column(columns.image).combine_chunks()
        self._table = table
        self._shard = shard
        self._first_row = first_row
        self._columns = columns

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def pixels_NHWC(self) -> NDArray[Any] | None:  # noqa: N802
        """The images as a view of memory. None if they are encoded."""
        shape = self._columns.shape_HWC
        if shape is None or self._images.null_count:
            return None
        start = self._images.offset * math.prod(shape)
        flat = np.frombuffer(self._images.buffers()[1], self._columns.element)
        return flat[start : start + len(self) * math.prod(shape)].reshape(len(self), *shape)

    @cached_property
    def labels(self) -> list[int | None]:
        """The class of each row. None for rows without labels."""
        labels = given(self._table, self._columns.label)
        if labels is None:
            return [None] * len(self)
        return [_class_of(label, self._shard, self._columns) for label in labels]

    @cached_property
    def conditions(self) -> list[tuple[float, ...]] | None:
        """The numbers of each row to condition on. None if there are none."""
        shard, columns = self._shard, self._columns
        return columns.conditions.of(self._table, shard.location, self._first_row)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image, row = self._images[index].as_py(), self._first_row + index
        conditions = self.conditions[index] if self.conditions is not None else None
        return _item(image, self.labels[index], conditions, self._shard, row, self._columns)


class Parquet:
    """One Parquet file, a folder of shards, or a URI of either (file://, s3://, gs://, hdfs://).

    `image_column` names the image column. Default: the only column of encoded images (binary, or
    Hugging Face's struct<bytes, path>). `label_column` names the label column. Default: the first
    of `label`, `labels`, `fine_label`, `class` and `target` that holds labels. See `labels.py` for
    the classes that come of labels. `labels` "none" leaves them out. `conditions` are columns of
    numbers.

    The data set has its own splits if the names of some shards (or of their folders) say train, and
    the names of others validation or test; see `layout.py`. If both exist, validation is held out,
    and test is not read.
    """

    kind = "parquet"
    field = "data.path"

    def __init__(
        self,
        *,
        path: str,
        image_column: str | None = None,
        label_column: LabelColumn | None = None,
        labels: Literal["auto", "none"] = "auto",
        conditions: Sequence[str] = (),
        rules: Literal[1, 2] = 2,
    ) -> None:
        self.rules: Literal[1, 2] = rules
        self.labels = labels
        self.conditions = tuple(conditions)
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.file_system: Any = None  # pyarrow's, known once the shards are listed
        self._found: list[_Shard] | None = None
        self._root = ""  # the folder of the data set in the file system
        self._watched: dict[str, tuple[int, int]] = {}
        self._footers: dict[str, pq.FileMetaData] = {}

    def identity(self) -> object:
        """Relative path, size and time of every shard, and the columns."""
        self._found = self._list()
        self._watched = {}
        told: dict[str, Any] = {
            "shards": [[s.path, s.split, s.size, s.mtime_ns] for s in self._found],
            "image_column": self.image_column,
            "label_column": self.label_column,
        }
        if self.conditions:
            told["conditions"] = self.conditions
        return told if self.rules == 1 else {**told, "labels": self.labels}

    def listing(self) -> Listing:
        groups, columns = self.row_groups()
        count = sum(group.rows for group in groups)
        return Listing(
            count,
            self.items(groups, columns),
            columns.class_names,
            columns.watched,
            notes=columns.notes,
            no_classes=columns.no_classes,
            condition_names=columns.conditions.names,
        )

    def row_groups(self) -> tuple[list[RowGroup], Columns]:
        """All row groups, in the order of the rows, and the columns. Reads only the footers and
        labels of the shards.

        It reads the labels of all shards before any image. Labels are small, and so it refuses an
        unusable label at once, not after hours of decoding.
        """
        shards = self._found or self._list()
        groups: list[RowGroup] = []
        schemas: dict[_Shard, pa.Schema] = {}

        def look(shard: _Shard) -> tuple[list[RowGroup], pa.Schema]:
            with self._file(shard) as file:
                told = map(file.metadata.row_group, range(file.num_row_groups))
                found = [
                    RowGroup(shard, number, group.num_rows, group.total_byte_size)
                    for number, group in enumerate(told)
                ]
                return found, file.schema_arrow

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "footers") as pool:
            looks = pool.map(
                lambda shard: self._asked(shard.location, partial(look, shard)), shards
            )
            for shard, (found, schema) in zip(shards, looks, strict=True):
                groups += found
                schemas[shard] = schema
        first = schemas[shards[0]]
        image = image_column(
            first,
            self.image_column,
            shards[0].location,
            lambda name: raw_shape(first, name) is not None,
        )
        self._check_all_have(image, schemas)
        shape = raw_shape(first, image)
        element = raw_element(first)
        if self.rules == 1:
            label, names, count = self._labels_1(schemas)
            return groups, Columns(image, label, names, count, shape, element, rules=1)
        columns = Columns(image, None, None, None, shape, element, beside=self._beside())
        columns = replace(columns, conditions=self._conditions(schemas))
        return groups, self._labelled(columns, schemas)

    def _conditions(self, schemas: Mapping[_Shard, pa.Schema]) -> Conditions:
        """The numbers to condition on. Reads those of all shards, to refuse a missing one before
        any image is decoded."""
        found = conditions_of(
            self.conditions, ((shard.location, schema) for shard, schema in schemas.items())
        )

        def look(shard: _Shard) -> None:
            with self._file(shard) as file:
                row = 0
                for part in _values(file, found.columns):
                    found.of(part, shard.location, row)
                    row += len(part)

        if found.columns:
            with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "conditions") as pool:
                list(pool.map(lambda s: self._asked(s.location, partial(look, s)), schemas))
        return found

    def _beside(self) -> Beside:
        uri = self.path if "://" in self.path else None
        return Beside(self.file_system, self._root, uri, self._watched)

    def _check_all_have(self, name: str, schemas: Mapping[_Shard, pa.Schema]) -> None:
        """Raises DataError if a shard lacks a column of the first."""
        first = next(iter(schemas))
        for shard, schema in schemas.items():
            if name not in schema.names:
                raise DataError(
                    f"{self.field}: {shard.location} has no column {name!r}, unlike"
                    f" {first.location}; keep only shards of one data set in a folder"
                )

    def _labelled(self, columns: Columns, schemas: Mapping[_Shard, pa.Schema]) -> Columns:
        """`columns` with the labels of all shards."""
        if self.labels == "none":
            return replace(columns, no_classes="data.labels is none; set it to auto")
        asked, first = self.label_column, next(iter(schemas))
        for name in columns_of(asked):
            check_exists(schemas[first].names, "data.label_column", name, first.location)
            self._check_all_have(name, schemas)

        def read(column: LabelColumn) -> list[Column]:
            """What the column holds in all shards."""

            def look(shard: _Shard) -> Column:
                with self._file(shard) as file:
                    rows, schema = file.metadata.num_rows, file.schema_arrow
                    return of_file(_values(file, column), rows, schema, column, shard.location)

            with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "labels") as pool:
                return list(pool.map(lambda s: self._asked(s.location, partial(look, s)), schemas))

        by_name = {shard.location: schema for shard, schema in schemas.items()}
        found = choice(by_name, asked, (columns.image, *self.conditions), read)
        columns = replace(columns, notes=found.notes, no_classes=found.no_classes)
        if found.classes is None or not found.classes.names:
            return columns
        return replace(
            columns,
            label=found.column,
            class_names=found.classes.names,
            label_count=None if found.classes.without else len(found.classes.names),
            classes=found.classes,
        )

    def _labels_1(
        self, schemas: Mapping[_Shard, pa.Schema]
    ) -> tuple[str | None, tuple[str, ...] | None, int | None]:
        """The label column, the class names and the number of classes, by the first rules."""
        first = next(iter(schemas))
        (asked,) = columns_of(self.label_column) or (None,)
        label = label_column_1(schemas[first], asked, first.location)
        if label is None:
            return None, None, None
        self._check_all_have(label, schemas)
        values: set[int | str] = set()

        def look(shard: _Shard) -> list[int | str]:
            with self._file(shard) as file:
                labels = file.read(columns=[label]).column(label)
                return checked_labels(labels, label, shard.location)

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "labels") as pool:
            for found in pool.map(
                lambda shard: self._asked(shard.location, partial(look, shard)), schemas
            ):
                values.update(found)
        names = tuple(sorted(v for v in values if isinstance(v, str)))
        names = names or names_in(schemas[first], label) or ()
        numbers = [value + 1 for value in values if not isinstance(value, str)]
        return label, names or None, max(len(names), *numbers, 0)

    def items(self, groups: Iterable[RowGroup], columns: Columns) -> Iterator[Item]:
        """The rows of row groups, a few at a time: memory holds at most one row group."""
        import pyarrow as pa

        for shard, of_shard in itertools.groupby(groups, lambda group: group.shard):
            with self._open(shard) as file:
                first_rows = _first_rows(file)
                try:
                    for group in of_shard:
                        row = first_rows[group.number]
                        for batch in file.iter_batches(
                            _ROWS_AT_ONCE, row_groups=[group.number], columns=columns.names
                        ):
                            yield from _items(batch, shard, row, columns)
                            row += len(batch)
                except (pa.ArrowException, OSError) as error:
                    raise self._unreadable(shard.location, error) from error

    def read(self, group: RowGroup, columns: Columns) -> RowsInMemory:
        """A whole row group, still encoded."""

        def attempt() -> RowsInMemory:
            with self._file(group.shard) as file:
                table = file.read_row_group(group.number, columns=columns.names)
                return RowsInMemory(table, group.shard, _first_rows(file)[group.number], columns)

        return self._asked(group.shard.location, attempt)

    def _open(self, shard: _Shard) -> pq.ParquetFile:
        return self._asked(shard.location, partial(self._file, shard))

    def _asked(self, location: str, attempt: Callable[[], _T]) -> _T:
        """Calls `attempt`, which reads a file, and returns its result. For a URI, repeats it while
        the storage fails; training meanwhile uses the images that were read ahead. Raises
        StorageError if the storage does not come back, DataError if the file cannot be read."""
        import pyarrow as pa

        def told() -> _T:
            try:
                with suppress(OSError):
                    return attempt()
            except pa.ArrowException as error:
                raise self._unreadable(location, error) from error
            # Arrow raises OSError for damaged bytes, too. If the storage answers, they are damaged.
            with self.file_system.open_input_file(location) as file:
                file.read(1)
            try:
                return attempt()
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(location, error) from error

        try:
            return tried(told, self.path) if "://" in self.path else attempt()
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(location, error) from error

    def _file(self, shard: _Shard) -> pq.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as pq

        opened = self.file_system.open_input_file(shard.location)
        footer = self._footers.get(shard.location)  # read only once: behind a URI it takes a while
        try:
            file = pq.ParquetFile(opened, metadata=footer, pre_buffer=True)
        except pa.ArrowException as error:
            raise DataError(
                f"{self.field}: {shard.location} is not a whole Parquet file ({reason(error)});"
                " download or write it again"
            ) from error
        self._footers[shard.location] = file.metadata
        return file

    def _unreadable(self, location: str, error: Exception) -> DataError:
        return DataError(
            f"{self.field}: {location} cannot be read: {reason(error)};"
            " check that it is whole and that this user has access to it"
        )

    def _list(self) -> list[_Shard]:
        import pyarrow as pa
        from pyarrow import fs

        from ray_gen.data.sources import hub

        def attempt() -> tuple[Any, list[Any]]:
            info = self.file_system.get_file_info(location)
            if info.type != fs.FileType.Directory:
                return info, [info]
            return info, self.file_system.get_file_info(fs.FileSelector(location, recursive=True))

        try:
            if "://" in self.path:
                self.file_system, location = hub.opened(self.path)
                info, entries = tried(attempt, self.path)
            else:
                self.file_system = fs.LocalFileSystem()
                location = str(Path(self.path).expanduser().absolute())
                info, entries = attempt()
        except pa.ArrowException as error:
            raise DataError(
                f"{self.field}: {self.path} is not a URI that can be read ({reason(error)});"
                " use a local path, file://, s3://, gs://, hdfs:// or hf://datasets/OWNER/NAME"
            ) from error
        except OSError as error:
            raise self._unreadable(self.path, error) from error
        if info.type == fs.FileType.NotFound:
            raise DataError(
                f"{self.field}: {self.path} does not exist on the machine that reads it;"
                " give a Parquet file or a folder of Parquet files"
            )
        is_folder = info.type == fs.FileType.Directory
        self._root = location.rstrip("/") if is_folder else location.rpartition("/")[0]
        if is_folder:
            named = {entry.path[len(location) :].strip("/"): entry for entry in entries}
        else:
            named = {info.base_name: info}
        if PLAN in named and MANIFEST not in named:
            raise DataError(
                f"{self.field}: {self.path} is not complete: its conversion did not finish;"
                " run the same ray-gen data convert command again to continue it"
            )
        # Writers of Parquet leave "_SUCCESS", "_metadata" and ".crc" files beside shards.
        shards = {
            path: entry
            for path, entry in sorted(named.items())
            if entry.is_file
            and (entry is info or path.endswith(".parquet"))
            and not any(part.startswith((".", "_")) for part in path.split("/"))
        }
        if not shards:
            remedy = "for a folder of images set data.kind=folder"
            if "://" in self.path:
                remedy = "give a folder that has (on the hub: OWNER/NAME@refs/convert/parquet)"
            raise DataError(
                f"{self.field}: {self.path} has no files whose names end in .parquet; {remedy}"
            )
        own = splits_of_shards if self.rules == 2 else splits_of_shards_1
        splits = own(list(shards), self.path)
        return [
            _Shard(entry.path, path, splits[path], entry.size, entry.mtime_ns or 0)
            for path, entry in shards.items()
            if path in splits
        ]


def _values(file: pq.ParquetFile, column: LabelColumn) -> Iterator[pa.Table]:
    """The columns of labels of a file, a part of its row groups at a time."""
    numbers: list[int] = []
    rows = 0
    for number in range(file.num_row_groups):
        numbers.append(number)
        rows += file.metadata.row_group(number).num_rows
        if rows >= _LABELS_AT_ONCE or number + 1 == file.num_row_groups:
            yield file.read_row_groups(numbers, columns=list(columns_of(column)))
            numbers, rows = [], 0


def _first_rows(file: pq.ParquetFile) -> list[int]:
    """The first row of each row group, counted in the file."""
    rows = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    return list(itertools.accumulate(rows, initial=0))


def _items(
    batch: pa.RecordBatch, shard: _Shard, first_row: int, columns: Columns
) -> Iterator[Item]:
    images: list[Any] = batch.column(columns.image).to_pylist()
    labels = given(batch, columns.label) or [None] * len(images)
    numbers = columns.conditions.of(batch, shard.location, first_row) or [None] * len(images)
    of_rows = zip(images, labels, numbers, strict=True)
    for row, (image, label, conditions) in enumerate(of_rows, first_row):
        yield _item(image, _class_of(label, shard, columns), conditions, shard, row, columns)


def _item(
    image: Stored,
    label: int | None,
    conditions: tuple[float, ...] | None,
    shard: _Shard,
    row: int,
    columns: Columns,
) -> Item:
    folder = shard.location.rpartition("/")[0]
    return Item(
        key=f"{shard.path}:{row}",
        name=f"{shard.location}, row {row}",
        split=shard.split,
        load=partial(_load, image, label, columns, folder),
        encoded=None if columns.shape_HWC else partial(bytes_of, image, columns.beside, folder),
        conditions=conditions,
    )


def _class_of(label: Any, shard: _Shard, columns: Columns) -> int | None:
    if label is None:
        return None
    if columns.classes is not None:
        return columns.classes.of(shard.location, label)
    return columns.index[label] if isinstance(label, str) else int(label)


def raw_metadata(
    column: str, shape_HWC: tuple[int, int, int], element: str = "uint8"
) -> dict[bytes, bytes]:
    """Metadata of a schema whose column holds images as raw pixels, in fixed_size_binary."""
    told: dict[str, Any] = {"column": column, "shape_HWC": shape_HWC}
    if element != "uint8":
        told["element"] = element
    return {_RAW: json.dumps(told).encode()}


def raw_element(schema: pa.Schema) -> str:
    """Type of the numbers of raw pixels: "uint8", "uint16" or "float16"."""
    try:
        element = json.loads((schema.metadata or {})[_RAW]).get("element", "uint8")
    except (KeyError, AttributeError, ValueError):
        return "uint8"
    return element if element in ELEMENTS else "uint8"


def raw_shape(schema: pa.Schema, column: str) -> tuple[int, int, int] | None:
    """(height, width, channels) of a column of raw pixels. None for any other column."""
    try:
        told = json.loads((schema.metadata or {})[_RAW])
        height, width, channels = (int(side) for side in told["shape_HWC"])
        size = height * width * channels * np.dtype(raw_element(schema)).itemsize
        fits = told["column"] == column and schema.field(column).type.byte_width == size
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return (height, width, channels) if fits and 1 <= channels <= LARGEST_CHANNELS else None


_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's modes of raw pixels of 8 bits, by the number of channels."""


def _load(
    stored: Stored, label: int | None, columns: Columns, folder: str
) -> tuple[Image | Bands, int | None]:
    if columns.shape_HWC is not None and isinstance(stored, bytes):
        height, width, channels = columns.shape_HWC
        if columns.element == "uint8" and channels in _MODES:
            from PIL import Image

            return Image.frombytes(_MODES[channels], (width, height), stored), label
        values = np.frombuffer(stored, columns.element).reshape(columns.shape_HWC)
        return Bands(values, alpha=channels in (2, 4), scaled=True), label
    data = io.BytesIO(bytes_of(stored, columns.beside, folder))
    if columns.rules == 1:
        return read_image_1(data), label
    return read_picture(data), label
