"""Input images for a run: files, converted as in training, and the run's own data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.pipeline.arguments import BATCH
from ray_gen.pixels import unit

if TYPE_CHECKING:
    from PIL.Image import Image

Part = tuple[Tensor, Sequence[int | str] | None]
"""Images (N, C, H, W) in [0, 1], and their labels if they are known."""


def image_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The given files. A folder is replaced by all images below it, sorted by path."""
    from ray_gen.data.sources.folder import EXTENSIONS

    found: list[Path] = []
    for given in paths:
        if not isinstance(given, (str, os.PathLike)):  # pyright: ignore
            raise Refused(f"paths: name image files or folders, not {type(given).__name__}")
        path = Path(given).expanduser()
        if not path.is_dir():
            found.append(path)
            continue
        inside = [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
        ]
        if not inside:
            raise Refused(f"{path}: has no images; their names end in {', '.join(EXTENSIONS)}")
        found += inside
    return found


def read_images(files: Iterable[Path], experiment: Experiment) -> Tensor:
    """Float (N, C, H, W) in [0, 1], converted, cropped and resized as the run's `data` settings say
    (see `data/decode.py`).

    If an image is too small for `data.center_crop`, the whole image is used. Samples of the run
    itself can be such images.
    """
    # Imported here: `ray_gen.data` imports Arrow, which sampling does not need.
    from ray_gen.data import DataError
    from ray_gen.data.decode import CorruptImageError, Wanted, decode
    from ray_gen.data.sources.base import Item

    channels, height, width = experiment.image_shape
    wanted = Wanted((height, width), experiment.data.center_crop, channels)
    images: list[Tensor] = []
    for file in files:
        if not file.is_file():
            raise Refused(f"{file}: there is no such image")
        item = Item(key=file.name, name=str(file), split=None, load=partial(_load, file))
        try:
            decoded = decode(item, wanted, "images")
        except DataError:  # too small for the crop, or unreadable: then the next line raises
            decoded = decode(item, replace(wanted, center_crop=None), "images")
        if isinstance(decoded, CorruptImageError):
            raise Refused(f"{file}: cannot be decoded as an image: {decoded}")
        images.append(torch.from_numpy(decoded[0].copy()).permute(2, 0, 1))
    if not images:
        raise Refused("images: no file was named; name at least one")
    return unit(torch.stack(images))


def _load(file: Path) -> tuple[Image, int | None]:
    from ray_gen.data.sources.base import read_image

    with file.open("rb") as stream:
        return read_image(stream), None


def from_files(
    experiment: Experiment,
    paths: Iterable[str | os.PathLike[str]],
    labels: Sequence[int | str] | None = None,
    count: int | None = None,
) -> Iterator[Part]:
    """Images from files, and from all files below folders, in parts; at most `count`.

    labels: one for all, or one for each.
    """
    files = image_files(paths)
    if labels is not None and len(labels) not in (1, len(files)):
        raise Refused(
            f"labels: {len(labels)} given for {len(files)} images; give one for all, or one for "
            "each"
        )
    given = labels if labels is None or len(labels) == len(files) else [*labels] * len(files)
    files = files[:count]
    for start in range(0, len(files), BATCH):
        part = slice(start, start + BATCH)
        yield read_images(files[part], experiment), None if given is None else given[part]


def from_data(
    experiment: Experiment, split: Literal["train", "held_out"], count: int | None = None
) -> Iterator[Part]:
    """The training images or the held-out images of a run, in parts; at most `count`. Needs the
    data set. Labels come only with a conditional run."""
    from ray_gen.pixels import to_range
    from ray_gen.training.sources import open_data

    store = open_data(experiment)
    found = store.train if split == "train" else store.held_out
    labels = found.labels if experiment.needs_labels else None
    total = len(found) if count is None else min(count, len(found))
    if not total:
        raise Refused("data.held_out_fraction: this run has no held-out images; name image files")
    for start in range(0, total, BATCH):
        part = slice(start, min(start + BATCH, total))
        images = to_range(found.images_NHWC[part], (0.0, 1.0))
        yield images, None if labels is None else labels[part].tolist()
