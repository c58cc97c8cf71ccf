"""The ladder of resolutions that strided convolutions climb."""

from __future__ import annotations

from ray_gen.core import Shape


def halvings(image_shape: Shape) -> tuple[int, int]:
    """How often a square image halves, and the side that is left: 64 -> (4, 4), 28 -> (2, 7).

    Raises ValueError for what is not 4·2^n from 8 up or 28.
    """
    _, height, width = image_shape
    if height == width == 28:
        return 2, 7
    if height == width and height >= 8 and height & (height - 1) == 0:
        return height.bit_length() - 3, 4
    raise ValueError(
        f"makes square images of 4·2^n from 8 up (8, 16, 32, 64, …) or 28 pixels, and "
        f"data.image_size is {height} x {width}"
    )
