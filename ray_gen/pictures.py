"""Batches of images as one picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_gen.errors import Refused


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, C), rounded to the nearest of 256 levels."""
    levels = images.detach().float().clamp(0.0, 1.0).mul(255.0).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """Images in rows, in reading order, on white: (N, C, H, W) in [0, 1] to uint8 (H', W', C).

    columns None makes it as square as it can be.
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


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """uint8 (H, W, C) with C of 1 or 3 as a PNG file, written whole or not at all."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pixels = picture[:, :, 0] if picture.shape[2] == 1 else picture
    Image.fromarray(pixels).save(partial, format="PNG")
    partial.replace(path)


def save_samples(batches: Iterator[Tensor], count: int, output: Path) -> str:
    """Images in [0, 1] as one grid (.png), one array (.npz: `images`, uint8 NHWC), or a folder of
    PNG files; returns what was written, in words."""
    if output.suffix.lower() == ".png":
        save_png(grid(torch.cat(list(batches))), output)
        return f"{output}: a grid of {count} images"
    if output.suffix.lower() == ".npz":
        output.parent.mkdir(parents=True, exist_ok=True)
        images = np.concatenate([to_bytes(batch) for batch in batches])
        np.savez_compressed(output, images=images)
        return f"{output}: `images`, uint8 {images.shape}"
    if any(output.glob("*.png")):
        raise Refused(f"--output: {output} has PNG files in it already; name another folder")
    index = 0
    for batch in batches:
        for image in to_bytes(batch):
            save_png(image, output / f"{index:06d}.png")
            index += 1
    return f"{output}: {index} PNG files"
