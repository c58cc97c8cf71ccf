"""Opens one image of any kind: eight-bit images as Pillow's, all others as arrays of numbers."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.errors import CorruptImageError
from ray_gen.data.formats import HEAD_BYTES, NPY, format_of, open_image

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
        return _deep_png(data, alpha=image.mode != "RGB")
    return image


def frames_of(file: IO[bytes], known: str | None) -> int:
    """Number of images in a file."""
    if known == NPY:
        shape = _npy_header(file)
        return shape[0] if _channel_axis(shape) is None else 1
    return int(getattr(open_image(file, known), "n_frames", 1))


def _has_16_bits(image: Any) -> bool:
    """Whether Pillow would keep only the upper half of each value of a PNG file."""
    return any("16" in str(tile[3]) for tile in image.tile)


def _is_beyond_pillow(image: Any) -> bool:
    """Whether Pillow would drop channels or bits of a TIFF file that it has opened."""
    bits = image.tag_v2.get(258, (1,))
    samples = image.tag_v2.get(277, 1)
    unnamed = 0 in image.tag_v2.get(338, ())  # further channels that are no opacity
    return samples > 4 or unnamed or (samples > 1 and max(bits) > 8)


def _deep_png(data: bytes, *, alpha: bool) -> Bands:
    from ray_gen.data.deep import decode_png

    return Bands(decode_png(data), alpha)


def _tiff(data: bytes, frame: int, pages: bool) -> Bands:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if pages:
            found = [_tiff_page(page)[0] for page in file.pages]
            if len({page.shape[:2] for page in found}) > 1:
                raise CorruptImageError("its pages differ in size, so they are no channels")
            return Bands(np.concatenate(found, axis=2))
        return Bands(*_tiff_page(file.pages[frame]))


def _tiff_page(page: Any) -> tuple[NDArray[Any], bool]:
    """(H, W, C), and whether the last channel is opacity."""
    values = page.asarray()
    if values.ndim == 3 and page.planarconfig == 2:
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise CorruptImageError(f"it is an array of shape {values.shape}, not of (H, W, C)")
    extra = tuple(page.extrasamples or ())
    return values, bool(extra) and int(extra[-1]) in (1, 2)


def _npy_header(file: IO[bytes]) -> tuple[int, ...]:
    major, _ = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    return read[major](file)[0]


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels of one image, -1 where it has none. None: several images."""
    if len(shape) == 2:
        return -1
    if len(shape) == 3 and shape[2] <= LARGEST_CHANNELS:
        return 2
    if len(shape) == 3 and shape[0] <= LARGEST_CHANNELS:
        return 0
    return None


def _npy(data: bytes, frame: int) -> NDArray[Any]:
    values = np.load(io.BytesIO(data), allow_pickle=False)
    axis = _channel_axis(values.shape)
    if axis is None and values.ndim in (3, 4):
        values = values[frame]
        axis = _channel_axis(values.shape)
    if axis is None or not math.prod(values.shape):
        raise CorruptImageError(f"it is an array of shape {values.shape}, not an image (H, W, C)")
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise CorruptImageError(f"its values are {values.dtype}, not numbers")
    if axis == -1:
        return values[..., None]
    return values if axis == 2 else values.transpose(1, 2, 0)


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
