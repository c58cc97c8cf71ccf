"""Knows image files by their first bytes, whatever their names are, and opens them.

Only listed formats are opened. Some of Pillow's others start programs (EPS starts Ghostscript).
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import IO, TYPE_CHECKING

from ray_gen.data.errors import CorruptImageError

if TYPE_CHECKING:
    from PIL.Image import Image

HEAD_BYTES = 64
"""Number of bytes at the start of a file that `format_of` needs."""

PILLOW = {
    **{name: name for name in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "TGA")},
    **{"JPEG 2000": "JPEG2000", "QOI": "QOI", "HEIC": "HEIF", "JPEG XL": "JXL"},
}
"""Formats that are read, and Pillow's names of them."""
NPY = "NPY"
"""NumPy's format of one array."""
COMPRESSED_TIFF = "compressed TIFF"
"""TIFF that Pillow cannot hold (deep, or of many channels), with a compression that tifffile cannot
decode alone."""
PLUG_INS = {
    "HEIC": ("pillow_heif", "pillow-heif"),
    "JPEG XL": ("pillow_jxl", "pillow-jxl-plugin"),
    COMPRESSED_TIFF: ("imagecodecs", "imagecodecs"),
}
"""Formats that are read with a plug-in: its module, and what to install."""
FORMATS_1 = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names of the formats that the first rules of reading know."""

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"qoif", "QOI"),
    (b"\x93NUMPY", NPY),
    (b"8BPS", "Photoshop"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"DDS ", "DDS"),
    (b"<svg", "SVG"),
)
_BRANDS = {
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    "AVIF": (b"avif", b"avis"),
}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_RAW_SUFFIXES = (".nef", ".arw", ".dng", ".cr2", ".cr3", ".orf", ".rw2", ".pef", ".raf", ".srw")
"""Photographs as the sensor saw them. Many are TIFF files around a small preview."""
_IMAGE_SUFFIXES = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **{".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP", ".dib": "BMP", ".avif": "AVIF"},
    **{".jxl": "JPEG XL", ".qoi": "QOI", ".tga": "TGA", ".npy": NPY},
}


def suffix_of(name: str) -> str:
    """The suffix of a path in lower case, with its dot. "" without one. pathlib would take as long
    as decoding a small image."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def format_of(head: bytes, name: str) -> str | None:
    """The format of an image file. None: it is no image.

    head: the first HEAD_BYTES of the file, or all of it. name: only for camera raw files and for
    TGA, which no first bytes tell. A format that is not in `PILLOW` and not `NPY` is not read.
    """
    suffix = suffix_of(name)
    if suffix in _RAW_SUFFIXES:
        return "camera raw"
    for start, known in _STARTS:
        if head.startswith(start):
            return known
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _format_of_brands(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456fF" and head[2:3].isspace():
        return "PPM"
    if (
        suffix == ".tga"
        and len(head) >= 18
        and head[1] in (0, 1)
        and head[2] in (1, 2, 3, 9, 10, 11)
    ):
        return "TGA"
    return None


def _format_of_brands(head: bytes) -> str | None:
    """HEIC or AVIF, from the brands that an ISO media file names. None for videos."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, size, 4))]
    for known in ("AVIF", "HEIC"):
        if any(brand in _BRANDS[known] for brand in brands):
            return known
    return None


def format_named(name: str) -> str | None:
    """The format that the suffix of a name promises. None: no image."""
    return _IMAGE_SUFFIXES.get(suffix_of(name))


def is_read(known: str) -> bool:
    """Whether a format can be opened here: it is listed, and its plug-in is installed."""
    if known in PLUG_INS:
        return importlib.util.find_spec(PLUG_INS[known][0]) is not None
    return known == NPY or (known in PILLOW and (known != "AVIF" or _has_avif()))


def formats_read() -> list[str]:
    """The formats that can be opened here and not everywhere: those of installed plug-ins."""
    return [known for known in (*PLUG_INS, "AVIF") if is_read(known)]


def remedy(known: str) -> str:
    """What to do about files of a format that is not read."""
    if known in PLUG_INS:
        return f"install {PLUG_INS[known][1]}"
    return "install pillow>=11.3" if known == "AVIF" else "convert them to PNG"


def not_read(known: str) -> str:
    """Why a file of a format that is not read is no image here, and what to do about it."""
    return f"it is {known}, which is not read; {remedy(known)}"


@cache
def _has_avif() -> bool:
    from PIL import features

    return bool(features.check("avif"))


@cache
def _register(known: str) -> None:
    """Tells Pillow of an installed plug-in."""
    if known == "HEIC":
        import pillow_heif  # pyright: ignore

        pillow_heif.register_heif_opener()
    elif known == "JPEG XL":
        import pillow_jxl  # pyright: ignore # noqa: F401


def what_it_is(head: bytes, size: int) -> str:
    """What a file is that has the name of an image but not the bytes of one."""
    text = head.lstrip().lower()
    if not size:
        return "it has 0 bytes"
    if not head.strip(b"\0"):
        return "it holds only zeros: an interrupted copy"
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, perhaps of a failed download"
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-LFS pointer; fetch the files with `git lfs pull`"
    if text.startswith((b"<?xml", b"{", b"[")):
        return "it is text, perhaps of a failed download"
    return "it is not an image of a known format"


def open_image(file: IO[bytes], known: str | None = None) -> Image:
    """The image in a binary file. Its header is read, its pixels are not.

    known: the format, if it is known. Raises CorruptImageError for bytes that are no readable
    image, and what Pillow raises for damaged headers.
    """
    from PIL import Image

    if known is None:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        known = format_of(head, "")
        if known is None:
            raise CorruptImageError(what_it_is(head, len(head)))
    if known not in PILLOW or not is_read(known):
        raise CorruptImageError(not_read(known))
    if known in PLUG_INS:
        _register(known)
    _silence()
    limit = pixel_limit.get()
    if limit is None:
        try:
            return Image.open(file, formats=(PILLOW[known],))
        except Image.DecompressionBombError as error:
            number = re.search(r"\d+", str(error))
            raise _too_many(int(number[0]) if number else 0, PILLOW_LIMIT) from None
    with _opening:  # Pillow has one limit for the whole process
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=(PILLOW[known],))
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    check_pixels(*image.size)
    return image


pixel_limit: ContextVar[int | None] = ContextVar("pixel_limit", default=None)
"""Largest number of pixels of an image that this thread opens. None: PILLOW_LIMIT. A small file may
claim to hold more pixels than the memory."""
PILLOW_LIMIT = 178_956_970
"""Pillow refuses larger images."""
_opening = threading.Lock()


_CHANNELS, _VALUE_BYTES = 4, 8
"""The largest pixel: a pixel of more channels counts as several."""


@contextmanager
def headers_only() -> Generator[None]:
    """Inside the `with` statement images of any size are opened, because none is decompressed."""
    before = pixel_limit.set(sys.maxsize)
    try:
        yield
    finally:
        pixel_limit.reset(before)


def check_pixels(width: int, height: int, channels: int = 1) -> None:
    """Raises CorruptImageError for an image beyond the limit of pixels."""
    pixels = width * height * max(1, -(-channels // _CHANNELS))
    limit = pixel_limit.get() or PILLOW_LIMIT
    if pixels > limit:
        raise _too_many(pixels, limit, channels)


def check_bytes(size: int) -> None:
    """Raises CorruptImageError for more bytes than the pixels within the limit can need. size: of
    what would be read at once."""
    limit = pixel_limit.get() or PILLOW_LIMIT
    pixels = -(-size // (_CHANNELS * _VALUE_BYTES))
    if pixels > limit:
        raise CorruptImageError(
            f"it has {size:,} bytes, more than {limit:,} pixels need; set data.max_pixels={pixels}"
            " to read it"
        )


def _too_many(pixels: int, limit: int, channels: int = 1) -> CorruptImageError:
    counted = f", {_CHANNELS} of its {channels} channels in each" if channels > _CHANNELS else ""
    return CorruptImageError(
        f"it has {pixels:,} pixels{counted}, more than {limit:,};"
        f" set data.max_pixels={pixels} to read it"
    )


@cache
def _silence() -> None:
    """Keeps Pillow and tifffile from printing warnings about damaged EXIF data, damaged tags and
    large images. Pixels that cannot be read are errors."""
    warnings.filterwarnings("ignore", module=r"PIL\..*")
    for library in ("PIL", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
