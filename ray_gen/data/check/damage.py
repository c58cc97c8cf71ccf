"""Where a damaged image file ends or breaks, from the structure of its format. Decodes nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np

from ray_gen.data import png
from ray_gen.data.formats import HEAD_BYTES, NPY, format_of
from ray_gen.data.pictures import ppm_header


def place_of_damage(data: bytes, known: str | None = None) -> str | None:
    """What is wrong with the bytes of an image file, as a sentence without its subject's name: "it
    is truncated: it ends at byte 512 of 1,024". None: its structure is whole, or is not known.

    known: its format, if that is known.
    """
    known = known or format_of(data[:HEAD_BYTES], "")
    walk = _WALKS.get(known or "")
    if walk is None:
        return None
    try:
        return walk(data)
    except (IndexError, ValueError, OverflowError):
        return f"its structure breaks within its {len(data):,} bytes"


def _truncated(data: bytes, end: int, exact: bool = True) -> str | None:
    """The sentence about a file that should reach to byte `end`. exact: it should end there."""
    if end <= len(data):
        return None
    return (
        f"it is truncated: it ends at byte {len(data):,} of {'' if exact else 'at least '}{end:,}"
    )


def _without_end(data: bytes) -> str:
    return f"it is truncated: it ends at byte {len(data):,}, before its end mark"


def _png(data: bytes) -> str | None:
    name = b""
    for name, start, end in png.chunks(data):
        if end > len(data):
            return _truncated(data, end, exact=name == b"IEND")
        if (why := png.wrong_checksum(data, name, start, end)) is not None:
            return why
    return None if name == b"IEND" else _without_end(data)


def _jpeg(data: bytes) -> str | None:
    at = 2
    while at < len(data):
        at = data.find(b"\xff", at)
        if at < 0:
            break
        marker = data[at + 1 : at + 2]
        if marker == b"\xd9":
            return None
        if marker in (b"", b"\xff"):
            at += 1
        elif marker in (b"\0", b"\1") or b"\xd0" <= marker <= b"\xd8":
            at += 2  # inside compressed data, or a marker without content
        else:
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            at += 2 + max(size, 2)
    return _without_end(data)


def _gif(data: bytes) -> str | None:
    def after_blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    def colours(flags: int) -> int:
        return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0

    try:
        at = 13 + colours(data[10])
        while data[at] != 0x3B:
            if data[at] == 0x2C:
                at = after_blocks(at + 11 + colours(data[at + 9]))
            elif data[at] == 0x21:
                at = after_blocks(at + 2)
            else:
                return f"its structure breaks at byte {at:,} of {len(data):,}"
    except IndexError:
        return _without_end(data)
    return None


def _riff(data: bytes) -> str | None:
    return _truncated(data, 8 + int.from_bytes(data[4:8], "little"))


def _bmp(data: bytes) -> str | None:
    return _truncated(data, int.from_bytes(data[2:6], "little"))


def _tiff(data: bytes) -> str | None:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))  # pyright: ignore
            return _truncated(data, max(ends, default=0), exact=False)
    except Exception:  # its directory is damaged, in one of many ways
        offset = int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
        return _truncated(data, offset + 2, exact=False)


def _ppm(data: bytes) -> str | None:
    header = ppm_header(data)
    if header is None:
        return None
    channels, width, height, most, start = header
    return _truncated(data, start + width * height * channels * (2 if most > 255 else 1))


def _npy(data: bytes) -> str | None:
    file = io.BytesIO(data)
    major, _ = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    )
    shape, _, kind = read(file)
    return _truncated(data, file.tell() + math.prod(shape) * kind.itemsize)


def _boxes(data: bytes) -> str | None:
    """Of an ISO media file: AVIF, HEIC, JPEG 2000, JPEG XL."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: to the end of the file
            return None
        at += size
    return _truncated(data, at, exact=False)


def _qoi(data: bytes) -> str | None:
    return None if data.endswith(b"\0" * 7 + b"\1") else _without_end(data)


_WALKS: dict[str, Callable[[bytes], str | None]] = {
    **{"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "WEBP": _riff, "BMP": _bmp, "TIFF": _tiff},
    **{"PPM": _ppm, NPY: _npy, "AVIF": _boxes, "HEIC": _boxes, "JPEG 2000": _boxes},
    **{"JPEG XL": _boxes, "QOI": _qoi},
}
