"""Turns batches of images of any channels into one picture, and writes pictures."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.pixels import PixelFormat, as_in_files, over, quantised

if TYPE_CHECKING:
    from PIL.Image import Image

Levels = NDArray[np.uint8 | np.uint16]
"""Pixels of images: uint8, or uint16 for 16 bits."""

EIGHT_BITS = PixelFormat()

_SQUARE = 8
"""Pixels: side of a square of the checkerboard below transparent images."""
_LIGHT, _DARK = 0.85, 0.75
"""Greys of the checkerboard."""


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, C), rounded to the nearest of 256 levels."""
    return quantised(images).permute(0, 2, 3, 1).cpu().numpy()


def to_levels(images: Tensor, form: PixelFormat) -> Levels:
    """(N, C, H, W) in [0, 1] to the numbers of files, (N, H, W, C): uint8 or uint16."""
    return as_in_files(images, form).permute(0, 2, 3, 1).cpu().numpy()


def viewed(images: Tensor, *, opacity: bool = False) -> Tensor:
    """Images as people see them: (N, C, H, W) in [0, 1] to grey or RGB, (N, 1 or 3, H, W).

    opacity: whether the last channel is opacity. Then images lie on a checkerboard. Else two
    channels are red and green, and of four or more the first three are red, green and blue
    (`channels_viewed` says so).
    """
    channels, height, width = images.shape[1:]
    if opacity:
        values = images.detach().float().clamp(0.0, 1.0)
        return over(values, _checkerboard(height, width).to(values.device))
    if channels == 2:
        return torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
    return images[:, :3]


def channels_viewed(channels: int, *, opacity: bool = False) -> str:
    """How a picture shows the channels of such images, as an addition to a sentence. Empty: as
    people expect it."""
    if opacity or channels in (1, 3):
        return ""
    if channels == 2:
        return ", channels 1 and 2 as red and green"
    return f", channels 1 to 3 of {channels} as red, green and blue"


def _checkerboard(height: int, width: int) -> Tensor:
    """Light and dark grey squares: (H, W) in [0, 1]. At least four squares a side."""
    side = max(1, min(_SQUARE, height // 4, width // 4))
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return torch.where((rows[:, None] + columns) % 2 == 0, _LIGHT, _DARK)


def grid(
    images: Tensor, columns: int | None = None, gap: int = 2, *, opacity: bool = False
) -> NDArray[np.uint8]:
    """Images in rows, in reading order, on white: (N, C, H, W) in [0, 1] to uint8 (H', W', 1 or 3),
    see `viewed`.

    columns None: as square as possible.
    """
    tiles = to_bytes(viewed(images, opacity=opacity))
    count, height, width, channels = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    picture = np.full(shape, 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture


def in_turn_rows(first: Tensor, second: Tensor, columns: int, *, opacity: bool = False) -> Tensor:
    """Alternates rows of `first` and rows of `second`, for a grid with `columns` columns: two times
    (N, C, H, W) to (2N, 1 or 3, H, W), see `viewed`. White images fill up the last row of each."""
    first, second = (viewed(images, opacity=opacity) for images in (first, second))
    missing = -len(first) % columns
    white = first.new_ones(missing, *first.shape[1:])
    rows = (torch.cat([images, white]).split(columns) for images in (first, second))
    return torch.cat([row for pair in zip(*rows, strict=True) for row in pair])


def equation(
    groups: Sequence[tuple[str, Tensor, Tensor]],
    results: Tensor,
    gap: int = 2,
    *,
    opacity: bool = False,
) -> NDArray[np.uint8]:
    """Vector arithmetic as in Radford et al. 2016, figure 7: uint8 (H', W', 1 or 3), see `viewed`.

    groups: each a sign "+" or "-", the group's images (N, C, H, W) and the image of its mean (1, C,
    H, W). They form a column, with the mean at the bottom. results: nine images (9, C, H, W).
    """
    channels, height, width = viewed(results, opacity=opacity).shape[1:]
    parts: list[NDArray[np.uint8]] = []
    for index, (sign, images, mean) in enumerate(groups):
        if index or sign != "+":
            parts.append(_sign(sign, height, width, channels, gap))
        space = np.full((height // 3, width + 2 * gap, channels), 255, dtype=np.uint8)
        pictures = [grid(part, 1, gap, opacity=opacity) for part in (images, mean)]
        parts.append(np.concatenate([pictures[0], space, pictures[1]]))
    equals = _sign("=", height, width, channels, gap)
    parts += [equals, grid(results, 3, gap, opacity=opacity)]
    tallest = max(len(part) for part in parts)
    above = (((tallest - len(part), 0), (0, 0), (0, 0)) for part in parts)
    return np.concatenate(
        [
            np.pad(part, padding, constant_values=255)
            for part, padding in zip(parts, above, strict=True)
        ],
        axis=1,
    )


def _sign(sign: str, height: int, width: int, channels: int, gap: int) -> NDArray[np.uint8]:
    """A plus, minus or equals sign as high as one tile and half as wide."""
    picture = np.full((height + 2 * gap, width // 2 + 2 * gap, channels), 255, dtype=np.uint8)
    middle, centre = len(picture) // 2, picture.shape[1] // 2
    arm, half = max(2, width // 8), max(1, width // 32)
    for bar in (middle - 2 * half, middle + 2 * half) if sign == "=" else (middle,):
        picture[bar - half : bar + half, centre - arm : centre + arm] = 0
    if sign == "+":
        picture[middle - arm : middle + arm, centre - half : centre + half] = 0
    return picture


def zoomed(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Each pixel becomes a square of factor x factor pixels."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def save_png(picture: Levels, path: Path) -> None:
    """Write (H, W, C) as a PNG file, whole or not at all: uint8 grey, LA, RGB or RGBA, or
    uint16 grey."""
    with _whole(path) as partial:
        _pillow(picture).save(partial, format="PNG")


def save_tiff(picture: Levels, path: Path, *, opacity: bool = False) -> None:
    """Write (H, W, C), uint8 or uint16, as a TIFF file of C bands, whole or not at all. opacity:
    whether the last is opacity."""
    from ray_gen.data.pictures import write_tiff

    with _whole(path) as partial:
        write_tiff(partial, picture, opacity=opacity)


def file_kind(channels: int, form: PixelFormat) -> str:
    """The kind of file that holds such an image: ".png", or ".tiff" if PNG or Pillow cannot."""
    known = channels - form.opacity in (1, 3)
    return ".png" if channels == 1 or (known and form.bits == 8) else ".tiff"


def save_gif(frames: Sequence[NDArray[np.uint8]], path: Path, milliseconds: int = 100) -> None:
    """Write pictures as an endless animation, forwards and then backwards, whole or not at all."""
    first, *others = [_pillow(frame) for frame in (*frames, *frames[-2:0:-1])]
    with _whole(path) as partial:
        first.save(
            partial,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=milliseconds,
            loop=0,
        )


def _pillow(picture: Levels) -> Image:
    from PIL import Image

    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


@contextmanager
def _whole(path: Path) -> Generator[Path]:
    """A temporary path to write to. It is renamed to `path` if the `with` statement succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_samples(
    batches: Iterator[Tensor],
    count: int,
    output: Path,
    zoom: int = 1,
    form: PixelFormat = EIGHT_BITS,
) -> str:
    """Write images in [0, 1] as one grid (.png), one array (.npz: `images`, uint8 NHWC), or a
    folder of files: PNG, or TIFF for images that PNG cannot hold. Returns a description of the
    output.

    form: of the numbers in arrays and in a folder. A grid has 8 bits.
    """
    if output.suffix.lower() == ".png":
        images = torch.cat(list(batches))
        save_png(zoomed(grid(images, opacity=form.opacity), zoom), output)
        shown = channels_viewed(images.shape[1], opacity=form.opacity)
        return f"{output}: a grid of {count} images{shown}"
    if output.suffix.lower() == ".npz":
        levels = np.concatenate([to_levels(batch, form) for batch in batches])
        return f"{output}: `images`, {save_npz(output, images=levels)}{_values(form)}"
    for kind in ("png", "tiff"):
        if any(output.glob(f"*.{kind}")):
            raise Refused(
                f"--output: {output} already contains {kind.upper()} files; give another folder"
            )
    index, suffix = 0, ".png"
    for batch in batches:
        suffix = file_kind(batch.shape[1], form)
        save = save_png if suffix == ".png" else functools.partial(save_tiff, opacity=form.opacity)
        for image in to_levels(batch, form):
            save(image, output / f"{index:06d}{suffix}")
            index += 1
    return f"{output}: {index} {suffix[1:].upper()} files{_values(form)}"


def save_rows(images: Tensor, output: Path, zoom: int = 1, form: PixelFormat = EIGHT_BITS) -> str:
    """Write images (R, S, C, H, W) in [0, 1], R rows of S steps, as one grid (.png), an animation
    of its columns (.gif), one array (.npz: `images`, uint8 RSHWC), or a folder of files in reading
    order. Returns a description of the output. form: see `save_samples`."""
    rows, steps, channels = images.shape[:3]
    said = f"{rows} row{'s' if rows > 1 else ''} of {steps} steps"
    shown = channels_viewed(channels, opacity=form.opacity)
    as_picture = functools.partial(grid, opacity=form.opacity)
    kind = output.suffix.lower()
    if kind == ".png":
        save_png(zoomed(as_picture(images.flatten(0, 1), steps), zoom), output)
        return f"{output}: {said}{shown}"
    if kind == ".gif":
        save_gif([zoomed(as_picture(images[:, step]), zoom) for step in range(steps)], output)
        return f"{output}: {said}, forwards and backwards{shown}"
    if kind == ".npz":
        levels = to_levels(images.flatten(0, 1), form)
        shape = (rows, steps, *levels.shape[1:])
        written = save_npz(output, images=levels.reshape(shape))
        return f"{output}: `images`, {written}{_values(form)}"
    return f"{save_samples(iter(images), rows * steps, output, form=form)}, {said}"


def save_pairs(
    pairs: Iterable[tuple[Tensor, Tensor]],
    output: Path,
    zoom: int = 1,
    form: PixelFormat = EIGHT_BITS,
) -> str:
    """Write batches of images in [0, 1] and their reconstructions as a grid that alternates rows of
    images and rows of reconstructions (.png), as arrays (.npz: `images`, `reconstructions`, uint8
    NHWC), or the reconstructions alone as a folder of files. Returns a description of the output.
    form: see `save_samples`."""
    images, made = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if output.suffix.lower() == ".png":
        columns = min(len(images), 8)
        picture = grid(in_turn_rows(images, made, columns, opacity=form.opacity), columns)
        save_png(zoomed(picture, zoom), output)
        shown = channels_viewed(images.shape[1], opacity=form.opacity)
        return f"{output}: {len(images)} images, each above its reconstruction{shown}"
    if output.suffix.lower() == ".npz":
        ours, theirs = to_levels(images, form), to_levels(made, form)
        written = save_npz(output, images=ours, reconstructions=theirs)
        return f"{output}: `images` and `reconstructions`, {written}{_values(form)}"
    return f"{save_samples(iter([made]), len(made), output, form=form)} of reconstructions"


def _values(form: PixelFormat) -> str:
    """The values of black and white, as an addition to a sentence, if a reader may not expect
    them."""
    if form.values is None:
        return ""
    low, high = form.values
    return f", values {low:,} to {high:,} as in the data"


def save_npz(output: Path, **arrays: Levels) -> str:
    """Write named arrays to one compressed file, whole or not at all. Returns the type and shape of
    the first array, for a message."""
    with _whole(output) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    first = next(iter(arrays.values()))
    return f"{first.dtype} {first.shape}"
