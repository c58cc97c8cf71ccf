"""One image of any kind to uint8 pixels of one shape."""

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
"""pixels_HWC and the class, or None where the source has no labels."""

_GREY_MODES = ("1", "L", "LA")
_TRANSPARENT_MODES = ("LA", "PA", "RGBA", "RGBa")


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message says why, not which."""


@dataclass(frozen=True)
class Wanted:
    """The pixels asked for; None: as the image has them."""

    size_HW: tuple[int, int] | None
    center_crop: int | None
    channels: int | None
    size_from: str | None = None
    """Where `size_HW` is not asked for but that of this image: then another size is refused."""


def decode(item: Item, wanted: Wanted, blamed: str) -> Pixels | CorruptImageError:
    """Pixels and class of one item; a corrupt image is returned, for the caller to raise or count.

    Damaged bytes raise almost anything in Pillow (OSError, SyntaxError, ValueError, struct.error,
    its own errors). Only an OSError with a number comes from the file system, and it is not the
    image's fault: skipping it could skip a whole data set while a network drive is away. That, and
    what the settings cannot have, is a DataError; `blamed` is the field it names for the former.
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
    """(H, W, C) uint8: upright, on white where transparent, cropped, resized to cover, centred.

    The order is fixed: first `center_crop` pixels of the original, then one Lanczos resampling
    (antialiased) of the largest centred box that has the wanted aspect.
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
            f" {width}×{height}; set data.image_size, e.g."
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
    """Turns photographs as their camera was held. Only where there is EXIF: looking costs 10 %."""
    if "exif" not in image.info and image.format != "TIFF":
        return image
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged EXIF says nothing of the pixels, which are whole.
        return image


def _eight_bit(image: Image, channels: int | None) -> Image:
    """The image in mode L or RGB; without `channels`, as its mode (not its pixels) says."""
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
    """Divides by 257, so that 65,535 becomes 255 (Pillow's own conversion clips at 255)."""
    import PIL.Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise CorruptImageError("its pixels are 32-bit integers beyond the 16-bit range")
    return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
