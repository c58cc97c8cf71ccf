"""`convert`: writes a data set as sharded Parquet, in tasks on the CPU cores of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray_gen.data.build import surveyed, with_shape_of_first
from ray_gen.data.convert import Conversion, Layout
from ray_gen.data.sources.base import Source
from ray_gen.data.store import wanted_of
from ray_gen.data.wanted import Wanted
from ray_gen.errors import Refused
from ray_gen.experiment import absolute_path
from ray_gen.experiment.data import DataSettings
from ray_gen.launch.parts import written
from ray_gen.storage import Folder
from ray_gen.training.sources import source_of

_OF_PIXELS = ("center_crop", "channels")
_CHANGING = ("bits", "value_range", "fit", "pad", "jpeg_scaling", "max_pixels")
"""Settings of pixels. Files that are stored unchanged keep none of them."""
ConvertProgress = Callable[[int, int, str], None]


def convert(
    data: DataSettings,
    destination: str,
    *,
    shard_images: int = 8192,
    group_images: int = 256,
    seed: int = 0,
    progress: ConvertProgress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Write the images of `data` as Parquet that can be streamed, and return its manifest.

    With `image_size`, stores uint8 pixels of that size. Training reads them some ten times faster
    than it decodes files. Without it, stores the files unchanged. Writes only parts that are
    missing. destination: folder or URI. shard_images: images in a file, at most.
    group_images: images in a row group, at most. seed: of the images' order. Raises Refused.
    """
    folder = Folder(absolute_path(destination))
    folder.check_writable("another DESTINATION")
    source = source_of(data)
    layout = Layout(
        _wanted(data, source, progress),
        data.held_out_fraction,
        data.on_corrupt == "skip",
        shard_images,
        group_images,
        seed,
    )
    return written(Conversion(source, layout, folder), progress)


def _wanted(data: DataSettings, source: Source, progress: ConvertProgress) -> Wanted | None:
    """The pixels to store; None to store files. Settings that are not given follow the images."""
    if data.image_size is None:
        changed = [name for name in _OF_PIXELS if getattr(data, name) is not None]
        for name, info in type(data).model_fields.items():
            if name in _CHANGING and getattr(data, name) != info.default:
                changed.append(name)
        if getattr(data, "frames", None) == "channels":
            changed.append("frames")
        if changed:
            raise Refused(
                f"data.image_size: is required with {' and '.join(changed)}; without it the image"
                " files are stored unchanged"
            )
        return None
    wanted = wanted_of(**data.pixels())
    listing = source.listing()
    found, items = with_shape_of_first(
        wanted, listing.items, source.field, data.on_corrupt == "skip"
    )
    if found.rules == 1 or not (found.guessed_channels or found.guessed_range):
        return found

    def looked_at(done: int, total: int) -> None:
        progress(done, total, "looking at headers")

    return surveyed(items, replace(wanted, size_HW=found.size_HW), listing.count, looked_at)
