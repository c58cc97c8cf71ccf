"""Decodes one image of any kind to uint8 pixels of one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ray_gen.data.errors import DataError, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ray_gen.data.sources.base import Item

Pixels = tuple["NDArray[np.uint8]", int | None]
"""pixels_HWC, and the class, or None if the source has no labels."""

_GREY_MODES = ("1", "L", "LA")
_TRANSPARENT_MODES = ("LA", "PA", "RGBA", "RGBa")


class CorruptImageError(Exception):
    """An image that cannot be decoded. The message gives the reason, not the name."""


@dataclass(frozen=True)
class Wanted:
    """The pixels that the settings ask for. None: as in the image."""

    size_HW: tuple[int, int] | None
    center_crop: int | None
    channels: int | None
    size_from: str | None = None
    """Name of the image that gave `size_HW`, if the settings gave no size. Then an image of another
    size is refused."""


def decode(item: Item, wanted: Wanted, blamed: str) -> Pixels | CorruptImageError:
    """Pixels and class of one item. For a corrupt image it returns the error, and the caller raises
    or counts it.

    Damaged bytes raise almost anything in Pillow (OSError, SyntaxError, ValueError, struct.error,
    its own errors). Only an OSError with a number comes from the file system. It does not mean that
    the image is corrupt, and it raises DataError with the field `blamed`: if a network drive fails,
    skipping images could skip the whole data set. An image that does not fit the settings raises
    DataError too.
    """
    try:
        image, label = item.load()
        return pixels(image, wanted, item.name), label
    except (DataError, MemoryError):
        raise
    except CorruptImageError as error:
        return error
    except OSError as error:
        if error.errno is None:
            return CorruptImageError(reason(error))
        raise DataError(
            f"{blamed}: {item.name} cannot be read: {reason(error)};"
            " restore it or give this user access to it"
        ) from error
    except Exception as error:
        return CorruptImageError(reason(error))


def pixels(image: Image, wanted: Wanted, name: str) -> NDArray[np.uint8]:
    """(H, W, C) uint8: upright, on white if transparent, cropped, resized to cover, centred.

    The order is fixed: first the crop to `center_crop` pixels of the original, then one Lanczos
    resampling (antialiased) of the largest centred box with the wanted aspect ratio.
    """
    from PIL.Image import Resampling

    image = _eight_bit(_upright(image), wanted.channels)
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


def _upright(image: Image) -> Image:
    """Rotates a photograph as its EXIF data says. Without EXIF it does nothing: the check itself
    would cost 10 %."""
    if "exif" not in image.info and image.format != "TIFF":
        return image
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Only the EXIF is damaged; the pixels are intact.
        return image


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
