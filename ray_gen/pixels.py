"""Pixels in their three forms: the levels of a file, [0, 1], and the range of an objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 256
"""Number of values that a pixel of 8 bits can have: uint8, 0 to 255."""
DEEP_LEVELS = 65_536
"""Number of values that a pixel of 16 bits can have: uint16, 0 to 65,535."""


def levels_of(dtype: torch.dtype) -> int | None:
    """Number of levels of a stored pixel: 256 of uint8, 65,536 of uint16. None: floats are maps,
    whose values are no levels."""
    if dtype.is_floating_point:
        return None
    return DEEP_LEVELS if dtype == torch.uint16 else LEVELS


def to_range(
    images_NHWC: Tensor, image_range: tuple[float, float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Stored images (N, H, W, C) to floats (N, C, H, W), channels-last. Level 0 becomes `low`, the
    highest level `high`: 255 of uint8, 65,535 of uint16. Maps, float16, keep their values."""
    floats = images_NHWC.permute(0, 3, 1, 2).to(dtype)
    levels = levels_of(images_NHWC.dtype)
    if levels is None:
        return floats
    low, high = image_range
    most = levels - 1.0
    return floats.mul_((high - low) / most).add_(low) if low else floats.mul_(high / most)


def unit(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels to [0, 1], of the same shape: uint8 0 to 255, uint16 0 to 65,535. Maps, float16, keep
    their values."""
    count = levels_of(levels.dtype)
    return levels.to(dtype) if count is None else levels.to(dtype) / (count - 1)


def stretched(images: Tensor, image_range: tuple[float, float]) -> Tensor:
    """[0, 1] to [low, high], of the same shape."""
    low, high = image_range
    return images * (high - low) + low


def unstretched(images: Tensor, image_range: tuple[float, float]) -> Tensor:
    """[low, high] to [0, 1], of the same shape."""
    low, high = image_range
    return images.sub(low).mul(1 / (high - low))


def quantised(images: Tensor, bits: int = 8) -> Tensor:
    """[0, 1] to levels on the same device, as an image file would hold them: uint8, or uint16 for
    16 bits.

    Clamped and rounded to the nearest of 256 or 65,536 levels, never stretched to the range that a
    sample happens to have.
    """
    unit_values = images.detach().float().clamp(0.0, 1.0)
    if bits == 16:
        return unit_values.mul(DEEP_LEVELS - 1.0).round().to(torch.uint16)
    return unit_values.mul(LEVELS - 1.0).round().to(torch.uint8)


@dataclass(frozen=True)
class PixelFormat:
    """What the numbers of image files mean: bits of a channel, the values that stand for 0 and 1,
    and whether the last channel is opacity."""

    bits: int = 8
    values: tuple[int, int] | None = None
    """Only of 16 bits: the values of black and white, e.g. 0 and 4,095 of data with 12 bits. None:
    0 and 65,535. Opacity always goes from 0 to 65,535."""
    opacity: bool = False
    """Whether the last channel is opacity. Only of 2 channels (grey) or 4 (RGB)."""


def as_in_files(images: Tensor, form: PixelFormat) -> Tensor:
    """(N, C, H, W) in [0, 1] to the numbers of files, rounded: uint8, or uint16 for 16 bits."""
    levels = quantised(images, form.bits)
    if form.values is None:
        return levels
    low, high = form.values
    values = images.detach().float().clamp(0.0, 1.0).mul(high - low).add(low).round()
    values = values.to(torch.uint16)
    if form.opacity:
        return torch.cat([values[:, :-1], levels[:, -1:]], dim=1)
    return values


def selected(images: Tensor, numbers: Tensor) -> Tensor:
    """The images with these numbers, of stored images of any type. numbers: int64 (N,), on the
    device of the images.

    uint16 is indexed as int16: on a GPU torch knows few operations for it.
    """
    if images.dtype == torch.uint16:
        return images.view(torch.int16).index_select(0, numbers).view(torch.uint16)
    return images.index_select(0, numbers)


def over(images: Tensor, backdrop: Tensor | float) -> Tensor:
    """Images with opacity a on a backdrop b: c a + b (1 - a). (N, 2 or 4, H, W) in [0, 1] to (N, 1
    or 3, H, W). The backdrop broadcasts to the result; 1 is white."""
    colours, opacity = images[:, :-1], images[:, -1:]
    return colours * opacity + backdrop * (1 - opacity)


def channels_in_words(channels: int, *, opacity: bool, bits: int = 8) -> str:
    """ "grey", "grey with opacity", "RGB", "RGBA", "5 channels"; and ", 16 bits".

    opacity: whether the last of the channels is opacity.
    """
    colours = channels - opacity
    told = {1: "grey", 3: "RGB"}.get(colours, f"{colours} channels")
    if opacity:
        told = "RGBA" if told == "RGB" else f"{told} with opacity"
    return told + (", 16 bits" if bits == 16 else "")
