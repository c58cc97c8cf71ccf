"""Folders that `datasets.save_to_disk` writes: Arrow files with an image in each row, in the IPC
streaming format. They are memory-mapped."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_gen.data.errors import CorruptImageError, DataError, reason
from ray_gen.data.pictures import Bands, read_picture
from ray_gen.data.sources.archives import local_path
from ray_gen.data.sources.base import Item, Listing
from ray_gen.data.sources.conditions import Conditions
from ray_gen.data.sources.labels import Choice, given
from ray_gen.data.sources.layout import splits_of_shards
from ray_gen.data.sources.rows import Beside, bytes_of, image_column
from ray_gen.data.sources.tables import Shard, Tables

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

_DICT, _INFO, _STATE = "dataset_dict.json", "dataset_info.json", "state.json"


class ArrowFolder(Tables):
    """A Dataset or a DatasetDict of Hugging Face's `datasets`, as `save_to_disk` wrote it. The
    splits are the keys of a DatasetDict. For the settings see `Tables`."""

    kind = "arrow"

    def listing(self) -> Listing:
        shards = self._found or self._list()
        schemas: dict[str, pa.Schema] = {}
        rows: dict[str, int] = {}
        for shard in shards:
            schemas[shard.location], batches = self._open(shard.location)
            rows[shard.location] = sum(len(batch) for batch in batches)
        first = shards[0].location
        image = image_column(schemas[first], self.image_column, first)
        self._check_all_have(image, schemas)
        chosen = self._labels(schemas, rows, image)
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

    def _parts(self, location: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Tables`. The file is mapped: columns that nobody asks for cost nothing."""
        return self._open(location)[1]

    @property
    def _root(self) -> str:
        return str(local_path(self.path, "Arrow files"))

    def _items(
        self,
        shards: Sequence[Shard],
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

    def _list(self) -> list[Shard]:
        root = local_path(self.path, "Arrow files")
        try:
            files = [
                file for folder in self._folders(root) for file in self._files_of(root / folder)
            ]
            names = [str(file.relative_to(root)) for file in files]
            splits = splits_of_shards(names, str(root))
            return [
                Shard(str(file), name, splits[name], status.st_size, status.st_mtime_ns)
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
