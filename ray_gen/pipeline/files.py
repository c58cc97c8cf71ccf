"""Input images for a run: files, converted as in training, and the run's own data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unicodedata import normalize

import torch
from torch import Tensor

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.experiment.data import DataSettings
from ray_gen.pipeline.arguments import BATCH, Conditions
from ray_gen.pixels import unit

if TYPE_CHECKING:
    from PIL.Image import Image

    from ray_gen.data.pictures import Bands
    from ray_gen.data.sources.base import Item
    from ray_gen.data.wanted import Pixels, Wanted

Part = tuple[Tensor, Sequence[int | str] | None, Conditions | None]
"""Images (N, C, H, W) in [0, 1], and their labels and conditions if they are known."""


def image_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The given files. A folder is replaced by all images below it, sorted by path."""
    from ray_gen.data.formats import format_named

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
            if format_named(file.name) is not None and not file.name.startswith(".")
        ]
        if not inside:
            raise Refused(f"{path}: has no files with the names of images, such as .png or .jpg")
        found += inside
    return found


def whole_values(data: DataSettings) -> tuple[int, int] | None:
    """The values of black and white in the files of the data, if files of 16 bits can hold them and
    they are not 0 and 65,535. None: they cannot, or they are not known."""
    if isinstance(data.value_range, str):
        return None
    low, high = (round(value) for value in data.value_range)
    fits = (low, high) == data.value_range and low >= 0 and low + 255 <= high <= 65_535
    return (low, high) if fits and (low, high) != (0, 65_535) else None


def read_images(files: Iterable[Path], experiment: Experiment) -> Tensor:
    """Float (N, C, H, W) in [0, 1], converted, cropped and resized as the run's `data` settings say
    (see `data/decode.py`). An image that has the model's size, such as a sample of the run, is
    neither cropped nor resized.

    Values of deep images go from black to white as those of the data. If the data had none, or none
    of whole numbers, the type of a file decides.

    If an image is too small for `data.center_crop`, the whole image is used.
    """
    # Imported here: `ray_gen.data` imports Arrow, which sampling does not need.
    from ray_gen.data import DataError
    from ray_gen.data.decode import decode
    from ray_gen.data.errors import CorruptImageError
    from ray_gen.data.sources.base import Item
    from ray_gen.data.store import middle, wanted_of

    data = experiment.data.pictures
    wanted = wanted_of(**data.pixels())
    _, height, width = experiment.picture_shape
    images: list[Tensor] = []
    for file in files:
        if not file.is_file():
            raise Refused(f"{file}: there is no such image")
        load = partial(_load, file, data.rules)
        item = Item(key=file.name, name=str(file), split=None, load=load)
        of_file = _with_value_range(wanted, item, data)
        decoded = _of_size(item, of_file, (height, width))
        try:
            decoded = decoded or decode(item, of_file, "images")
        except DataError:  # too small for the crop, or unreadable: then the next line raises
            decoded = decode(item, replace(of_file, center_crop=None), "images")
        if isinstance(decoded, CorruptImageError):
            raise Refused(f"{file}: cannot be decoded as an image: {decoded}")
        values_NHWC = torch.from_numpy(decoded.values_HWC.copy())[None]
        images.append(middle(values_NHWC, (height, width))[0].permute(2, 0, 1))
    if not images:
        raise Refused("images: no file was named; name at least one")
    return unit(torch.stack(images))


def _of_size(item: Item, wanted: Wanted, size_HW: tuple[int, int]) -> Pixels | None:
    """The image as it is, if it has this size and would be cropped. Else None."""
    from ray_gen.data.decode import decode
    from ray_gen.data.errors import CorruptImageError

    if wanted.center_crop is None and wanted.size_HW == size_HW:
        return None  # it is not cropped
    decoded = decode(item, replace(wanted, size_HW=None, center_crop=None), "images")
    if isinstance(decoded, CorruptImageError) or decoded.values_HWC.shape[:2] != size_HW:
        return None
    return decoded


def _with_value_range(wanted: Wanted, item: Item, data: DataSettings) -> Wanted:
    """`wanted` with values of black and white for one file."""
    from ray_gen.data.decode import glance
    from ray_gen.data.wanted import Seen

    look = glance(item, wanted) if wanted.rules == 2 else None
    if look is None or look.range is None:
        return wanted
    whole = look.type.startswith(("int", "uint"))
    of_data = data.value_range in ((0, 65_535), whole_values(data))
    if wanted.value_range is not None and (of_data or not whole):
        return wanted
    seen = Seen()
    seen.add(look)
    return seen.settle(replace(wanted, value_range=None, full_range=whole), guessed=False)


def _load(file: Path, rules: int) -> tuple[Image | Bands, int | None]:
    from ray_gen.data.pictures import read_picture
    from ray_gen.data.sources.base import read_image_1

    with file.open("rb") as stream:
        return (read_image_1(stream) if rules == 1 else read_picture(stream)), None


def from_files(
    experiment: Experiment,
    paths: Iterable[str | os.PathLike[str]],
    labels: Sequence[int | str] | None = None,
    count: int | None = None,
    conditions: Conditions | None = None,
) -> Iterator[Part]:
    """Images from files, and from all files below folders, in parts; at most `count`.

    labels: one for all, or one for each. None: for a conditional run, the folders that have names
    of its classes, as in training. conditions: one of each name, for all.
    """
    paths = [*paths]
    files = image_files(paths)
    if labels is None and experiment.label_count:
        labels = _classes_of_folders(files, paths, experiment.data.classes or ())
    if labels is not None and len(labels) not in (1, len(files)):
        raise Refused(
            f"labels: {len(labels)} given for {len(files)} images; give one for all, or one for "
            "each"
        )
    given = labels if labels is None or len(labels) == len(files) else [*labels] * len(files)
    files = files[:count]
    for start in range(0, len(files), BATCH):
        part = slice(start, start + BATCH)
        of_part = None if given is None else given[part]
        yield read_images(files[part], experiment), of_part, conditions


def joined(parts: Iterable[Part]) -> Part:
    """All images of `from_files` at once, with their labels, and the conditions of all."""
    images, labels, conditions = zip(*parts, strict=True)
    classes = None if labels[0] is None else [label for part in labels for label in part]
    return torch.cat(images), classes, conditions[0]


def _classes_of_folders(
    files: Sequence[Path], paths: Iterable[str | os.PathLike[str]], classes: Sequence[str]
) -> list[str] | None:
    """The class of each file: the name of the nearest folder above it that is a class, up to the
    folder that was given. None if no file lies in such a folder. Raises Refused if only some do."""
    known = {normalize("NFC", name): name for name in classes}
    given = {Path(path).expanduser() for path in paths}
    found: list[str | None] = []
    for file in files:
        above = [file.absolute().parent.name]
        for folder in file.parents if file not in given else ():
            above.append(folder.absolute().name)
            if folder in given:
                break
        names = (normalize("NFC", name) for name in above)
        found.append(next((known[name] for name in names if name in known), None))
    if not any(name is not None for name in found):
        return None
    of_all = [name for name in found if name is not None]
    if len(of_all) < len(found):
        other = files[found.index(None)]
        raise Refused(
            f"{other}: lies in no folder with the name of a class of this run, and other images "
            "do; give --labels, or leave it out"
        )
    return of_all


def from_data(
    experiment: Experiment, split: Literal["train", "held_out"], count: int | None = None
) -> Iterator[Part]:
    """The training images or the held-out images of a run, in parts; at most `count`. Needs the
    data set. Labels and conditions come only with a conditional run."""
    from ray_gen.pixels import to_range
    from ray_gen.training.sources import open_data

    store = open_data(experiment)
    found = store.train if split == "train" else store.held_out
    labels = found.labels if experiment.label_count else None
    numbers = found.conditions if experiment.label_numbers else None
    total = len(found) if count is None else min(count, len(found))
    if not total:
        raise Refused("data.held_out_fraction: this run has no held-out images; name image files")
    for start in range(0, total, BATCH):
        part = slice(start, min(start + BATCH, total))
        images = to_range(found.images_NHWC[part], (0.0, 1.0))
        conditions = None
        if numbers is not None:
            columns = numbers[part].T.tolist()
            conditions = {one.name: c for one, c in zip(store.conditions, columns, strict=True)}
        yield images, None if labels is None else labels[part].tolist(), conditions
