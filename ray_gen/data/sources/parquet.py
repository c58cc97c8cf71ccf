"""Parquet files whose rows are encoded images: Hugging Face's layout, or a plain binary column."""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_gen.data.errors import DataError, reason
from ray_gen.data.sources.base import HELD_OUT_NAMES, Item, Listing, SplitName, read_image

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL.Image import Image

_SPLIT_NAME = re.compile(rf"(train|{'|'.join(HELD_OUT_NAMES)})(?![A-Za-z0-9])")
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class _Shard:
    location: str
    """As the file system names it."""
    path: str
    """Relative to the folder given, or the file's own name: the same wherever the data lie."""
    split: SplitName | None
    size: int
    mtime_ns: int


class Parquet:
    """One Parquet file, a folder of shards, or a URI of either (file://, s3://, gs://, hdfs://).

    The image column is the only one that holds encoded images (binary, or Hugging Face's
    struct<bytes, path>) unless `image_column` names it. The label column is `label`, when there is
    one of integers or strings, unless `label_column` names another; strings become classes in the
    order of their sorted names. Shards whose names, or whose folders' names, begin with `train` and
    `validation`, `valid`, `val` or `test` are the data set's own splits; with more than one of the
    latter, the first in this order is held out and the others are left unread.
    """

    kind = "parquet"
    field = "data.path"

    def __init__(
        self, *, path: str, image_column: str | None = None, label_column: str | None = None
    ) -> None:
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self._file_system: Any = None
        self._found: list[_Shard] | None = None

    def identity(self) -> object:
        """Relative path, size and time of every shard, and the columns."""
        self._found = self._list()
        return {
            "shards": [[s.path, s.split, s.size, s.mtime_ns] for s in self._found],
            "image_column": self.image_column,
            "label_column": self.label_column,
        }

    def listing(self) -> Listing:
        shards = self._found or self._list()
        with self._open(shards[0]) as file:
            schema = file.schema_arrow
        image_column = _image_column(schema, self.image_column, shards[0].location)
        label_column = _label_column(schema, self.label_column, shards[0].location)
        columns = [name for name in (image_column, label_column) if name is not None]
        count = 0
        strings: set[str] = set()
        # The labels of all shards are read before any image: they are small, and a label that
        # cannot be used is then refused at once and not after hours of decoding.
        for shard in shards:
            with self._open(shard) as file:
                for name in columns:
                    if name not in file.schema_arrow.names:
                        raise DataError(
                            f"{self.field}: {shard.location} has no column {name!r}, unlike"
                            f" {shards[0].location}; keep only shards of one data set together"
                        )
                count += file.metadata.num_rows
                if label_column is not None:
                    labels = self._read(shard, file, label_column)
                    strings.update(_checked(labels, label_column, shard.location))
        class_names = tuple(sorted(strings)) or _written_names(schema, label_column)
        index = {name: i for i, name in enumerate(class_names or ())}
        return Listing(count, self._items(shards, columns, index), class_names)

    def _items(
        self, shards: Sequence[_Shard], columns: list[str], index: dict[str, int]
    ) -> Iterator[Item]:
        images: list[Any]
        labels: list[Any]
        for shard in shards:
            row = 0
            for batch in self._batches(shard, columns):
                images, *rest = (column.to_pylist() for column in batch.columns)
                labels = rest[0] if rest else [None] * len(images)
                for image, label in zip(images, labels, strict=True):
                    if label is not None:
                        label = index[label] if isinstance(label, str) else int(label)
                    yield Item(
                        key=f"{shard.path}:{row}",
                        name=f"{shard.location}, row {row}",
                        split=shard.split,
                        load=partial(_load, image, label),
                    )
                    row += 1

    def _batches(self, shard: _Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Row groups one after another: memory is bounded by one row group, not by the shard."""
        import pyarrow as pa

        with self._open(shard) as file:
            try:
                for group in range(file.num_row_groups):
                    batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns)
                    for batch in batches:
                        yield batch.select(columns)
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(shard.location, error) from error

    def _read(self, shard: _Shard, file: pq.ParquetFile, column: str) -> pa.ChunkedArray:
        import pyarrow as pa

        try:
            return file.read(columns=[column]).column(column)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(shard.location, error) from error

    def _open(self, shard: _Shard) -> pq.ParquetFile:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self._file_system.open_input_file(shard.location))
        except pa.ArrowException as error:
            raise DataError(
                f"{self.field}: {shard.location} is not a whole Parquet file ({reason(error)});"
                " fetch or write it again"
            ) from error
        except OSError as error:
            raise self._unreadable(shard.location, error) from error

    def _unreadable(self, location: str, error: Exception) -> DataError:
        return DataError(
            f"{self.field}: {location} cannot be read: {reason(error)};"
            " see that it is whole and that this user has access to it"
        )

    def _list(self) -> list[_Shard]:
        import pyarrow as pa
        from pyarrow import fs

        try:
            if "://" in self.path:
                self._file_system, location = fs.FileSystem.from_uri(self.path)
            else:
                self._file_system = fs.LocalFileSystem()
                location = str(Path(self.path).expanduser().absolute())
            info = self._file_system.get_file_info(location)
            entries = [info]
            if info.type == fs.FileType.Directory:
                entries = self._file_system.get_file_info(fs.FileSelector(location, recursive=True))
        except pa.ArrowException as error:
            raise DataError(
                f"{self.field}: {self.path} is not a URI that can be read ({reason(error)});"
                " use a local path, file://, s3://, gs:// or hdfs://"
            ) from error
        except OSError as error:
            raise self._unreadable(self.path, error) from error
        if info.type == fs.FileType.NotFound:
            raise DataError(
                f"{self.field}: {self.path} does not exist (on the machine that reads it);"
                " name a Parquet file or a folder of them"
            )
        if info.type == fs.FileType.Directory:
            named = {entry.path[len(location) :].strip("/"): entry for entry in entries}
        else:
            named = {info.base_name: info}
        # "_SUCCESS", "_metadata" and ".crc" files are what writers of Parquet leave beside shards.
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


def _own_splits(paths: list[str], folder: str) -> dict[str, SplitName | None]:
    """The split of each shard that is read, or None for all where the data set has no splits."""
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
            f"data.path: {folder} has shards of the splits train and {held_out} beside {nameless},"
            " whose name tells no split; move it away or name it train-..."
        )
    names: dict[str | None, SplitName] = {"train": "train", held_out: "held_out"}
    return {path: names[name] for path, name in named.items() if name in names}


def _image_column(schema: pa.Schema, given: str | None, location: str) -> str:
    if given is not None:
        _check_column(schema, "data.image_column", given, location)
        if not _holds_images(schema.field(given).type):
            raise DataError(
                f"data.image_column: {given!r} of {location} is {schema.field(given).type}; name a"
                " column of encoded images, binary or struct<bytes, path>"
            )
        return given
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
        f"data.label_column: {name!r} of {location} is {kind}; name a column of integers or strings"
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


def _checked(labels: pa.ChunkedArray, column: str, location: str) -> list[str]:
    """The different strings among the labels; refuses a row that has none (null, or -1)."""
    values = labels.unique().to_pylist()
    for value in values:
        if value is None or (not isinstance(value, str) and value < 0):
            row = labels.to_pylist().index(value)
            raise DataError(
                f"data.label_column: row {row} of {location} has the label {value} in {column!r};"
                " a class is 0 or more: remove such rows, or leave this file out of data.path"
            )
    return [value for value in values if isinstance(value, str)]


def _written_names(schema: pa.Schema, column: str | None) -> tuple[str, ...] | None:
    """Class names that Hugging Face's ClassLabel keeps beside integer labels."""
    known = _features(schema).get(column or "", {}).get("names")
    return tuple(known) if isinstance(known, list) and known else None


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's datasets library wrote about each column, or nothing."""
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in written.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError):
        return {}


def _load(stored: bytes | dict[str, Any] | None, label: int | None) -> tuple[Image, int | None]:
    data: Any = stored.get("bytes") if isinstance(stored, dict) else stored
    if not data:
        path = stored.get("path") if isinstance(stored, dict) else None
        raise ValueError(f"it has no bytes, only the path {path}" if path else "it has no bytes")
    return read_image(io.BytesIO(data)), label
