"""Rows of tables with an image each: the column of the images, and the bytes of one."""

from __future__ import annotations

import errno
import posixpath
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.sources.labels import check_exists, features
from ray_gen.storage import tried

if TYPE_CHECKING:
    import pyarrow as pa

_LONGEST_SHOWN = 200
"""Characters of a path in a message. A longer one is not a path, for example an image as base64."""
Stored = bytes | str | dict[str, Any] | None
"""The image of a row: its bytes, its path, or {"bytes": …, "path": …} with one of the two."""


def image_column(
    schema: pa.Schema,
    given: str | None,
    location: str,
    is_raw: Callable[[str], bool] = lambda column: False,
) -> str:
    """The column of images. Raises DataError if it does not exist, or if there are several.

    given: the column that the settings name; it may hold paths. is_raw: whether a column holds
    pixels.
    """
    from pyarrow import types

    if given is not None:
        check_exists(schema.names, "data.image_column", given, location)
        kind = schema.field(given).type
        if (
            _holds_images(kind)
            or types.is_string(kind)
            or types.is_large_string(kind)
            or is_raw(given)
        ):
            return given
        raise DataError(
            f"data.image_column: {given!r} of {location} is {kind}; give a column of encoded"
            " images, binary or struct<bytes, path>, or a column of their paths"
        )
    raw = [name for name in schema.names if is_raw(name)]
    if raw:
        return raw[0]
    candidates = [column.name for column in schema if _holds_images(column.type)]
    described = features(schema)
    images = [name for name in candidates if described.get(name, {}).get("_type") == "Image"]
    candidates = images or candidates
    if not candidates:
        columns = ", ".join(f"{column.name}: {column.type}" for column in schema)
        raise DataError(
            f"data.path: {location} has no column of encoded images, binary or"
            f" struct<bytes, path> ({columns}); write the images as PNG or JPEG bytes, or set"
            " data.image_column to a column of their paths"
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


@dataclass(frozen=True)
class Beside:
    """The files that rows name by their paths, instead of holding their bytes."""

    file_system: Any
    """pyarrow's, of the table."""
    root: str
    """The data set's own folder, in that file system."""
    uri: str | None
    """The data set's URI. None on a local disk."""
    watched: dict[str, tuple[int, int]]
    """See `Listing.watched`: filled in while local files are read. A stream reads a file again in
    each epoch."""

    def read(self, path: str, folder: str) -> bytes:
        """The bytes of a file. A relative path begins in `folder`, the folder of the table, or else
        in the root. Raises CorruptImageError if there is no such file, OSError if it cannot be
        read."""
        folders = dict.fromkeys((folder, self.root))
        for place in folders if "\0" not in path else ():
            here = self._inside(path, place)
            try:
                return self._read(self.file_system, here)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:  # a text that is no path
                if error.errno != errno.ENAMETOOLONG:
                    raise
        where = " or ".join(dict.fromkeys((folder, self.root)))
        place = "" if path.startswith("/") else f" in {where}"
        raise CorruptImageError(
            f"its row holds no bytes, but the path {_shortened(path)}, and there is no such file"
            f"{place}"
        )

    def _inside(self, path: str, folder: str) -> str:
        """The place of a named file, which must lie in the data set: the rows may come from a
        stranger, and name any file of this machine or any bucket that its user may read. Raises
        CorruptImageError."""
        if self.uri is not None and path.startswith(f"{self.uri.rstrip('/')}/"):
            path = path.removeprefix(f"{self.uri.rstrip('/')}/")
        here = posixpath.normpath(posixpath.join(folder, path))
        root = posixpath.normpath(self.root)
        if "://" in path or (here != root and not here.startswith(root.rstrip("/") + "/")):
            raise CorruptImageError(
                f"its row holds no bytes, but the path {_shortened(path)}, which lies outside of"
                f" the data set {root}; move the files into it, or name them in a list"
                " (data=list:FILE)"
            )
        return here

    def _read(self, system: Any, path: str) -> bytes:
        from pyarrow import fs

        def attempt() -> bytes:
            with system.open_input_file(path) as file:
                return file.read()

        if isinstance(system, fs.LocalFileSystem):
            status = Path(path).stat()
            if not stat.S_ISREG(status.st_mode):
                raise CorruptImageError(f"its row names {path}, which is no file")
            stamp = status.st_size, status.st_mtime_ns
            if self.watched.setdefault(path, stamp) != stamp:
                raise DataError(
                    f"data.path: {path} was changed while it was in use; put the old file back and"
                    " start again, or begin a new run with the new one"
                )
            return attempt()
        return tried(attempt, self.uri or path)


def _shortened(path: str) -> str:
    return path if len(path) <= _LONGEST_SHOWN else f"{path[: _LONGEST_SHOWN // 2]}..."


def bytes_of(stored: Stored, beside: Beside | None, folder: str) -> bytes:
    """The bytes of the image of a row. folder: of its table. Raises CorruptImageError."""
    data: Any = stored.get("bytes") if isinstance(stored, dict) else stored
    path: Any = stored.get("path") if isinstance(stored, dict) else None
    if isinstance(data, str):
        data, path = None, data
    if data:
        return data
    if not path or beside is None:
        raise CorruptImageError(f"it has no bytes, only the path {path}" if path else "it is empty")
    return beside.read(path, folder)
