"""PNG files: where they break, and their 16 bits, of which Pillow keeps 8.

Pillow checks no checksums of pixels: of files with one wrong bit it read 2 % as other images.
libpng, which does, ended the process at a damaged file of 16 bits (torchvision 0.29).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.errors import CorruptImageError
from ray_gen.data.formats import open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_SIGNATURE_BYTES = 8
_OF_PIXELS = (b"IDAT", b"fdAT")


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk of a PNG file, to IEND. The end of the last may be beyond
    that of the file."""
    at, name = _SIGNATURE_BYTES, b""
    while at + 8 <= len(data) and name != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        yield name, at, end
        at = end


def wrong_checksum(data: bytes, name: bytes, start: int, end: int) -> str | None:
    """The sentence about a chunk whose bytes are not those that were written. None: they are."""
    told = int.from_bytes(data[end - 4 : end], "big")
    if zlib.crc32(memoryview(data)[start + 4 : end - 4]) == told:
        return None
    shown = name.decode("ascii", "replace")
    return f"its {shown} chunk at byte {start:,} of {len(data):,} has a wrong checksum"


def check_pixels_whole(data: bytes) -> None:
    """Raises CorruptImageError if pixels are not those that were written. What is missing at the
    end of a file, Pillow notices."""
    for name, start, end in chunks(data):
        if name in _OF_PIXELS and end <= len(data):
            why = wrong_checksum(data, name, start, end)
            if why is not None:
                raise CorruptImageError(why)


def deep_values(data: bytes, image: Image) -> NDArray[np.uint16]:
    """The values of a PNG file of 16 bits in each of 2 to 4 channels: (H, W, C).

    image: of the file, not decompressed yet; then it is. Raises what Pillow raises for damage.
    """
    opened: Any = image  # of which types tell only what all formats have
    tiles = opened.tile
    if str(tiles[0][3]).startswith("LA"):
        image.load()
        with open_image(io.BytesIO(_as_rgba(data)), "PNG") as both:
            return np.asarray(both).view(">u2").astype(np.uint16)
    low: Any = open_image(io.BytesIO(data), "PNG")
    # Of little-endian numbers Pillow keeps the second byte. PNG's are others: it is the low one.
    low.tile = [(*tile[:3], f"{image.mode};16L") for tile in tiles]
    values = np.asarray(image).astype(np.uint16)
    values <<= 8
    values |= np.asarray(low)
    return values


def _as_rgba(data: bytes) -> bytes:
    """A file of grey and opacity in 16 bits as one of four channels in 8: the bytes of a pixel, and
    so those of the filters, are the same (PNG, section 9.2)."""
    header = b"IHDR" + data[16:24] + bytes([8, 6]) + data[26:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
