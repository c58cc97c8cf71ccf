"""Opens one image of any kind: eight-bit images as Pillow's, all others as arrays of numbers."""

from __future__ import annotations

import io
import math
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.errors import CorruptImageError
from ray_gen.data.formats import (
    COMPRESSED_TIFF,
    HEAD_BYTES,
    NPY,
    check_bytes,
    check_pixels,
    format_of,
    headers_only,
    is_read,
    not_read,
    open_image,
)
from ray_gen.data.png import check_pixels_whole, deep_values

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
    """Whether the last channel is opacity: from 0 to the end of a type of whole numbers."""
    scaled: bool = False
    """Whether the values span their type already: they were written by `ray-gen data convert`."""


def read_picture(
    file: IO[bytes], known: str | None = None, frame: int | None = None, *, pages: bool = False
) -> Image | Bands:
    """The image in a file. An image of Pillow's is not decompressed yet, and needs the file no
    longer.

    known: its format, if that is known. frame: number of one of the images that `frames_of` has
    counted; None: the file holds one, or the first is wanted. pages: all images of the file are
    channels of one. Raises CorruptImageError, and whatever Pillow raises for damaged bytes.
    """
    if known is None:
        known = format_of(file.read(HEAD_BYTES), "")
    if known == NPY:
        return _pillow_if_possible(Bands(_npy(file, frame)))
    data = _read(file, known)
    if known == "PNG":
        check_pixels_whole(data)
    if known == "PPM" and (values := _deep_ppm(data)) is not None:
        return Bands(values)
    try:
        image = open_image(io.BytesIO(data), known)
    except (OSError, SyntaxError):
        if known != "TIFF":
            raise
        return _tiff(data, frame or 0, pages)
    if known == "TIFF" and (pages or _is_beyond_pillow(image)):
        return _tiff(data, frame or 0, pages)
    if frame:
        image.seek(frame)
        check_pixels(*image.size)
    if _is_deep_png(image):
        return _deep_png(data, image)
    return image


def _read(file: IO[bytes], known: str | None) -> bytes:
    """All bytes of a file. Raises CorruptImageError for too large an image."""
    try:
        check_bytes(file.seek(0, io.SEEK_END))
    except CorruptImageError:
        file.seek(0)
        open_image(file, known)  # its pixels may be too many, too: then they are the reason
        raise
    file.seek(0)
    return file.read()


def frames_of(file: IO[bytes], known: str | None, *, every: bool) -> int:
    """Number of images in a file. every: all of them are wanted, so that an array of three axes is
    many images rather than many channels. Raises what `read_picture` raises."""
    if known == NPY:
        shape, *_ = _npy_header(file)
        return shape[0] if _is_stack(shape, every) else 1
    with headers_only():
        try:
            image = open_image(file, known)
        except (OSError, SyntaxError):
            if known != "TIFF":
                raise
            import tifffile

            file.seek(0)
            with tifffile.TiffFile(file) as tiff:
                return len(tiff.pages)
        return int(getattr(image, "n_frames", 1))


def lacks_codec(file: IO[bytes], *, pages: bool) -> bool:
    """Whether a TIFF file can be read only with the plug-in `imagecodecs`, which is not installed.
    Reads its header. pages: as `read_picture`. Raises anything for a damaged one."""
    if is_read(COMPRESSED_TIFF):
        return False
    with suppress(OSError, SyntaxError), headers_only():
        if not pages and not _is_beyond_pillow(open_image(file, "TIFF")):
            return False
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        return _lacks_codec(tiff.pages[0])


def opened_bands(image: Image) -> Bands:
    """The numbers of a decompressed image of one deep channel."""
    values = np.asarray(image)[..., None]
    if image.format in ("PNG", "PPM") and image.mode == "I":  # of 16 bits
        values = values.astype(np.uint16)
    return _with_key(values, image)


def write_tiff(file: Any, values_HWC: NDArray[Any], *, opacity: bool) -> None:
    """Write an image as TIFF, so that `read_picture` gives the same numbers. file: path or binary
    file. opacity: whether the last channel is it."""
    import tifffile

    channels = values_HWC.shape[2]
    colours = 3 if channels - opacity == 3 else 1
    extra = ["unspecified"] * (channels - colours)
    if opacity:
        extra[-1] = "unassalpha"
    options: dict[str, Any] = {"photometric": "rgb" if colours == 3 else "minisblack"}
    if channels > 1:
        options |= {"planarconfig": "contig", "extrasamples": extra}
    values = values_HWC if channels > 1 else values_HWC[..., 0]
    tifffile.imwrite(file, values, metadata=None, **options)


_PILLOW_MODES = {(1, False): "L", (2, True): "LA", (3, False): "RGB", (4, True): "RGBA"}
"""Pillow's modes of 8 bits, by number of channels and whether the last is opacity."""


def _pillow_if_possible(bands: Bands) -> Image | Bands:
    """As Pillow's image if Pillow can hold it: equal pixels are equal data in every format."""
    from PIL import Image

    values = bands.values_HWC
    if values.dtype != np.uint8 or (values.shape[2], bands.alpha) not in _PILLOW_MODES:
        return bands
    return Image.fromarray(np.ascontiguousarray(values if values.shape[2] > 1 else values[..., 0]))


def check_channels(count: int) -> None:
    """Raises CorruptImageError for more channels than an image may have."""
    if count > LARGEST_CHANNELS:
        raise CorruptImageError(
            f"it has {count:,} channels, and {LARGEST_CHANNELS} at most are read"
        )


def _is_deep_png(image: Any) -> bool:
    """Whether Pillow would keep only the upper half of each value of a PNG file. An animation is
    left to Pillow, which alone can draw its images."""
    return (
        image.format == "PNG"
        and image.mode in ("RGB", "RGBA", "LA")
        and getattr(image, "n_frames", 1) == 1
        and any("16" in str(tile[3]) for tile in image.tile)
    )


def _is_beyond_pillow(image: Any) -> bool:
    """Whether Pillow would drop channels or bits of a TIFF file that it has opened, or misread
    them."""
    tags = image.tag_v2
    bits, samples = tags.get(258, (1,)), tags.get(277, 1)
    unnamed = 0 in tags.get(338, ())  # further channels that are no opacity
    signed = tags.get(339, (1,))[0] == 2
    whole = tags.get(339, (1,))[0] in (1, 2)
    inverted = tags.get(262) == 0 and max(bits) > 8
    deep = (samples > 1 and max(bits) > 8) or (max(bits) >= 32 if whole else max(bits) != 32)
    return samples > 4 or unnamed or signed or inverted or deep


def _deep_png(data: bytes, image: Image) -> Bands:
    values = deep_values(data, image)
    # Decompressed before: EXIF data may come after the pixels.
    values = _turned(values, image.getexif().get(274, 1))
    if image.mode == "RGB":
        return _with_key(values, image)
    return Bands(values, alpha=True)


def ppm_header(data: bytes) -> tuple[int, int, int, int, int] | None:
    """Channels, width, height, largest value, and place of the values in a binary PGM or PPM file.
    None: it is another file."""
    between = rb"(?:\s|#[^\n]*\n)+"
    header = re.match(between.join((rb"P([56])", rb"(\d+)", rb"(\d+)", rb"(\d+)")) + rb"\s", data)
    if header is None:
        return None
    kind, width, height, most = map(int, header.groups())
    return 3 if kind == 6 else 1, width, height, most, header.end()


def _deep_ppm(data: bytes) -> NDArray[np.uint16] | None:
    """A colour image of 16 bits, of which Pillow would keep 8: (H, W, C) from 0 to 65,535, as
    Pillow reads grey ones. None: it is another image."""
    header = ppm_header(data)
    if header is None or header[0] == 1 or not 255 < header[3] <= 65_535:
        return None
    channels, width, height, most, start = header
    check_pixels(width, height)
    count = channels * width * height
    if len(data) < start + 2 * count:
        raise CorruptImageError(
            f"it is truncated: it ends at byte {len(data):,} of {start + 2 * count:,}"
        )
    values = np.frombuffer(data, ">u2", count, start).reshape(height, width, channels)
    return np.rint(values * (65_535 / most)).clip(0, 65_535).astype(np.uint16)


def _with_key(values_HWC: NDArray[Any], image: Image) -> Bands:
    """With opacity if the image names a colour that is transparent, as PNG may (tRNS)."""
    key = image.info.get("transparency")
    if key is None or values_HWC.dtype != np.uint16:
        return Bands(values_HWC)
    hidden = (values_HWC == np.asarray(key)).all(2, keepdims=True)
    opacity = np.where(hidden, 0, 65_535).astype(np.uint16)
    return Bands(np.concatenate([values_HWC, opacity], axis=2), alpha=True)


def _turned(values_HWC: NDArray[Any], orientation: object) -> NDArray[Any]:
    """An image upright, from the orientation that its file tells (1 to 8, TIFF 6.0, section 8)."""
    if orientation in (5, 6, 7, 8):
        values_HWC = values_HWC.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values_HWC = values_HWC[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values_HWC = values_HWC[::-1]
    return values_HWC


def _tiff(data: bytes, frame: int, pages: bool) -> Image | Bands:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if not pages:
            return _pillow_if_possible(_tiff_page(file.pages[frame]))
        check_channels(len(file.pages))
        all_pages: list[Any] = list(file.pages)
        samples = sum(page.samplesperpixel for page in all_pages)
        check_channels(samples)
        for page in all_pages:
            check_pixels(page.imagewidth, page.imagelength, samples)
        found = [_tiff_page(page).values_HWC for page in all_pages]
        if len({(page.shape[:2], page.dtype) for page in found}) > 1:
            raise CorruptImageError("its pages differ in size or type, so they are no channels")
        return _pillow_if_possible(Bands(np.concatenate(found, axis=2)))


_MIN_IS_WHITE, _PALETTE, _CMYK = 0, 3, 5
_PREMULTIPLIED, _OPACITY = 1, 2


def _tiff_page(page: Any) -> Bands:
    """One image of a TIFF file, upright, black at the least value."""
    check_channels(page.samplesperpixel)
    check_pixels(page.imagewidth, page.imagelength * page.imagedepth, page.samplesperpixel)
    photometric = int(page.photometric)
    if photometric in (_PALETTE, _CMYK):
        kind = "a palette" if photometric == _PALETTE else "CMYK"
        raise CorruptImageError(
            f"it is {kind} with more than 8 bits or with pages as channels; convert it to RGB"
        )
    if _lacks_codec(page):
        raise CorruptImageError(not_read(COMPRESSED_TIFF))
    _check_tags(page)
    _check_inflated(page)
    values = page.asarray()
    if values.ndim == 3 and page.planarconfig == 2:
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise CorruptImageError(f"it is an array of shape {values.shape}, not of (H, W, C)")
    if page.bitspersample == 1:
        values = values.astype(np.uint8) * 255
    extra = [int(kind) for kind in page.extrasamples or ()]
    last = extra[-1] if extra else None
    if last in (_PREMULTIPLIED, _OPACITY) and 1 < page.bitspersample < 8 * values.dtype.itemsize:
        values = values.copy()  # of 12 bits, in 16
        most = np.iinfo(values.dtype).max
        values[..., -1] = np.rint(values[..., -1] * (most / (2**page.bitspersample - 1)))
    if last == _PREMULTIPLIED:
        values = _unmultiplied(values)
    if photometric == _MIN_IS_WHITE and values.dtype.kind == "u":
        colours = values.shape[2] - len(extra)
        white = np.iinfo(values.dtype).max
        values = np.concatenate([white - values[..., :colours], values[..., colours:]], axis=2)
    orientation = page.tags.get(274)
    values = _turned(values, 1 if orientation is None else int(orientation.value))
    return Bands(values, alpha=last in (_PREMULTIPLIED, _OPACITY))


_OF_PIXELS = {
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325),
    *(338, 339, 32997),
}
"""Tags that say where the pixels of a page lie and what they mean (TIFF 6.0)."""


def _check_tags(page: Any) -> None:
    """Raises CorruptImageError if one of the tags cannot be read. tifffile leaves it out and takes
    its default, which gives other pixels: their values may be the last bytes of a file that is
    cut."""
    tiff, file = page.parent.tiff, page.parent.filehandle
    order = "little" if tiff.byteorder == "<" else "big"
    file.seek(page.offset)
    count = int.from_bytes(file.read(tiff.tagnosize), order)
    table = file.read(count * tiff.tagsize)
    told = {int.from_bytes(table[i : i + 2], order) for i in range(0, len(table), tiff.tagsize)}
    lost = [tag for tag in sorted(told & _OF_PIXELS) if tag not in page.tags]
    if lost:
        raise CorruptImageError(
            f"its tag {lost[0]} cannot be read: the file is damaged, or cut at its end"
        )


_DEFLATE = (8, 32946)
_DEFLATE_MOST = 1032
"""Deflate makes no more bytes of one."""
_HARMLESS_BYTES = 2**28


def _check_inflated(page: Any) -> None:
    """Raises CorruptImageError for a compressed part of a page that holds more than it should:
    without its plug-in, tifffile decompresses all of it. Most parts are too small to do harm; the
    others are decompressed twice."""
    if page.is_tiled:
        check_pixels(page.tilewidth, page.tilelength * page.tiledepth, page.samplesperpixel)
    if page.compression not in _DEFLATE or is_read(COMPRESSED_TIFF):
        return
    most = math.prod(page.chunks) * page.dtype.itemsize
    file = page.parent.filehandle
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if size * _DEFLATE_MOST <= max(most, _HARMLESS_BYTES):
            continue
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(size), most + 1)) > most:
            raise CorruptImageError(f"a part of it is larger than the {most:,} bytes that it tells")


def _lacks_codec(page: Any) -> bool:
    """Whether tifffile needs its plug-in, which is not installed, for an image."""
    import tifffile

    if is_read(COMPRESSED_TIFF):
        return False
    tables = tifffile.TIFF
    return (
        page.bitspersample not in _WHOLE_BITS
        or _is_missing(tables.DECOMPRESSORS, page.compression)
        or _is_missing(tables.UNPREDICTORS, page.predictor)
    )


_WHOLE_BITS = (1, 8, 16, 32, 64)
"""Sizes of values that need no unpacking, or that tifffile unpacks alone."""


def _is_missing(codecs: Any, number: int) -> bool:
    """Whether one of tifffile's tables names a codec that only the plug-in has."""
    try:
        codecs[number](b"")
    except ImportError:  # a module of a later Python
        return True
    except KeyError as error:
        return "imagecodecs" in str(error)
    except Exception:  # it is there, and does not decode nothing
        return False
    return False


def _unmultiplied(values_HWC: NDArray[Any]) -> NDArray[Any]:
    """Colours that were multiplied by their opacity, as they were before."""
    colours, opacity = values_HWC[..., :-1], values_HWC[..., -1:]
    whole = values_HWC.dtype.kind in "ui"
    most = np.iinfo(values_HWC.dtype).max if whole else 1.0
    restored = (colours * (most / np.maximum(opacity, 1e-9))).clip(0, most)
    restored = np.where(opacity == 0, 0, np.rint(restored) if whole else restored)
    return np.concatenate([restored.astype(values_HWC.dtype), opacity], axis=2)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape and type of an array in a file, and whether its first axis is the innermost. Then the
    file stands at its numbers. Raises CorruptImageError if it does not hold them."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    major, _ = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if major not in read:
        raise CorruptImageError(f"it is version {major} of NumPy's format, not 1 or 2")
    shape, inside_out, kind = read[major](file)
    if kind.hasobject or not np.issubdtype(kind, np.number) or kind.kind == "c":
        raise CorruptImageError(f"its values are of the type {kind}, not numbers")
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise CorruptImageError(f"it is an array of shape {shape}, not an image (H, W, C)")
    told, held = math.prod(shape) * kind.itemsize, size - file.tell()
    if told > held:
        raise CorruptImageError(f"it is truncated: it has {held:,} of {told:,} bytes of numbers")
    return shape, kind, inside_out


def _is_stack(shape: tuple[int, ...], every: bool) -> bool:
    """Whether an array holds several images. every: all images of it are wanted; then an axis is
    that of the channels only if it is certain."""
    if len(shape) == 3 and every:
        first, second, last = shape
        bands = first == second != last <= LARGEST_CHANNELS
        return not (first <= _SURE_CHANNELS or last <= _SURE_CHANNELS or bands)
    return _channel_axis(shape) is None


_SURE_CHANNELS = 4


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels of one image, -1 where it has none. None: several images.

    An axis of 1 to 4 numbers is that of the channels, the last before the first. Else the one
    beside two equal sides. Else the last or the first that is short enough.
    """
    if len(shape) == 2:
        return -1
    if len(shape) != 3:
        return None
    if shape[1] == shape[2] and shape[0] > LARGEST_CHANNELS and shape[2] > _SURE_CHANNELS:
        return None  # many small square images
    few = [axis for axis in (2, 0) if shape[axis] <= _SURE_CHANNELS]
    beside_a_square = [axis for axis, a, b in ((2, 0, 1), (0, 1, 2)) if shape[a] == shape[b]]
    short = [axis for axis in (2, 0) if shape[axis] <= LARGEST_CHANNELS]
    square = [axis for axis in beside_a_square if axis in short]
    return next(iter((*few, *square, *short)), None)


def _npy(file: IO[bytes], frame: int | None) -> NDArray[Any]:
    """(H, W, C) of an array in a file, or of one image of it. Reads only the numbers of that."""
    shape, kind, inside_out = _npy_header(file)
    stack = frame is not None or _is_stack(shape, every=False)
    of_one = shape[1:] if stack else shape
    axis = _channel_axis(of_one)
    if axis is None:
        raise CorruptImageError(f"it is an array of shape {shape}, not an image (H, W, C)")
    height, width = (side for number, side in enumerate(of_one) if number != axis % 3)
    check_pixels(width, height, 1 if axis == -1 else of_one[axis])
    values = _numbers(file, shape, kind, inside_out, frame or 0 if stack else None)
    if axis == -1:
        return values[..., None]
    return values.transpose(1, 2, 0) if axis == 0 else values


def _numbers(
    file: IO[bytes],
    shape: tuple[int, ...],
    kind: np.dtype[Any],
    inside_out: bool,
    first: int | None,
) -> NDArray[Any]:
    """An array in a file that stands at its numbers. first: an index of the first axis; only the
    numbers there are read."""
    order = "F" if inside_out else "C"
    if first is not None and inside_out and isinstance(file, io.FileIO):  # they lie apart
        return np.array(np.memmap(file, kind, "r", file.tell(), shape, order)[first])
    if first is not None and not inside_out:
        shape = shape[1:]
        file.seek(first * math.prod(shape) * kind.itemsize, io.SEEK_CUR)
        first = None
    size = math.prod(shape) * kind.itemsize
    check_bytes(size)
    data = bytearray()
    while len(data) < size and (part := file.read(size - len(data))):  # Linux reads 2 GiB at most
        data += part
    values = np.frombuffer(data, kind).reshape(shape, order=order)
    return values if first is None else values[first]


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
