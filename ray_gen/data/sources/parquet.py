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
from ray_gen.data.sources.base import Item, Listing, read_image_1
from ray_gen.data.sources.conditions import Conditions
from ray_gen.data.sources.labels import (
    Classes,
    LabelColumn,
    columns_of,
    given,
    names_in,
)
from ray_gen.data.sources.layout import splits_of_shards
from ray_gen.data.sources.rows import Beside, Stored, bytes_of, image_column
from ray_gen.data.sources.tables import Shard, Tables
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
_FILES_AT_ONCE = 16
"""An object store answers in about 50 ms: in parallel, 1,000 shards take 3 s, not a minute."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The part of a Parquet file that is read at once."""

    shard: Shard
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
    opacity: bool = True
    """Whether the last channel of raw pixels is opacity, if there are 2 or 4."""
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
    parts: tuple[str, ...] = ()
    """Columns that `image` is made of when rows are read. Empty: it is a column itself."""

    @property
    def names(self) -> list[str]:
        """Names of the columns of images, of labels and of conditions."""
        images = self.parts or (self.image,)
        return list(dict.fromkeys((*images, *columns_of(self.label), *self.conditions.columns)))

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

    def __init__(self, table: pa.Table, shard: Shard, first_row: int, columns: Columns) -> None:
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


class Parquet(Tables):
    """One Parquet file, a folder of shards, or a URI of either (file://, s3://, gs://, hdfs://).
    For the settings see `Tables`.

    The data set has its own splits if the names of some shards (or of their folders) say train, and
    the names of others validation or test; see `layout.py`. If both exist, validation is held out,
    and test is not read.
    """

    kind = "parquet"
    writer = "ray-gen data convert"
    """The command that writes such a folder, for messages."""

    def __init__(self, *, rules: Literal[1, 2] = 2, **settings: Any) -> None:
        """settings: see `Tables`."""
        super().__init__(**settings)
        self.rules: Literal[1, 2] = rules
        self.file_system: Any = None  # pyarrow's, known once the shards are listed
        self._root = ""  # the folder of the data set in the file system
        self._footers: dict[str, pq.FileMetaData] = {}

    def identity(self) -> object:
        """See `Tables`."""
        told: Any = super().identity()
        if self.rules == 1:
            del told["labels"]
        return told

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
        """All row groups, in the order of the rows, and the columns. Reads only the footers, labels
        and numbers of the shards, before any image."""
        shards = {shard.location: shard for shard in self._found or self._list()}

        def look(location: str) -> tuple[list[RowGroup], pa.Schema]:
            with self._file(location) as file:
                told = map(file.metadata.row_group, range(file.num_row_groups))
                found = [
                    RowGroup(shards[location], number, group.num_rows, group.total_byte_size)
                    for number, group in enumerate(told)
                ]
                return found, file.schema_arrow

        looks = dict(zip(shards, self._of_all(look, shards), strict=True))
        groups = [group for found, _ in looks.values() for group in found]
        schemas = {location: schema for location, (_, schema) in looks.items()}
        location, first = next(iter(schemas.items()))
        columns = self._of_images(first, location)
        for name in columns.parts or (columns.image,):
            self._check_all_have(name, schemas)
        if self.rules == 1:
            label, names, count = self._labels_1(schemas)
            return groups, replace(
                columns, label=label, class_names=names, label_count=count, rules=1
            )
        conditions = self._conditions(schemas)
        rows = {location: sum(g.rows for g in found) for location, (found, _) in looks.items()}
        labels = self._labels(schemas, rows, columns.image)
        columns = replace(
            columns,
            beside=self._beside(),
            conditions=conditions,
            notes=labels.notes,
            no_classes=labels.no_classes,
        )
        classes = labels.classes
        if classes is None or not classes.names:
            return groups, columns
        return groups, replace(
            columns,
            label=labels.column,
            class_names=classes.names,
            label_count=None if classes.without else len(classes.names),
            classes=classes,
        )

    def _of_images(self, schema: pa.Schema, location: str) -> Columns:
        """The column of the images, and how they are stored. Raises DataError."""
        image = image_column(
            schema, self.image_column, location, lambda name: raw_shape(schema, name) is not None
        )
        shape, element = raw_shape(schema, image), raw_element(schema)
        return Columns(image, None, None, None, shape, element, opacity=raw_opacity(schema))

    def _with_images(self, rows: pa.Table, columns: Columns) -> pa.Table:
        """Rows that were read, with the column `columns.image`."""
        return rows

    def _of_all(self, work: Callable[[str], _T], locations: Iterable[str]) -> list[_T]:
        """See `Tables`. Reads several files at once."""
        with ThreadPoolExecutor(_FILES_AT_ONCE, "shards") as pool:
            return list(pool.map(lambda place: self._asked(place, partial(work, place)), locations))

    def _parts(self, location: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """See `Tables`. Reads some row groups at a time."""
        with self._file(location) as file:
            yield from _values(file, columns)

    def _beside(self) -> Beside:
        uri = self.path if "://" in self.path else None
        return Beside(self.file_system, self._root, uri, self._watched)

    def _labels_1(
        self, schemas: Mapping[str, pa.Schema]
    ) -> tuple[str | None, tuple[str, ...] | None, int | None]:
        """The label column, the class names and the number of classes, by the first rules."""
        first = next(iter(schemas))
        (asked,) = columns_of(self.label_column) or (None,)
        label = label_column_1(schemas[first], asked, first)
        if label is None:
            return None, None, None
        self._check_all_have(label, schemas)
        values: set[int | str] = set()

        def look(location: str) -> list[int | str]:
            with self._file(location) as file:
                labels = file.read(columns=[label]).column(label)
                return checked_labels(labels, label, location)

        for found in self._of_all(look, schemas):
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
                            table = self._with_images(pa.Table.from_batches([batch]), columns)
                            yield from _items(table, shard, row, columns)
                            row += len(batch)
                except (pa.ArrowException, OSError) as error:
                    raise self._unreadable(shard.location, error) from error

    def read(self, group: RowGroup, columns: Columns) -> RowsInMemory:
        """A whole row group, still encoded."""

        def attempt() -> RowsInMemory:
            with self._file(group.shard.location) as file:
                table = file.read_row_group(group.number, columns=columns.names)
                table = self._with_images(table, columns)
                return RowsInMemory(table, group.shard, _first_rows(file)[group.number], columns)

        return self._asked(group.shard.location, attempt)

    def _open(self, shard: Shard) -> pq.ParquetFile:
        return self._asked(shard.location, partial(self._file, shard.location))

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

    def _file(self, location: str) -> pq.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as pq

        opened = self.file_system.open_input_file(location)
        footer = self._footers.get(location)  # read only once: behind a URI it takes a while
        try:
            file = pq.ParquetFile(opened, metadata=footer, pre_buffer=True)
        except pa.ArrowException as error:
            raise DataError(
                f"{self.field}: {location} is not a whole Parquet file ({reason(error)});"
                " download or write it again"
            ) from error
        self._footers[location] = file.metadata
        return file

    def _unreadable(self, location: str, error: Exception) -> DataError:
        return DataError(
            f"{self.field}: {location} cannot be read: {reason(error)};"
            " check that it is whole and that this user has access to it"
        )

    def _list(self) -> list[Shard]:
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
                f" run the same {self.writer} command again to continue it"
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
        if MANIFEST in named and self.rules == 2:
            sizes = {path.rpartition("/")[2]: entry.size for path, entry in shards.items()}
            self._check_complete(named[MANIFEST].path, sizes)
        own = splits_of_shards if self.rules == 2 else splits_of_shards_1
        splits = own(list(shards), self.path)
        return [
            Shard(entry.path, path, splits[path], entry.size, entry.mtime_ns or 0)
            for path, entry in shards.items()
            if path in splits
        ]

    def _check_complete(self, manifest: str, sizes: Mapping[str, int]) -> None:
        """Raises DataError if a shard that the manifest lists is missing, or has another size.
        sizes: of the files that are there, by name."""

        def read() -> bytes:
            with self.file_system.open_input_file(manifest) as file:
                return file.read()

        try:
            text = tried(read, self.path) if "://" in self.path else read()
        except OSError as error:
            raise self._unreadable(manifest, error) from error
        try:
            told = json.loads(text)
            ours = isinstance(told["digest"], str) and isinstance(told["images"], dict)
            promised = told["shards"].items() if ours else ()
            problems = [(name, shard_problem(name, shard, sizes)) for name, shard in promised]
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # somebody else's file of this name
        for name, problem in problems:
            if problem is not None:
                raise DataError(
                    f"{self.field}: {name} in {self.path} {problem}, by the {MANIFEST} beside it;"
                    f" copy it again, or run the same {self.writer} command again, which writes it"
                )


def shard_problem(name: str, told: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    """What is wrong with a shard that ray_gen wrote. None: nothing is known to be.

    told: what was recorded of it; older versions recorded no size. sizes: of the files that are
    there, by name.
    """
    if name not in sizes:
        return "is missing"
    return None if told.get("bytes") in (None, sizes[name]) else "is not whole"


def _values(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a file, a part of its row groups at a time."""
    numbers: list[int] = []
    rows = 0
    for number in range(file.num_row_groups):
        numbers.append(number)
        rows += file.metadata.row_group(number).num_rows
        if rows >= _LABELS_AT_ONCE or number + 1 == file.num_row_groups:
            yield file.read_row_groups(numbers, columns=list(columns))
            numbers, rows = [], 0


def _first_rows(file: pq.ParquetFile) -> list[int]:
    """The first row of each row group, counted in the file."""
    rows = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    return list(itertools.accumulate(rows, initial=0))


def _items(batch: pa.Table, shard: Shard, first_row: int, columns: Columns) -> Iterator[Item]:
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
    shard: Shard,
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


def _class_of(label: Any, shard: Shard, columns: Columns) -> int | None:
    if label is None:
        return None
    if columns.classes is not None:
        return columns.classes.of(shard.location, label)
    return columns.index[label] if isinstance(label, str) else int(label)


def raw_metadata(
    column: str,
    shape_HWC: tuple[int, int, int],
    element: str = "uint8",
    opacity: bool | None = None,
) -> dict[bytes, bytes]:
    """Metadata of a schema whose column holds images as raw pixels, in fixed_size_binary. opacity:
    whether the last channel is opacity. None: if there are 2 or 4."""
    told: dict[str, Any] = {"column": column, "shape_HWC": shape_HWC}
    if opacity is not None and opacity != (shape_HWC[2] in (2, 4)):
        told["opacity"] = opacity
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


def raw_opacity(schema: pa.Schema) -> bool:
    """Whether the last channel of raw pixels is opacity, if there are 2 or 4."""
    try:
        return bool(json.loads((schema.metadata or {})[_RAW]).get("opacity", True))
    except (KeyError, AttributeError, ValueError):
        return True


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
        opacity = columns.opacity and channels in (2, 4)
        if columns.element == "uint8" and (channels in (1, 3) or opacity):
            from PIL import Image

            return Image.frombytes(_MODES[channels], (width, height), stored), label
        values = np.frombuffer(stored, columns.element).reshape(columns.shape_HWC)
        return Bands(values, alpha=opacity, scaled=True), label
    data = io.BytesIO(bytes_of(stored, columns.beside, folder))
    if columns.rules == 1:
        return read_image_1(data), label
    return read_picture(data), label
