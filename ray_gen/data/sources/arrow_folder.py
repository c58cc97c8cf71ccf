"""Folders that `datasets.save_to_disk` writes: Arrow files with an image in each row, in the IPC
streaming format. They are memory-mapped."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray_gen.data.errors import CorruptImageError, DataError, reason
from ray_gen.data.pictures import Bands, read_picture
from ray_gen.data.sources.archives import local_path
from ray_gen.data.sources.base import Item, Listing, SplitName
from ray_gen.data.sources.conditions import Conditions, conditions_of
from ray_gen.data.sources.labels import (
    Choice,
    Column,
    LabelColumn,
    choice,
    columns_of,
    given,
    of_file,
)
from ray_gen.data.sources.layout import splits_of_shards
from ray_gen.data.sources.rows import Beside, bytes_of, image_column

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

_DICT, _INFO, _STATE = "dataset_dict.json", "dataset_info.json", "state.json"


@dataclass(frozen=True, slots=True)
class _Shard:
    location: str
    path: str
    """Relative to the given folder."""
    split: SplitName | None
    size: int
    mtime_ns: int


class ArrowFolder:
    """A Dataset or a DatasetDict of Hugging Face's `datasets`, as `save_to_disk` wrote it.

    The image column and the label column are chosen as in Parquet files; see `Parquet`. The splits
    are the keys of a DatasetDict.
    """

    kind = "arrow"
    field = "data.path"

    def __init__(
        self,
        *,
        path: str,
        image_column: str | None = None,
        label_column: LabelColumn | None = None,
        labels: Literal["auto", "none"] = "auto",
        conditions: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.image_column = image_column
        self.label_column = label_column
        self.labels = labels
        self.conditions = tuple(conditions)
        self._found: list[_Shard] | None = None
        self._watched: dict[str, tuple[int, int]] = {}

    def identity(self) -> object:
        """Relative path, size and time of every file, and the columns."""
        self._found = self._list()
        self._watched = {}
        return {
            "shards": [[s.path, s.split, s.size, s.mtime_ns] for s in self._found],
            "image_column": self.image_column,
            "label_column": self.label_column,
            "labels": self.labels,
            **({"conditions": self.conditions} if self.conditions else {}),
        }

    def listing(self) -> Listing:
        shards = self._found or self._list()
        schemas: dict[str, pa.Schema] = {}
        rows: dict[str, int] = {}
        for shard in shards:
            schemas[shard.location], batches = self._open(shard.location)
            rows[shard.location] = sum(len(batch) for batch in batches)
        first = shards[0].location
        image = image_column(schemas[first], self.image_column, first)
        for location, schema in schemas.items():
            for name in (image, *columns_of(self.label_column)):
                if name not in schema.names and name in schemas[first].names:
                    raise DataError(
                        f"{self.field}: {location} has no column {name!r}, unlike {first}; keep"
                        " only files of one data set in a folder"
                    )

        def read(column: LabelColumn) -> list[Column]:
            return [
                of_file(
                    self._open(location)[1],
                    rows[location],
                    schema,
                    column,
                    location,
                )
                for location, schema in schemas.items()
            ]

        if self.labels == "none":
            chosen = Choice(no_classes="data.labels is none; set it to auto")
        else:
            chosen = choice(schemas, self.label_column, (image, *self.conditions), read)
        names = chosen.classes.names if chosen.classes is not None else ()
        conditions = self._conditions(schemas)
        beside = Beside(_local(), self._root, None, self._watched)
        return Listing(
            sum(rows.values()),
            self._items(shards, image, chosen if names else Choice(), beside, conditions),
            names or None,
            beside.watched,
            notes=chosen.notes,
            no_classes=chosen.no_classes,
            condition_names=conditions.names,
        )

    def _conditions(self, schemas: Mapping[str, pa.Schema]) -> Conditions:
        """The numbers to condition on. Reads all of them, to refuse a missing one before any image
        is decoded."""
        found = conditions_of(self.conditions, schemas.items())
        for location in schemas if found.columns else ():
            row = 0
            for batch in self._open(location)[1]:
                found.of(batch, location, row)
                row += len(batch)
        return found

    @property
    def _root(self) -> str:
        return str(local_path(self.path, "Arrow files"))

    def _items(
        self,
        shards: Sequence[_Shard],
        image: str,
        chosen: Choice,
        beside: Beside,
        conditions: Conditions,
    ) -> Iterator[Item]:
        """The rows of all files, batch by batch: the images stay in the mapped files."""
        for shard in shards:
            row = 0
            folder = str(Path(shard.location).parent)
            for batch in self._open(shard.location)[1]:
                images = batch.column(image)
                labels = given(batch, chosen.column) or [None] * len(batch)
                numbers = conditions.of(batch, shard.location, row)
                for place, label in enumerate(labels):
                    number = None
                    if chosen.classes is not None and label is not None:
                        number = chosen.classes.of(shard.location, label)
                    encoded = partial(_bytes, images, place, beside, folder)
                    yield Item(
                        key=f"{shard.path}:{row}",
                        name=f"{shard.location}, row {row}",
                        split=shard.split,
                        load=partial(_load, encoded, number),
                        encoded=encoded,
                        conditions=None if numbers is None else numbers[place],
                    )
                    row += 1

    def _open(self, location: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Schema and batches of a file. Raises DataError if it is damaged."""
        import pyarrow as pa

        try:
            reader = pa.ipc.open_stream(pa.memory_map(location))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(location, error) from error

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from reader
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(location, error) from error

        return reader.schema, batches()

    def _damaged(self, location: str, error: Exception) -> DataError:
        return DataError(
            f"{self.field}: {location} is not a whole Arrow file ({reason(error)}); copy or write"
            " it again"
        )

    def _list(self) -> list[_Shard]:
        root = local_path(self.path, "Arrow files")
        try:
            files = [
                file for folder in self._folders(root) for file in self._files_of(root / folder)
            ]
            names = [str(file.relative_to(root)) for file in files]
            splits = splits_of_shards(names, str(root))
            return [
                _Shard(str(file), name, splits[name], status.st_size, status.st_mtime_ns)
                for file, name in zip(files, names, strict=True)
                if name in splits and (status := file.stat())
            ]
        except OSError as error:
            raise DataError(
                f"{self.field}: {error.filename or root} cannot be read: {reason(error)}; restore"
                " it or give this user access to it"
            ) from error

    def _folders(self, root: Path) -> list[str]:
        """The folders of the splits; "" for a data set without splits."""
        if (root / _DICT).exists():
            splits = self._json(root / _DICT).get("splits")
            if isinstance(splits, list) and splits and all(map(_is_name, splits)):
                return [str(split) for split in splits]
            raise DataError(f"{self.field}: {root / _DICT} names no splits; save the data again")
        if (root / _STATE).exists():
            return [""]
        if not root.exists():
            raise DataError(
                f"{self.field}: {root} does not exist on the machine that reads it; give a folder"
                " that datasets.save_to_disk has written"
            )
        raise DataError(
            f"{self.field}: {root} has neither {_DICT} nor {_STATE}, so datasets.save_to_disk has"
            " not written it; give a folder that it has, or write Parquet with to_parquet"
        )

    def _files_of(self, folder: Path) -> list[Path]:
        """The Arrow files of one split, in order."""
        state = self._json(folder / _STATE)
        if any(key.startswith("_indices") and state[key] for key in state):
            raise DataError(
                f"{self.field}: {folder} holds a selection of rows of other files; load it and save"
                " the result of flatten_indices()"
            )
        told = state.get("_data_files")
        names = [
            file.get("filename") if isinstance(file, dict) else None
            for file in (told if isinstance(told, list) else [])
        ]
        if not names or not all(map(_is_name, names)):
            raise DataError(f"{self.field}: {folder / _STATE} names no files; save the data again")
        return [folder / str(name) for name in names]

    def _json(self, path: Path) -> Mapping[str, Any]:
        try:
            read = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(
                f"{self.field}: {path} is not JSON ({reason(error)}); copy or write it again"
            ) from error
        return read if isinstance(read, dict) else {}


def _is_name(name: Any) -> bool:
    """Whether a name that a file tells stays in its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def _local() -> Any:
    from pyarrow import fs

    return fs.LocalFileSystem()


def _bytes(images: pa.Array, place: int, beside: Beside, folder: str) -> bytes:
    return bytes_of(images[place].as_py(), beside, folder)


def _load(encoded: Any, label: int | None) -> tuple[Image | Bands, int | None]:
    data: bytes = encoded()
    if not data:
        raise CorruptImageError("it has 0 bytes")
    return read_picture(io.BytesIO(data)), label
