"""Opens one image of any kind: eight-bit images as Pillow's, all others as arrays of numbers."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.errors import CorruptImageError
from ray_gen.data.formats import HEAD_BYTES, NPY, check_pixels, format_of, open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

LARGEST_CHANNELS = 16
"""Largest number of channels of an image. A longer last axis of an array is its width."""


@dataclass(frozen=True)
class Bands:
    """An image that Pillow cannot hold: more than 8 bits, or other channels than its modes have."""

    values_HWC: NDArray[Any]
    alpha: bool = False
    """Whether the last channel is opacity."""
    scaled: bool = False
    """Whether the values span their type already: they were written by `ray-gen data convert`."""


def read_picture(
    file: IO[bytes], known: str | None = None, frame: int = 0, *, pages: bool = False
) -> Image | Bands:
    """The image in a file. An image of Pillow's is not decompressed yet, and needs the file no
    longer.

    known: its format, if that is known. frame: number of the image in a file of several. pages: all
    images of the file are channels of one. Raises CorruptImageError, and whatever Pillow raises for
    damaged bytes.
    """
    data = file.read()
    known = known or format_of(data[:HEAD_BYTES], "")
    if known == NPY:
        return Bands(_npy(data, frame))
    try:
        image = open_image(io.BytesIO(data), known)
    except (OSError, SyntaxError):
        if known != "TIFF":
            raise
        return _tiff(data, frame, pages)
    if known == "TIFF" and (pages or _is_beyond_pillow(image)):
        return _tiff(data, frame, pages)
    if frame:
        image.seek(frame)
    if known == "PNG" and image.mode in ("RGB", "RGBA", "LA") and _has_16_bits(image):
        return _deep_png(data, image)
    return image


def frames_of(file: IO[bytes], known: str | None) -> int:
    """Number of images in a file."""
    if known == NPY:
        shape, _ = _npy_header(file)
        return shape[0] if _channel_axis(shape) is None else 1
    return int(getattr(open_image(file, known), "n_frames", 1))


def _has_16_bits(image: Any) -> bool:
    """Whether Pillow would keep only the upper half of each value of a PNG file."""
    return any("16" in str(tile[3]) for tile in image.tile)


def _is_beyond_pillow(image: Any) -> bool:
    """Whether Pillow would drop channels or bits of a TIFF file that it has opened, or misread
    them."""
    tags = image.tag_v2
    bits, samples = tags.get(258, (1,)), tags.get(277, 1)
    unnamed = 0 in tags.get(338, ())  # further channels that are no opacity
    signed = tags.get(339, (1,))[0] == 2
    whole = tags.get(339, (1,))[0] in (1, 2)
    inverted = tags.get(262) == 0 and max(bits) > 8
    deep = (samples > 1 and max(bits) > 8) or (whole and max(bits) >= 32)
    return samples > 4 or unnamed or signed or inverted or deep


def _deep_png(data: bytes, image: Image) -> Bands:
    from ray_gen.data.deep import decode_png

    values = decode_png(data)
    image.load()  # the EXIF data may come after the pixels
    return Bands(_turned(values, image.getexif().get(274, 1)), alpha=image.mode != "RGB")


def _turned(values_HWC: NDArray[Any], orientation: object) -> NDArray[Any]:
    """An image upright, from the orientation that its file tells (1 to 8, TIFF 6.0, section 8)."""
    if orientation in (5, 6, 7, 8):
        values_HWC = values_HWC.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values_HWC = values_HWC[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values_HWC = values_HWC[::-1]
    return values_HWC


def _tiff(data: bytes, frame: int, pages: bool) -> Bands:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if not pages:
            return _tiff_page(file.pages[frame])
        found = [_tiff_page(page).values_HWC for page in file.pages]
        if len({(page.shape[:2], page.dtype) for page in found}) > 1:
            raise CorruptImageError("its pages differ in size or type, so they are no channels")
        return Bands(np.concatenate(found, axis=2))


_MIN_IS_WHITE, _PALETTE, _CMYK = 0, 3, 5
_PREMULTIPLIED, _OPACITY = 1, 2


def _tiff_page(page: Any) -> Bands:
    """One image of a TIFF file, upright, black at the least value."""
    check_pixels(page.imagewidth, page.imagelength)
    photometric = int(page.photometric)
    if photometric in (_PALETTE, _CMYK):
        kind = "a palette" if photometric == _PALETTE else "CMYK"
        raise CorruptImageError(
            f"it is {kind} with more than 8 bits or with pages as channels; convert it to RGB"
        )
    values = page.asarray()
    if values.ndim == 3 and page.planarconfig == 2:
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise CorruptImageError(f"it is an array of shape {values.shape}, not of (H, W, C)")
    if page.bitspersample == 1:
        values = values.astype(np.uint8) * 255
    if photometric == _MIN_IS_WHITE and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    extra = [int(kind) for kind in page.extrasamples or ()]
    last = extra[-1] if extra else None
    if last == _PREMULTIPLIED:
        values = _unmultiplied(values)
    orientation = page.tags.get(274)
    values = _turned(values, 1 if orientation is None else int(orientation.value))
    return Bands(values, alpha=last in (_PREMULTIPLIED, _OPACITY))


def _unmultiplied(values_HWC: NDArray[Any]) -> NDArray[Any]:
    """Colours that were multiplied by their opacity, as they were before."""
    colours, opacity = values_HWC[..., :-1], values_HWC[..., -1:]
    whole = values_HWC.dtype.kind in "ui"
    most = np.iinfo(values_HWC.dtype).max if whole else 1.0
    restored = (colours * (most / np.maximum(opacity, 1e-9))).clip(0, most)
    restored = np.where(opacity == 0, 0, np.rint(restored) if whole else restored)
    return np.concatenate([restored.astype(values_HWC.dtype), opacity], axis=2)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in a file. Then the file stands at its numbers."""
    major, _ = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, _, kind = read[major](file)
    return shape, kind


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels of one image, -1 where it has none. None: several images.

    An axis of 1 to 4 numbers is that of the channels, the last before the first. Else the one
    beside two equal sides. Else the last or the first that is short enough.
    """
    if len(shape) == 2:
        return -1
    if len(shape) != 3:
        return None
    if shape[1] == shape[2] and shape[0] > LARGEST_CHANNELS and shape[2] > 4:
        return None  # many small square images
    few = [axis for axis in (2, 0) if shape[axis] <= 4]
    beside_a_square = [axis for axis, a, b in ((2, 0, 1), (0, 1, 2)) if shape[a] == shape[b]]
    short = [axis for axis in (2, 0) if shape[axis] <= LARGEST_CHANNELS]
    square = [axis for axis in beside_a_square if axis in short]
    return next(iter((*few, *square, *short)), None)


def _npy(data: bytes, frame: int) -> NDArray[Any]:
    file = io.BytesIO(data)
    shape, kind = _npy_header(file)
    if kind.hasobject or not np.issubdtype(kind, np.number) or kind.kind == "c":
        raise CorruptImageError(f"its values are of the type {kind}, not numbers")
    told, held = math.prod(shape) * kind.itemsize, len(data) - file.tell()
    if told > held:
        raise CorruptImageError(f"it is truncated: it has {held:,} of {told:,} bytes of numbers")
    values = np.load(io.BytesIO(data), allow_pickle=False)
    axis = _channel_axis(shape)
    if axis is None and len(shape) in (3, 4):
        values = values[frame]
        axis = _channel_axis(values.shape)
    if axis is None or not math.prod(values.shape):
        raise CorruptImageError(f"it is an array of shape {shape}, not an image (H, W, C)")
    if axis == -1:
        values = values[..., None]
    elif axis == 0:
        values = values.transpose(1, 2, 0)
    check_pixels(values.shape[1], values.shape[0])
    return values


def upright(image: Image) -> Image:
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
