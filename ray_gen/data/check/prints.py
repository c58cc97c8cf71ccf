"""Fingerprints of images: equal for equal pixels, and close for copies in another size or file
format."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGEST_BYTES = 16
GREY_VALUES, COLOUR_VALUES = 64, 32
PRINT_BYTES = GREY_VALUES + COLOUR_VALUES
"""A print: brightness on 8×8 places, then blue and red against brightness on 4×4 places."""
REDUCING_GAP = 3.0
"""Pillow first averages blocks of pixels, down to 3 times the wanted size. Large images take a
fraction of the time; the values differ by less than 1 of 255."""


def digest_of(values_HWC: NDArray[Any]) -> bytes:
    """Digest of the shape, type and values of an image."""
    told = repr((values_HWC.shape, str(values_HWC.dtype))).encode()
    digest = hashlib.blake2b(told, digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(values_HWC).data.cast("B"))
    return digest.digest()


def print_of(bytes_HWC: NDArray[np.uint8]) -> bytes:
    """The print of an image."""
    small = resized(bytes_HWC, (8, 8))
    if small.shape[2] == 1:
        return small.tobytes() + b"\x80" * COLOUR_VALUES
    if small.shape[2] == 3:
        bands = np.asarray(Image.fromarray(small).convert("YCbCr"))
        grey, colours = bands[..., 0], bands[..., 1:].astype(np.float32)
    else:
        mean = small.astype(np.float32).mean(2)
        grey = np.rint(mean).astype(np.uint8)
        ends = small[..., (0, -1)].astype(np.float32)
        colours = 128 + (ends - mean[..., None]) / 2
    places = colours.reshape(4, 2, 4, 2, 2).mean((1, 3))
    return grey.tobytes() + np.rint(places).clip(0, 255).astype(np.uint8).tobytes()


def resized(
    bytes_HWC: NDArray[np.uint8],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    """A part of an image in another size (width, height), each pixel the mean of what it covers."""
    channels = bytes_HWC.shape[2]
    parts = [bytes_HWC] if channels == 3 else [bytes_HWC[..., c] for c in range(channels)]
    small = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(part)).resize(
                size, Resampling.BILINEAR, box=box, reducing_gap=REDUCING_GAP
            )
        )
        for part in parts
    ]
    return small[0] if channels == 3 else np.stack(small, axis=2)


def as_bytes(values_HWC: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Numbers of any type as uint8: `low` becomes 0 and `high` 255."""
    scale = 255 / (high - low) if high > low and math.isfinite(high - low) else 0.0
    return np.rint((values_HWC.astype(np.float64) - low) * scale).clip(0, 255).astype(np.uint8)
