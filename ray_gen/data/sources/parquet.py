"""Parquet files with an image in each row: Hugging Face's layout, or a plain binary column."""

from __future__ import annotations

import difflib
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ray_gen.data.errors import DataError, reason
from ray_gen.data.sources.base import HELD_OUT_NAMES, Item, Listing, SplitName, read_image
from ray_gen.storage import limited, tried

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray
    from PIL.Image import Image

_T = TypeVar("_T")
_SPLIT_NAME = re.compile(rf"(train|{'|'.join(HELD_OUT_NAMES)})(?![A-Za-z0-9])")
PLAN = "_plan.json"
"""Name of a file in a folder that `ray-gen data convert` has begun to write."""
MANIFEST = "_manifest.json"
"""Name of a file in a folder that `ray-gen data convert` has written completely."""
_RAW = b"ray_gen"
_ROWS_AT_ONCE = 64
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
    label: str | None
    class_names: tuple[str, ...] | None
    label_count: int | None
    """Number of classes. None without labels."""
    shape_HWC: tuple[int, int, int] | None
    """Shape of images that are stored as raw pixels. None if images are encoded."""

    @property
    def names(self) -> list[str]:
        """Names of the image column and, if there is one, the label column."""
        return [name for name in (self.image, self.label) if name is not None]

    @cached_property
    def index(self) -> dict[str, int]:
        """The class of each label that is a string."""
        return {name: i for i, name in enumerate(self.class_names or ())}


class RowsInMemory(Sequence[Item]):
    """The rows of a row group in memory, encoded as they were stored."""

    def __init__(self, table: pa.Table, shard: _Shard, first_row: int, columns: Columns) -> None:
        self._images: Any = table.column(columns.image).combine_chunks()
        self._labels: Any = None
        if columns.label is not None:
            self._labels = table.column(columns.label).combine_chunks()
        self._shard = shard
        self._first_row = first_row
        self._columns = columns

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def pixels_NHWC(self) -> NDArray[np.uint8] | None:  # noqa: N802
        """The images as a view of memory. None if they are encoded."""
        import numpy as np

        shape = self._columns.shape_HWC
        if shape is None or self._images.null_count:
            return None
        start = self._images.offset * math.prod(shape)
        flat = np.frombuffer(self._images.buffers()[1], np.uint8)
        return flat[start : start + len(self) * math.prod(shape)].reshape(len(self), *shape)

    @cached_property
    def labels(self) -> list[int | None]:
        """The class of each row. None for rows without labels."""
        if self._labels is None:
            return [None] * len(self)
        return [_class_of(label, self._columns) for label in self._labels.to_pylist()]

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label = None if self._labels is None else self._labels[index].as_py()
        image = self._images[index].as_py()
        return _item(image, label, self._shard, self._first_row + index, self._columns)


class Parquet:
    """One Parquet file, a folder of shards, or a URI of either (file://, s3://, gs://, hdfs://).

    `image_column` names the image column. Default: the only column of encoded images (binary, or
    Hugging Face's struct<bytes, path>). `label_column` names the label column. Default: `label`, if
    it exists and holds integers or strings. Strings become classes in the order of their sorted
    names. The data set has its own splits if the names of some shards (or of their folders)
    begin with `train`, and the names of others with `validation`, `valid`, `val` or `test`. If
    several of these held-out names exist, the first in this order is held out, and the others are
    not read.
    """

    kind = "parquet"
    field = "data.path"

    def __init__(
        self, *, path: str, image_column: str | None = None, label_column: str | None = None
    ) -> None:
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.file_system: Any = None  # pyarrow's, known once the shards are listed
        self._found: list[_Shard] | None = None
        self._footers: dict[str, pq.FileMetaData] = {}

    def identity(self) -> object:
        """Relative path, size and time of every shard, and the columns."""
        self._found = self._list()
        return {
            "shards": [[s.path, s.split, s.size, s.mtime_ns] for s in self._found],
            "image_column": self.image_column,
            "label_column": self.label_column,
        }

    def listing(self) -> Listing:
        groups, columns = self.row_groups()
        count = sum(group.rows for group in groups)
        return Listing(count, self.items(groups, columns), columns.class_names)

    def row_groups(self) -> tuple[list[RowGroup], Columns]:
        """All row groups, in the order of the rows, and the columns. Reads only the footers and
        labels of the shards.

        It reads the labels of all shards before any image. Labels are small, and so it refuses an
        unusable label at once, not after hours of decoding.
        """
        shards = self._found or self._list()
        with self._open(shards[0]) as file:
            schema = file.schema_arrow
        image = _image_column(schema, self.image_column, shards[0].location)
        label = _label_column(schema, self.label_column, shards[0].location)
        groups: list[RowGroup] = []
        values: set[int | str] = set()

        def look(shard: _Shard) -> tuple[list[RowGroup], list[int | str]]:
            with self._file(shard) as file:
                for name in (image, label):
                    if name is not None and name not in file.schema_arrow.names:
                        raise DataError(
                            f"{self.field}: {shard.location} has no column {name!r}, unlike"
                            f" {shards[0].location}; keep only shards of one data set in a folder"
                        )
                told = map(file.metadata.row_group, range(file.num_row_groups))
                found = [
                    RowGroup(shard, number, group.num_rows, group.total_byte_size)
                    for number, group in enumerate(told)
                ]
                if label is None:
                    return found, []
                labels = file.read(columns=[label]).column(label)
                return found, _checked(labels, label, shard.location)

        def asked(shard: _Shard) -> tuple[list[RowGroup], list[int | str]]:
            return self._asked(shard.location, partial(look, shard))

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "footers") as pool:
            for found, labels in pool.map(asked, shards):
                groups += found
                values.update(labels)
        names = tuple(sorted(v for v in values if isinstance(v, str)))
        names = names or _written_names(schema, label)
        numbers = [value + 1 for value in values if not isinstance(value, str)]
        count = None if label is None else max(len(names or ()), *numbers, 0)
        return groups, Columns(image, label, names, count, raw_shape(schema, image))

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

        def attempt() -> tuple[Any, list[Any]]:
            info = self.file_system.get_file_info(location)
            if info.type != fs.FileType.Directory:
                return info, [info]
            return info, self.file_system.get_file_info(fs.FileSelector(location, recursive=True))

        try:
            if "://" in self.path:
                self.file_system, location = fs.FileSystem.from_uri(limited(self.path))
                info, entries = tried(attempt, self.path)
            else:
                self.file_system = fs.LocalFileSystem()
                location = str(Path(self.path).expanduser().absolute())
                info, entries = attempt()
        except pa.ArrowException as error:
            raise DataError(
                f"{self.field}: {self.path} is not a URI that can be read ({reason(error)});"
                " use a local path, file://, s3://, gs:// or hdfs://"
            ) from error
        except OSError as error:
            raise self._unreadable(self.path, error) from error
        if info.type == fs.FileType.NotFound:
            raise DataError(
                f"{self.field}: {self.path} does not exist on the machine that reads it;"
                " give a Parquet file or a folder of Parquet files"
            )
        if info.type == fs.FileType.Directory:
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
            raise DataError(
                f"{self.field}: {self.path} has no files whose names end in .parquet;"
                " for a folder of images set data.kind=folder"
            )
        splits = _own_splits(list(shards), self.path)
        return [
            _Shard(entry.path, path, splits[path], entry.size, entry.mtime_ns or 0)
            for path, entry in shards.items()
            if path in splits
        ]


def _first_rows(file: pq.ParquetFile) -> list[int]:
    """The first row of each row group, counted in the file."""
    rows = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    return list(itertools.accumulate(rows, initial=0))


def _items(
    batch: pa.RecordBatch, shard: _Shard, first_row: int, columns: Columns
) -> Iterator[Item]:
    images: list[Any] = batch.column(columns.image).to_pylist()
    labels: list[Any] = [None] * len(images)
    if columns.label is not None:
        labels = batch.column(columns.label).to_pylist()
    for row, (image, label) in enumerate(zip(images, labels, strict=True), first_row):
        yield _item(image, label, shard, row, columns)


def _item(
    image: bytes | dict[str, Any] | None,
    label: Any,
    shard: _Shard,
    row: int,
    columns: Columns,
) -> Item:
    return Item(
        key=f"{shard.path}:{row}",
        name=f"{shard.location}, row {row}",
        split=shard.split,
        load=partial(_load, image, _class_of(label, columns), columns.shape_HWC),
        encoded=None if columns.shape_HWC else partial(_bytes_of, image),
    )


def _class_of(label: Any, columns: Columns) -> int | None:
    if label is None:
        return None
    return columns.index[label] if isinstance(label, str) else int(label)


def _own_splits(paths: list[str], folder: str) -> dict[str, SplitName | None]:
    """The split of each shard to read. None for all if the data set has no splits."""
    named: dict[str, str | None] = {}
    for path in paths:
        matches = [_SPLIT_NAME.match(part) for part in reversed(path.split("/")[-2:])]
        named[path] = next((match[1] for match in matches if match), None)
    held_out = next((name for name in HELD_OUT_NAMES if name in named.values()), None)
    if held_out is None or "train" not in named.values():
        return dict.fromkeys(paths)
    nameless = next((path for path, name in named.items() if name is None), None)
    if nameless is not None:
        raise DataError(
            f"data.path: {folder} has shards of the splits train and {held_out}, but the name"
            f" {nameless} begins with no split; move this file away or rename it to train-..."
        )
    names: dict[str | None, SplitName] = {"train": "train", held_out: "held_out"}
    return {path: names[name] for path, name in named.items() if name in names}


def _image_column(schema: pa.Schema, given: str | None, location: str) -> str:
    if given is not None:
        _check_column(schema, "data.image_column", given, location)
        if not _holds_images(schema.field(given).type) and raw_shape(schema, given) is None:
            raise DataError(
                f"data.image_column: {given!r} of {location} is {schema.field(given).type}; give a"
                " column of encoded images, binary or struct<bytes, path>"
            )
        return given
    raw = [name for name in schema.names if raw_shape(schema, name) is not None]
    if raw:
        return raw[0]
    candidates = [column.name for column in schema if _holds_images(column.type)]
    features = _features(schema)
    images = [name for name in candidates if features.get(name, {}).get("_type") == "Image"]
    candidates = images or candidates
    if not candidates:
        columns = ", ".join(f"{column.name}: {column.type}" for column in schema)
        raise DataError(
            f"data.path: {location} has no column of encoded images, binary or"
            f" struct<bytes, path> ({columns}); write the images as PNG or JPEG bytes"
        )
    if len(candidates) > 1:
        raise DataError(
            f"data.image_column: {location} has several columns that can hold images"
            f" ({', '.join(candidates)}); set data.image_column to one, e.g. {candidates[0]}"
        )
    return candidates[0]


def _holds_images(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _label_column(schema: pa.Schema, given: str | None, location: str) -> str | None:
    name = given or "label"
    if given is None and name not in schema.names:
        return None
    _check_column(schema, "data.label_column", name, location)
    kind = schema.field(name).type
    if _holds_labels(kind):
        return name
    if given is None:
        return None
    raise DataError(
        f"data.label_column: {name!r} of {location} is {kind}; give a column of integers or strings"
    )


def _holds_labels(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_boolean(kind) or _holds_names(kind)


def _holds_names(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_names(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _check_column(schema: pa.Schema, field: str, name: str, location: str) -> None:
    if name in schema.names:
        return
    near = difflib.get_close_matches(name, schema.names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(schema.names)}"
    raise DataError(f"{field}: {location} has no column {name!r}; {hint}")


def _checked(labels: pa.ChunkedArray, column: str, location: str) -> list[int | str]:
    """The distinct labels. Raises DataError if a row has no label (null, or a negative number)."""
    values = labels.unique().to_pylist()
    for value in values:
        if value is None or (not isinstance(value, str) and value < 0):
            row = labels.to_pylist().index(value)
            raise DataError(
                f"data.label_column: row {row} of {location} has the label {value} in {column!r},"
                " but a class is 0 or more; remove such rows, or move this file out of data.path"
            )
    return values


def _written_names(schema: pa.Schema, column: str | None) -> tuple[str, ...] | None:
    """Class names that Hugging Face's ClassLabel stores with integer labels."""
    known = _features(schema).get(column or "", {}).get("names")
    return tuple(known) if isinstance(known, list) and known else None


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Hugging Face's description of each column. Empty if there is none."""
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in written.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError):
        return {}


def raw_metadata(column: str, shape_HWC: tuple[int, int, int]) -> dict[bytes, bytes]:
    """Metadata of a schema whose column holds images as raw pixels, in fixed_size_binary."""
    return {_RAW: json.dumps({"column": column, "shape_HWC": shape_HWC}).encode()}


def raw_shape(schema: pa.Schema, column: str) -> tuple[int, int, int] | None:
    """(height, width, channels) of a column of raw pixels. None for any other column."""
    try:
        told = json.loads((schema.metadata or {})[_RAW])
        height, width, channels = (int(side) for side in told["shape_HWC"])
        kind = schema.field(column).type
        fits = told["column"] == column and kind.byte_width == height * width * channels
    except (KeyError, TypeError, ValueError):
        return None
    return (height, width, channels) if fits and channels in (1, 3) else None


def _load(
    stored: bytes | dict[str, Any] | None,
    label: int | None,
    shape_HWC: tuple[int, int, int] | None,
) -> tuple[Image, int | None]:
    if shape_HWC is not None and isinstance(stored, bytes):
        from PIL import Image

        height, width, channels = shape_HWC
        mode = "L" if channels == 1 else "RGB"
        return Image.frombytes(mode, (width, height), stored), label
    return read_image(io.BytesIO(_bytes_of(stored))), label


def _bytes_of(stored: bytes | dict[str, Any] | None) -> bytes:
    data: Any = stored.get("bytes") if isinstance(stored, dict) else stored
    if not data:
        path = stored.get("path") if isinstance(stored, dict) else None
        raise ValueError(f"it has no bytes, only the path {path}" if path else "it has no bytes")
    return data
