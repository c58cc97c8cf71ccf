"""Turns batches of images into one picture, and writes pictures."""

from __future__ import annotations

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
from ray_gen.pixels import quantised

if TYPE_CHECKING:
    from PIL.Image import Image


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, C), rounded to the nearest of 256 levels."""
    return quantised(images).permute(0, 2, 3, 1).cpu().numpy()


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """Images in rows, in reading order, on white: (N, C, H, W) in [0, 1] to uint8 (H', W', C).

    columns None: as square as possible.
    """
    tiles = to_bytes(images)
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


def in_turn_rows(first: Tensor, second: Tensor, columns: int) -> Tensor:
    """Alternates rows of `first` and rows of `second`, for a grid with `columns` columns: two times
    (N, C, H, W) to (2N, C, H, W). White images fill up the last row of each."""
    missing = -len(first) % columns
    white = first.new_ones(missing, *first.shape[1:])
    rows = (torch.cat([images, white]).split(columns) for images in (first, second))
    return torch.cat([row for pair in zip(*rows, strict=True) for row in pair])


def equation(
    groups: Sequence[tuple[str, Tensor, Tensor]], results: Tensor, gap: int = 2
) -> NDArray[np.uint8]:
    """Vector arithmetic as in Radford et al. 2016, figure 7: uint8 (H', W', C).

    groups: each a sign "+" or "-", the group's images (N, C, H, W) and the image of its mean (1, C,
    H, W). They form a column, with the mean at the bottom. results: nine images (9, C, H, W).
    """
    _, _, height, width = results.shape
    parts: list[NDArray[np.uint8]] = []
    for index, (sign, images, mean) in enumerate(groups):
        if index or sign != "+":
            parts.append(_sign(sign, height, width, results.shape[1], gap))
        space = np.full((height // 3, width + 2 * gap, results.shape[1]), 255, dtype=np.uint8)
        parts.append(np.concatenate([grid(images, 1, gap), space, grid(mean, 1, gap)]))
    parts += [_sign("=", height, width, results.shape[1], gap), grid(results, 3, gap)]
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


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Write uint8 (H, W, C), C = 1 or 3, as a PNG file, whole or not at all."""
    with _whole(path) as partial:
        _pillow(picture).save(partial, format="PNG")


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


def _pillow(picture: NDArray[np.uint8]) -> Image:
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


def save_samples(batches: Iterator[Tensor], count: int, output: Path, zoom: int = 1) -> str:
    """Write images in [0, 1] as one grid (.png), one array (.npz: `images`, uint8 NHWC), or a
    folder of PNG files. Returns a description of the output."""
    if output.suffix.lower() == ".png":
        save_png(zoomed(grid(torch.cat(list(batches))), zoom), output)
        return f"{output}: a grid of {count} images"
    if output.suffix.lower() == ".npz":
        shape = save_npz(output, images=np.concatenate([to_bytes(batch) for batch in batches]))
        return f"{output}: `images`, uint8 {shape}"
    if any(output.glob("*.png")):
        raise Refused(f"--output: {output} already contains PNG files; give another folder")
    index = 0
    for batch in batches:
        for image in to_bytes(batch):
            save_png(image, output / f"{index:06d}.png")
            index += 1
    return f"{output}: {index} PNG files"


def save_rows(images: Tensor, output: Path, zoom: int = 1) -> str:
    """Write images (R, S, C, H, W) in [0, 1], R rows of S steps, as one grid (.png), an animation
    of its columns (.gif), one array (.npz: `images`, uint8 RSHWC), or a folder of PNG files in
    reading order. Returns a description of the output."""
    rows, steps = images.shape[:2]
    said = f"{rows} row{'s' if rows > 1 else ''} of {steps} steps"
    kind = output.suffix.lower()
    if kind == ".png":
        save_png(zoomed(grid(images.flatten(0, 1), steps), zoom), output)
        return f"{output}: {said}"
    if kind == ".gif":
        save_gif([zoomed(grid(images[:, step]), zoom) for step in range(steps)], output)
        return f"{output}: {said}, forwards and backwards"
    if kind == ".npz":
        levels = to_bytes(images.flatten(0, 1))
        shape = save_npz(output, images=levels.reshape(rows, steps, *levels.shape[1:]))
        return f"{output}: `images`, uint8 {shape}"
    return f"{save_samples(iter(images), rows * steps, output)}, {said}"


def save_pairs(pairs: Iterable[tuple[Tensor, Tensor]], output: Path, zoom: int = 1) -> str:
    """Write batches of images in [0, 1] and their reconstructions as a grid that alternates rows of
    images and rows of reconstructions (.png), as arrays (.npz: `images`, `reconstructions`, uint8
    NHWC), or the reconstructions alone as a folder of PNG files. Returns a description of the
    output."""
    images, made = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if output.suffix.lower() == ".png":
        columns = min(len(images), 8)
        picture = grid(in_turn_rows(images, made, columns), columns)
        save_png(zoomed(picture, zoom), output)
        return f"{output}: {len(images)} images, each above its reconstruction"
    if output.suffix.lower() == ".npz":
        shape = save_npz(output, images=to_bytes(images), reconstructions=to_bytes(made))
        return f"{output}: `images` and `reconstructions`, uint8 {shape}"
    return f"{save_samples(iter([made]), len(made), output)} of reconstructions"


def save_npz(output: Path, **arrays: NDArray[np.uint8]) -> tuple[int, ...]:
    """Write named arrays to one compressed file, whole or not at all. Returns the shape of the
    first array."""
    with _whole(output) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return next(iter(arrays.values())).shape
