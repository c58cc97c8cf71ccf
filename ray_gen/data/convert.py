"""Converts any source to sharded Parquet that can be streamed: one part at a time, in any process.
`encode.py` writes other columns in the same way.

Images are dealt to parts in random order. A Parquet source is dealt in whole row groups. So a row
group of the result is a sample of the data set. A part is one shard of each split, and a record
that is written last.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_gen import temporary
from ray_gen.data.build import corrupt, split_of
from ray_gen.data.decode import decode, encoded, look_at
from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.pictures import Bands, write_tiff
from ray_gen.data.sources.base import Item, Source, SplitName
from ray_gen.data.sources.conditions import columns_named
from ray_gen.data.sources.joined import Joined
from ray_gen.data.sources.parquet import (
    MANIFEST,
    Columns,
    Parquet,
    RowGroup,
    raw_metadata,
    shard_problem,
)
from ray_gen.data.wanted import ELEMENTS, Wanted
from ray_gen.noise import permutation
from ray_gen.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ray_gen.data.sources.base import Picture

PARTS = "_parts"
_NAMES: dict[SplitName, str] = {"train": "train", "held_out": "validation"}
_RECORDS_AT_ONCE = 16
"""An object store answers in about 50 ms."""
GROUP_BYTES = 16 << 20
"""Largest size of a row group, even if it holds only a few images: a stream holds several row
groups in memory."""


@dataclass(frozen=True)
class Layout:
    """The format of the files."""

    wanted: Wanted | None
    """Store pixels of this shape. None: store each image as its file, or as the source's pixels."""
    held_out_fraction: float
    skip_corrupt: bool
    shard_images: int
    group_images: int
    seed: int


class Conversion:
    """The conversion of one source into one folder. It may be sent to other processes. Each process
    lists the source once."""

    def __init__(self, source: Source, layout: Layout, destination: Folder) -> None:
        self.source = source
        self.layout = layout
        self.destination = destination

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.plan, type(self), self._arguments())

    def _arguments(self) -> tuple[Any, ...]:
        """What this was made from."""
        return self.source, self.layout, self.destination

    @cached_property
    def _listed(self) -> tuple[Sequence[RowGroup | Item], Columns | None, Any, tuple[str, ...]]:
        """Images or row groups, the columns of these, class names, and names of conditions."""
        if isinstance(self.source, Parquet):
            groups, columns = self._row_groups(self.source)
            return groups, columns, columns.class_names, columns.conditions.names
        joined = self.source.sources if isinstance(self.source, Joined) else ()
        if any(type(source) is Parquet for source in joined):
            raise DataError(
                "data.sources: joined Parquet files are not converted, because all their images"
                " would be in memory; convert each source to a folder of its own, and join these"
            )
        listing = self.source.listing()
        return list(listing.items), None, listing.class_names, listing.condition_names

    def _row_groups(self, source: Parquet) -> tuple[Sequence[RowGroup], Columns]:
        """The row groups of the source, and their columns."""
        return source.row_groups()

    @cached_property
    def _pixels(self) -> Wanted | None:
        """The pixels to store; None to store files. A source of raw pixels has no files."""
        wanted, columns = self.layout.wanted, self._listed[1]
        if wanted is not None or columns is None or columns.shape_HWC is None:
            return wanted
        height, width, channels = columns.shape_HWC
        return Wanted((height, width), None, channels, element=columns.element)

    @cached_property
    def count(self) -> int:
        """Number of all images."""
        pieces, *_ = self._listed
        return sum(piece.rows if isinstance(piece, RowGroup) else 1 for piece in pieces)

    @property
    def parts(self) -> int:
        """Number of parts."""
        pieces, *_ = self._listed
        return max(1, min(len(pieces), math.ceil(self.count / self.layout.shard_images)))

    @cached_property
    def plan(self) -> str:
        """As JSON: a digest of everything that the parts of one conversion must share, and its
        settings."""
        told = {
            "source": self.source.identity(),
            "layout": repr(self.layout),
            "images": self.count,
            "parts": self.parts,
            **self._identity(),
        }
        text = json.dumps(told, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return json.dumps({"plan": digest, "settings": self._settings()})

    def _identity(self) -> dict[str, Any]:
        """What else all parts must share."""
        return {}

    def _settings(self) -> dict[str, Any]:
        """The settings of the layout, by the names of the command line."""
        layout = self.layout
        wanted = layout.wanted
        return {
            "--shard-images": layout.shard_images,
            "--group-images": layout.group_images,
            "--seed": layout.seed,
            "data.held_out_fraction": layout.held_out_fraction,
            "data.image_size": None if wanted is None else wanted.size_HW,
            "data.channels": None if wanted is None else wanted.channels,
        }

    def missing(self) -> list[int]:
        """Numbers of the parts that are not written yet, or whose files are no longer as they were
        written: one is gone, or has another size."""
        there = set((self.destination / PARTS).names())
        begun = [part for part in range(self.parts) if _record(part) in there]
        sizes = self.destination.sizes(".parquet") if begun else {}
        with ThreadPoolExecutor(_RECORDS_AT_ONCE, "records") as pool:
            whole = pool.map(lambda part: self._is_whole(part, sizes), begun)
            written = {part for part, is_whole in zip(begun, whole, strict=True) if is_whole}
        return [part for part in range(self.parts) if part not in written]

    def _is_whole(self, part: int, sizes: Mapping[str, int]) -> bool:
        """sizes: of the files that are there, by name."""
        text = (self.destination / PARTS).read_text(_record(part))
        try:
            shards = json.loads(text)["splits"].values()
            return all(shard_problem(shard["name"], shard, sizes) is None for shard in shards)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False  # half a record

    def write(self, part: int) -> dict[str, Any]:
        """Write one part: its shards, then its record. Returns the record. Raises DataError."""
        (self.destination / PARTS).remove(_record(part))  # until its files are whole
        with temporary.folder("convert-") as folder:
            record = self._write(part, folder)
        (self.destination / PARTS).write_text(_record(part), json.dumps(record))
        return record

    def _write(self, part: int, folder: Path) -> dict[str, Any]:
        shards: dict[SplitName, _Shard] = {}
        skipped = 0
        for item, found in self._rows(part):
            if isinstance(found, CorruptImageError):
                if not self.layout.skip_corrupt:
                    raise corrupt(item.name, found, self.source.field)
                skipped += 1
                continue
            stored, label = found
            split = self._split(item)
            if split not in shards:
                name = f"{_NAMES[split]}-{part:05}-of-{self.parts:05}.parquet"
                _, _, names, _ = self._listed
                labelled = names is not None or label is not None
                shards[split] = _Shard(self, folder / name, labelled=labelled)
            shards[split].add(stored, label, item.conditions or ())
        told: dict[str, dict[str, Any]] = {}
        for split, shard in sorted(shards.items()):
            told[_NAMES[split]] = shard.close()
            self.destination.put(shard.path, shard.path.name)
        return {"skipped": skipped, "splits": told}

    def _split(self, item: Item) -> SplitName:
        return item.split or split_of(item.key, self.layout.held_out_fraction)

    def _rows(
        self, part: int
    ) -> Iterator[tuple[Item, tuple[bytes, int | None] | CorruptImageError]]:
        """The images of a part: the bytes of each as a shard holds them, and its class."""
        for item in self._items(part):
            yield item, self._stored(item)

    def _stored(self, item: Item) -> tuple[bytes, int | None] | CorruptImageError:
        """The bytes of an image as a shard holds them, and its class."""
        if self._pixels is None:
            return encoded(item, self.source.field, _file_of)
        decoded = decode(item, self._pixels, self.source.field)
        if isinstance(decoded, CorruptImageError):
            return decoded
        return decoded.values_HWC.tobytes(), decoded.label

    def finish(self) -> dict[str, Any]:
        """Write the manifest when all parts are written: counts, and a digest of all bytes. Returns
        it."""
        digest = hashlib.blake2b(digest_size=16)
        images: dict[str, int] = {}
        shards: dict[str, dict[str, Any]] = {}
        skipped = 0
        names_of_parts = map(_record, range(self.parts))
        records = [
            json.loads((self.destination / PARTS).read_text(name)) for name in names_of_parts
        ]
        for record in records:
            skipped += record["skipped"]
            for split, shard in record["splits"].items():
                digest.update(shard["digest"].encode())
                images[split] = images.get(split, 0) + shard["images"]
                shards[shard.pop("name")] = shard
        _, _, names, _ = self._listed
        manifest = {
            "images": images,
            "skipped": skipped,
            "digest": digest.hexdigest(),
            "class_names": names,
            "shards": shards,
            **self._told(records),
        }
        self.destination.write_text(MANIFEST, json.dumps(manifest, indent=1))
        return manifest

    def _told(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What else the manifest tells. records: of all parts, in their order."""
        return {}

    def image_columns(self) -> tuple[list[tuple[str, pa.DataType]], dict[bytes, bytes]]:
        """The columns of an image, and the metadata of the schema that describe them."""
        import pyarrow as pa

        wanted = self._pixels
        if wanted is None:
            return [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))], {}
        assert wanted.size_HW is not None and wanted.channels is not None
        shape = (*wanted.size_HW, wanted.channels)
        size = math.prod(shape) * np.dtype(ELEMENTS[wanted.element]).itemsize
        told = raw_metadata("image", shape, wanted.element, wanted.opacity)
        return [("image", pa.binary(size))], told

    def image_arrays(self, stored: Sequence[bytes]) -> list[pa.Array]:
        """The columns of some images. stored: the bytes of each, as `_rows` gives them."""
        import pyarrow as pa

        ((_, kind),), _ = self.image_columns()
        files = [{"bytes": file, "path": None} for file in stored]
        return [pa.array(stored if self._pixels is not None else files, kind)]

    def schema(self, labelled: bool) -> pa.Schema:
        """The schema of every shard. If images are stored as files, it is Hugging Face's layout."""
        import pyarrow as pa

        _, _, names, conditions = self._listed
        columns, metadata = self.image_columns()
        label: dict[str, Any] = {"_type": "ClassLabel", "names": names} if names else {}
        features = {"label": label or {"_type": "Value", "dtype": "int64"}} if labelled else {}
        features |= {name: {"_type": "Image"} for name, kind in columns if pa.types.is_struct(kind)}
        metadata[b"huggingface"] = json.dumps({"info": {"features": features}}).encode()
        columns += [("label", pa.int64())] if labelled else []
        taken = [name for name, _ in columns]
        for name, size in columns_named(conditions):
            if name in taken or name == "label":
                raise DataError(
                    f"data.conditions: a column {name!r} of numbers cannot stand beside that of the"
                    f" {name}s; rename it in the table"
                )
            columns.append((name, pa.list_(pa.float32(), size) if size else pa.float32()))
        return pa.schema(columns, metadata)

    def _items(self, part: int) -> Iterator[Item]:
        pieces, columns, *_ = self._listed
        order = permutation(self.layout.seed, "convert", 0, len(pieces)).tolist()
        chosen: Sequence[Any] = [pieces[index] for index in order[part :: self.parts]]
        if columns is None:
            yield from chosen
            return
        assert isinstance(self.source, Parquet)
        for group in chosen:
            rows = self.source.read(group, columns)
            name = f"convert {group.key}"
            for row in permutation(self.layout.seed, name, 0, len(rows)).tolist():
                yield rows[row]


_here: dict[str, Conversion] = {}
"""The conversion that this process works on, by its plan. It keeps its listing of the source."""


def _received(plan: str, kind: type[Conversion], arguments: tuple[Any, ...]) -> Conversion:
    if plan not in _here:
        _here.clear()
        _here[plan] = kind(*arguments)
    return _here[plan]


def _record(part: int) -> str:
    return f"{part:05}.json"


def _file_of(picture: Picture) -> bytes:
    """The bytes of a PNG file, or of a TIFF file for what PNG cannot hold."""
    file = io.BytesIO()
    if isinstance(picture, Bands):
        write_tiff(file, picture.values_HWC, opacity=picture.alpha)
        return file.getvalue()
    if picture.mode not in _PNG_MODES:
        look = look_at(picture)
        grey = "LA" if look.alpha else "L"
        colour = "RGBA" if look.alpha else "RGB"
        picture = picture.convert(grey if look.channels == 1 else colour)
    picture.save(file, "PNG")
    return file.getvalue()


_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Pillow's modes of 8 bits that a PNG file can hold."""


class _Shard:
    """One Parquet file during writing. Only one row group is in memory."""

    def __init__(self, conversion: Conversion, path: Path, *, labelled: bool) -> None:
        self.path = path
        self._labelled = labelled
        self._field = conversion.source.field
        self._group_images = conversion.layout.group_images
        self._arrays = conversion.image_arrays
        self._schema = conversion.schema(labelled)
        self._stored: list[bytes] = []
        self._labels: list[int | None] = []
        self._conditions: list[tuple[float, ...]] = []
        self._bytes = self._images = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._writer = _writer(path, self._schema)

    def add(self, stored: bytes, label: int | None, conditions: tuple[float, ...] = ()) -> None:
        """Add one image."""
        if label is not None and not self._labelled:
            raise DataError(
                f"{self._field}: some images have labels and some have none; label all or none"
            )
        self._stored.append(stored)
        self._labels.append(label)
        self._conditions.append(conditions)
        self._digest.update(stored)
        self._bytes += len(stored)
        if len(self._stored) >= self._group_images or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = self._arrays(self._stored)
        if self._labelled:
            columns.append(pa.array(self._labels, pa.int64()))
            self._digest.update(repr(self._labels).encode())
        if self._conditions[0]:
            numbers = np.asarray(self._conditions, np.float32)
            self._digest.update(numbers.tobytes())
            for field in list(self._schema)[len(columns) :]:
                size = getattr(field.type, "list_size", 1)
                own, numbers = np.ascontiguousarray(numbers[:, :size]), numbers[:, size:]
                flat = pa.array(own.reshape(-1))
                lists = pa.types.is_fixed_size_list(field.type)
                columns.append(pa.FixedSizeListArray.from_arrays(flat, size) if lists else flat)
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._images += len(self._stored)
        self._stored, self._labels, self._conditions, self._bytes = [], [], [], 0

    def close(self) -> dict[str, Any]:
        """Close the file. Returns its name, image count, digest and size."""
        if self._stored:
            self._flush()
        self._writer.close()
        digest = self._digest.hexdigest()
        size = self.path.stat().st_size
        return {"name": self.path.name, "images": self._images, "digest": digest, "bytes": size}


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    import pyarrow.parquet as pq

    # Image files are compressed already. zstd compresses raw pixels by half.
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False)
