"""Small real image files, and stores made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_gen.data import Store, open_store


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Pixels that no codec or resize gives by chance: (H, W, C), or (H, W) for one channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def write(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    """Saves an image in the format of its extension, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def write_classes(root: Path, classes: dict[str, int], size: int = 8) -> Path:
    """A folder for each class, with RGB images: `classes` says how many."""
    for name, count in classes.items():
        for index in range(count):
            write(root / name / f"{index:03}.png", noise(size, size, 3, seed=index))
    return root


def damage(path: Path) -> Path:
    """Cuts the file in half, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def opened(source: Any, cache_folder: Path, **settings: Any) -> Store:
    """`open_store` with the defaults of an experiment."""
    defaults: dict[str, Any] = {
        "image_size": None,
        "center_crop": None,
        "channels": None,
        "held_out_fraction": 0.0,
        "on_corrupt": "stop",
    }
    return open_store(source, cache_folder=cache_folder, **{**defaults, **settings})
