"""The image sizes that convolutional networks can have. Imports no torch: the settings ask it too.

A generator doubles the sides of a small start map until they are the image's, and a discriminator
halves them down to it. Each size has one start map: its shorter side is 4 to 7. Squares of 2^n
pixels start at 4 x 4, as the published networks do; 28 x 28 starts at 7 x 7, 96 x 160 at 6 x 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Size = tuple[int, int]
"""(height, width)"""

_LEAST_START = 4
_LEAST_SIDE = 2 * _LEAST_START


def halvings(image_shape: Sequence[int]) -> tuple[int, Size]:
    """How often the sides of an image (C, H, W) are halved, and the start map that remains:
    (3, 64, 64) -> (4, (4, 4)), (1, 28, 28) -> (2, (7, 7)).

    Raises ValueError if the image has no start map.
    """
    _, height, width = image_shape
    problem = size_problem(height, width)
    if problem is not None:
        raise ValueError(problem)
    steps = _steps(height, width)
    return steps, (height >> steps, width >> steps)


def size_problem(height: int, width: int) -> str | None:
    """Why an image has no start map, and the nearest sizes that have one. None if it has one."""
    if _has_start(height, width):
        return None
    near = " or ".join(f"{h} x {w}" for h, w in _nearest(height, width))
    if min(height, width) < _LEAST_SIDE:
        why = f"needs sides of at least {_LEAST_SIDE} pixels"
    else:
        why = (
            f"needs sides that are multiples of {1 << _steps(height, width)} pixels, so that "
            f"halving leaves {_LEAST_START} to {2 * _LEAST_START - 1} of the shorter one"
        )
    return f"{why}, but data.image_size is {height} x {width}; the nearest that work: {near}"


def _steps(height: int, width: int) -> int:
    """The halvings that leave 4 to 7 pixels of the shorter side."""
    return max(1, (min(height, width) // _LEAST_START).bit_length() - 1)


def _has_start(height: int, width: int) -> bool:
    multiple = 1 << _steps(height, width)
    return min(height, width) >= _LEAST_SIDE and height % multiple == width % multiple == 0


def _nearest(height: int, width: int) -> list[Size]:
    """The two nearest sizes that have a start map: squares for a square."""
    found = {
        (h, w)
        # If the shorter side grows to the next power of two, the multiple doubles.
        for multiple in (1 << _steps(height, width), 2 << _steps(height, width))
        for h in _around(height, multiple)
        for w in _around(width, multiple)
        if _has_start(h, w) and (h == w or height != width)
    }
    return sorted(found, key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size))[:2]


def _around(side: int, multiple: int) -> Iterator[int]:
    """The multiples below and above a side, from 8 up."""
    below = side // multiple * multiple
    for near in (below, below + multiple if below < side else below):
        yield max(near, _LEAST_SIDE)


def halvings_between(large: Sequence[int], small: Sequence[int]) -> int:
    """How often both sides of a map (C, H, W) are halved until they are those of a smaller one:
    (3, 64, 96) and (4, 16, 24) -> 2.

    Raises ValueError if they are not a map and its halved one.
    """
    (_, height, width), (_, h, w) = large, small
    steps = (height // h).bit_length() - 1
    if steps < 1 or (height, width) != (h << steps, w << steps):
        raise ValueError(
            f"halves or doubles both sides of a map, once or more, and {height} x {width} is not "
            f"{h} x {w} times 2, 4, 8, …; change the size of the smaller one"
        )
    return steps


def multiple_problem(height: int, width: int, multiple: int) -> str | None:
    """Why an image whose sides must be multiples of a number cannot have this size, and the nearest
    that can. None if it can."""
    if height % multiple == width % multiple == 0:
        return None
    below = [max(side // multiple, 1) * multiple for side in (height, width)]
    above = [-(-side // multiple) * multiple for side in (height, width)]
    near = " or ".join(f"{h} x {w}" for h, w in sorted({(*below,), (*above,)}))
    return (
        f"needs sides that are multiples of {multiple} pixels, but data.image_size is "
        f"{height} x {width}; the nearest that work: {near}"
    )


def patch_problem(height: int, width: int, layers: int) -> str | None:
    """Why a patch discriminator with so many halvings cannot judge an image, and how many it may
    have. None if it can. It leaves H / 2^layers - 2 patches on a side, rounded down."""
    fits = (min(height, width) // 3).bit_length() - 1
    if layers <= fits:
        return None
    if fits < 1:
        return f"needs sides of at least 6 pixels, but data.image_size is {height} x {width}"
    return (
        f"leaves no patch of {height} x {width} pixels after {layers} halvings; set layers to "
        f"{fits}" + (" or less" if fits > 1 else "")
    )


def channels_at(height: int, width: int, channel_base: int, channel_max: int) -> int:
    """Channels of a map of this size: channel_base / √(height · width), at most `channel_max`."""
    return max(1, min(channel_base // math.isqrt(height * width), channel_max))
