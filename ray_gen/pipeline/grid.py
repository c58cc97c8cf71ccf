"""`Grid`: a picture of samples, which a notebook shows and `save` writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ray_gen.errors import Refused
from ray_gen.runs.pictures import Levels, png_of, save_png


@dataclass(frozen=True, eq=False)
class Grid:
    """A picture of images in rows: `Pipeline.grid`. A notebook shows it."""

    pixels: Levels
    """uint8 (H, W, 1 or 3)."""
    told: str
    """What it shows."""

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        return f"Grid({self.told}, {height}x{width} pixels)"

    def _repr_png_(self) -> bytes:
        return png_of(self.pixels)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a .png file, whole or not at all. Makes the folder. Returns the path."""
        file = Path(path).expanduser()
        if file.suffix.lower() != ".png":
            raise Refused(f"path: {file} is not a .png; give the file a name that ends in .png")
        save_png(self.pixels, file)
        return file
