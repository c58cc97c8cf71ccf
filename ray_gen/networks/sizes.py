"""The image sizes that networks of strided convolutions can have."""

from __future__ import annotations

from ray_gen.core import Shape


def halvings(image_shape: Shape) -> tuple[int, int]:
    """How often a square image is halved, and the side that remains: 64 -> (4, 4), 28 -> (2, 7).

    Raises ValueError unless the image is square and its side is 28, or 4·2^n and at least 8.
    """
    _, height, width = image_shape
    if height == width == 28:
        return 2, 7
    if height == width and height >= 8 and height & (height - 1) == 0:
        return height.bit_length() - 3, 4
    raise ValueError(
        f"needs square images with a side of 4·2^n from 8 up (8, 16, 32, 64, …) or 28 pixels, but "
        f"data.image_size is {height} x {width}"
    )
