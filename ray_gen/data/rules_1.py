"""The first rules of reading: how runs that began with ray_gen 0.1 read their data.

Such a run reads the same bytes for ever, so nothing here changes. What differs now: the folders of
a data set (`sources/folder_1.py`), the labels and splits of Parquet files, channels that follow the
first image, and the range of deep images, which is that of their type.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.pictures import upright
from ray_gen.data.sources.base import HELD_OUT_NAMES, SplitName
from ray_gen.data.sources.labels import check_exists, holds
from ray_gen.data.wanted import Wanted

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from PIL.Image import Image

_GREY_MODES = ("1", "L", "LA")
_TRANSPARENT_MODES = ("LA", "PA", "RGBA", "RGBa")
_SPLIT_NAME = re.compile(rf"(train|{'|'.join(HELD_OUT_NAMES)})(?![A-Za-z0-9])")


def pixels(image: Image, wanted: Wanted, name: str) -> NDArray[np.uint8]:
    """(H, W, C) uint8: upright, on white if transparent, cropped, resized to cover, centred.

    The order is fixed: first the crop to `center_crop` pixels of the original, then one Lanczos
    resampling (antialiased) of the largest centred box with the wanted aspect ratio.
    """
    from PIL.Image import Resampling

    image = _eight_bit(upright(image), wanted.channels)
    width, height = image.size
    left, top = 0.0, 0.0
    if wanted.center_crop is not None:
        side = wanted.center_crop
        if side > min(width, height):
            raise DataError(
                f"data.center_crop: {side} is more than {name} has ({width}×{height} pixels);"
                f" set it to {min(width, height)} or less"
            )
        left, top = float((width - side) // 2), float((height - side) // 2)
        width = height = side
    out_height, out_width = wanted.size_HW or (height, width)
    if wanted.size_from is not None and (height, width) != wanted.size_HW:
        raise DataError(
            f"data.image_size: images differ in size: {wanted.size_from} is"
            f" {out_width}×{out_height} pixels and {name}"
            f" {width}×{height}; set data.image_size to resize them, e.g."
            f" {min(out_width, out_height, width, height)}"
        )
    scale = min(width / out_width, height / out_height)
    box_width, box_height = out_width * scale, out_height * scale
    # A margin of zero can come out as -7e-15, which Pillow refuses.
    left += max(0.0, (width - box_width) / 2)
    top += max(0.0, (height - box_height) / 2)
    box = (left, top, left + box_width, top + box_height)
    if image.size != (out_width, out_height):
        image = image.resize((out_width, out_height), Resampling.LANCZOS, box=box)
    return np.asarray(image).reshape(out_height, out_width, -1)


def _eight_bit(image: Image, channels: int | None) -> Image:
    """The image in mode L or RGB. Without `channels`, its mode (not its pixels) decides which."""
    import PIL.Image

    if image.mode == "F":
        raise CorruptImageError("its pixels are floating-point numbers of unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    mode = "L" if channels == 1 or (channels is None and image.mode in _GREY_MODES) else "RGB"
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: Image) -> Image:
    """Divides by 257, so that 65,535 becomes 255 (Pillow's own conversion would clip at 255)."""
    import PIL.Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise CorruptImageError("its pixels are 32-bit integers beyond the 16-bit range")
    return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))


def splits_of_shards(paths: list[str], folder: str) -> dict[str, SplitName | None]:
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


def label_column_1(schema: pa.Schema, given: str | None, location: str) -> str | None:
    """The label column of a Parquet file: the given one, or `label` if it holds labels."""
    name = given or "label"
    if given is None and name not in schema.names:
        return None
    check_exists(schema.names, "data.label_column", name, location)
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

    if types.is_dictionary(kind):
        kind = kind.value_type
        return holds(kind, floats=False) and not (types.is_integer(kind) or types.is_boolean(kind))
    return holds(kind, floats=False)


def checked_labels(labels: pa.ChunkedArray, column: str, location: str) -> list[int | str]:
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
