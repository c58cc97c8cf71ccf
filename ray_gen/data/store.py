"""A data set as uint8 pixels on disk. Each node decodes it once, and all its workers map it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, Unpack

import torch

from ray_gen.data import arrow
from ray_gen.data.build import FORMAT, MANIFEST, PARTIAL, build, cache_error, file_stamp
from ray_gen.data.errors import DataError
from ray_gen.data.found import Found
from ray_gen.data.moments import Moments
from ray_gen.data.pictures import LARGEST_CHANNELS
from ray_gen.data.sampled import Sampled
from ray_gen.data.sources.base import Source
from ray_gen.data.sources.parquet import Parquet
from ray_gen.data.stream import Shards
from ray_gen.data.wanted import Wanted
from ray_gen.pixels import levels_of, selected, unit

_LARGEST = 4
"""Largest number of rows in a row group of a stream, as a multiple of the window. A larger row
group would need more memory than the window promises."""


@dataclass(frozen=True)
class Split:
    """One split of a data set, memory-mapped and read-only (writing to it ends the process)."""

    images_NHWC: torch.Tensor
    """(N, H, W, C): uint8, 0 to 255; uint16, 0 to 65,535; or float16 maps. Contiguous, 64-byte
    aligned."""
    labels: torch.Tensor | None
    """int64 (N,), from 0; None if the source has none."""
    conditions: torch.Tensor | None = None
    """float32 (N, K): numbers to condition on, in the data's own units; None if there are none."""

    def __len__(self) -> int:
        return self.images_NHWC.shape[0]


@dataclass(frozen=True)
class Condition:
    """A number that each image has. Its statistics are those of the training split; of a stream,
    those of the sample."""

    name: str
    mean: float
    deviation: float
    """Standard deviation."""
    low: float
    high: float


@dataclass(frozen=True)
class Store:
    """Both splits of a data set, in the shape that the experiment asks for."""

    train: Split
    held_out: Split
    """Empty if `held_out_fraction` is 0."""
    class_names: tuple[str, ...] | None
    skipped: int
    """Number of corrupt images that were skipped."""
    path: Path
    """The cache entry. The folder may be deleted if no process has it open."""
    label_count: int | None
    """Number of classes; None if the source has no labels."""
    digest: str | None = None
    """Digest of the shape, and of the pixels and labels of both splits in their order. Equal
    digests mean equal data. None for a store that was not read from a cache."""
    stream: Shards | None = None
    """The stream to train on. `train` is then only a sample of it. None: train on `train`."""
    uncropped: torch.Tensor | None = None
    """The training images in the size from which training takes windows at random. The splits then
    hold the middle of each image."""
    moments: Moments | None = None
    """Of latents: what training draws z from. The splits then hold the means."""
    all_moments: torch.Tensor | None = None
    """Of latents: the moments of the training images, (N, k h, w, c) float16; see `Moments`."""
    found: Found = field(default_factory=Found)
    """What was read, and what was not."""
    sources: tuple[int, ...] = ()
    """Number of training images of each joined source. They stand in `train` source by source."""
    conditions: tuple[Condition, ...] = ()
    """The numbers to condition on, in the order of `Split.conditions`."""
    opacity: bool = False
    """Whether the last channel is opacity."""
    statistics: Mapping[str, list[float]] | None = None
    """Of float16 maps: mean and standard deviation of each channel of the training split."""

    @property
    def to_hold_out(self) -> str:
        """What to do so that images are held out, for messages. A small fraction may hold out none
        of a few images."""
        least = self.found.least_fraction
        if least is None or len(self.train) < 2:
            return "add a held-out split to the data"
        return f"set data.held_out_fraction to {max(least, 0.1)}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        _, height, width, channels = self.train.images_NHWC.shape
        return channels, height, width

    @property
    def read_in_training(self) -> torch.Tensor:
        """What training reads of its images, (N, H, W, C): the images, larger ones of which it
        takes windows, or moments of latents."""
        if self.all_moments is not None:
            return self.all_moments
        return self.train.images_NHWC if self.uncropped is None else self.uncropped

    def with_moments(self, moments: Moments) -> Store:
        """A store of latents whose splits hold the means. Copies nothing."""
        train, held_out = self.train, self.held_out
        return replace(
            self,
            train=replace(train, images_NHWC=moments.means(train.images_NHWC)),
            held_out=replace(held_out, images_NHWC=moments.means(held_out.images_NHWC)),
            moments=moments,
            all_moments=train.images_NHWC,
        )

    def grey_share(self) -> float:
        """The share of the values of 100 training images that are neither nearly black nor nearly
        white: between 5 and 95 % of white. 0 of maps."""
        images = self.train.images_NHWC
        if levels_of(images.dtype) is None:
            return 0.0
        some = torch.arange(0, len(images), max(1, len(images) // 100))[:100]
        values = unit(selected(images, some))
        return float(((values > 0.05) & (values < 0.95)).float().mean())

    def cropped(self, size_HW: tuple[int, int]) -> Store:
        """A store whose splits hold the middle of each image. Copies nothing."""
        return replace(
            self,
            train=replace(self.train, images_NHWC=middle(self.train.images_NHWC, size_HW)),
            held_out=replace(self.held_out, images_NHWC=middle(self.held_out.images_NHWC, size_HW)),
            uncropped=self.train.images_NHWC,
        )


class PixelSettings(TypedDict):
    """What settings ask of the pixels of an image."""

    image_size: int | tuple[int, int] | None
    """The side of a square, or (height, width); None: the images' own size, which must be the same
    for all."""
    center_crop: int | None
    """Side, in pixels of the original, of the square that is cut out before resizing; None: all of
    the image."""
    channels: int | Literal["auto"] | None
    """1 (grey), 3 (RGB), 2 and 4 (with opacity), or those of images with others; None: 3 if any
    image has colour, else 1; "auto": the same, with opacity if all images have it."""
    value_range: NotRequired[Literal["auto", "full"] | tuple[float, float]]
    """Values of deep images (more than 8 bits, or floats) that become 0 and the greatest of the
    store: of all images ("auto", the default; see `Seen`), of their type ("full"), or the given
    ones."""
    rules: NotRequired[Literal[1, 2]]
    """This and the fields below: see `Wanted`, also for their defaults. Rules 1 are for runs that
    began with them (see `rules_1.py`)."""
    opacity: NotRequired[bool | None]
    element: NotRequired[str]
    fit: NotRequired[Literal["crop", "pad", "stretch"]]
    pad: NotRequired[str | tuple[int, ...]]
    jpeg_scaling: NotRequired[bool]
    max_pixels: NotRequired[int | None]


def middle(images_NHWC: torch.Tensor, size_HW: tuple[int, int]) -> torch.Tensor:
    """The middle of each image, as a view: (N, H, W, C) to (N, *size_HW, C)."""
    _, height, width, _ = images_NHWC.shape
    top, left = (height - size_HW[0]) // 2, (width - size_HW[1]) // 2
    return images_NHWC[:, top : top + size_HW[0], left : left + size_HW[1]]


def open_store(
    source: Source,
    *,
    held_out_fraction: float,
    on_corrupt: Literal["stop", "skip"],
    cache_folder: Path,
    progress: Callable[[int, int], None] | None = None,
    **asked: Unpack[PixelSettings],
) -> Store:
    """Maps the decoded data set. Decodes it first if no process of this node has done so.

    held_out_fraction: in [0, 1), for a source without splits of its own. A hash of each image's
        relative path or row decides, so new images never move others between splits.
    on_corrupt: "stop" at an image that cannot be decoded, or "skip" and count it.
    progress: called with (images decoded, all images) by the process that decodes.
    asked: the pixels that come of an image.

    Exactly one process decodes, under a lock that the kernel frees when the process dies. The
    others wait and map the result. An entry of the cache appears whole, by one rename, or not at
    all.
    """
    wanted = wanted_of(**asked)
    if not 0 <= held_out_fraction < 1:
        raise DataError(
            f"data.held_out_fraction: {held_out_fraction} is not in [0, 1), but some images must be"
            " left to train on; set e.g. 0.1"
        )
    identity = source.identity()

    def key_of(wanted: Wanted) -> str:
        if wanted.opacity is False and wanted.channels not in (None, 2, 4):
            wanted = replace(wanted, opacity=None)  # no other number of channels has any
        return _key(
            format=FORMAT,
            kind=source.kind,
            source=identity,
            wanted=repr(wanted),
            held_out_fraction=held_out_fraction,
            on_corrupt=on_corrupt,
        )

    key = key_of(wanted)
    cache_folder = cache_folder.expanduser().absolute()
    entry = cache_folder / f"{source.kind}-{key[:16]}"
    store = _opened(entry, key)
    if store is not None:
        return store
    with _locked(cache_folder, entry.name):
        store = _opened(entry, key)
        if store is None:
            _sweep(cache_folder)
            build(
                source,
                wanted,
                held_out_fraction=held_out_fraction,
                skip_corrupt=on_corrupt == "skip",
                entry=entry,
                key=key,
                key_of=key_of,
                progress=progress or (lambda done, total: None),
            )
            store = _opened(entry, key)
    if store is None:
        raise DataError(
            f"{source.field}: the files of the data set changed during decoding;"
            " start again when they are complete"
        )
    return store


def open_stream(
    source: Parquet,
    *,
    held_out_fraction: float,
    on_corrupt: Literal["stop", "skip"],
    cache_folder: Path,
    window: int,
    progress: Callable[[int, int], None] | None = None,
    **asked: Unpack[PixelSettings],
) -> Store:
    """Opens a data set that is streamed from its place, not decoded as a whole; see `open_store`.
    `train` is a sample of the streamed images, `held_out` are the held-out images. Each has at most
    about 10,000 images, in whole row groups.

    window: number of images of a stream that are shuffled together.
    """
    sampled = Sampled(source, held_out_fraction)
    store = open_store(
        sampled,
        held_out_fraction=held_out_fraction,
        on_corrupt=on_corrupt,
        cache_folder=cache_folder,
        progress=progress,
        **asked,
    )
    groups, columns = source.row_groups()
    kept, _ = sampled.split(groups)
    channels_of_store, height, width = store.image_shape
    wanted = wanted_of(**asked)
    wanted = replace(
        wanted,
        size_HW=(height, width),
        channels=channels_of_store,
        opacity=store.opacity,
        size_from="the first" if wanted.size_HW is None else None,
        value_range=wanted.value_range or store.found.value_range,
        # Not all images were looked at: one that needs more than the sample is an error.
        guessed_channels=wanted.rules == 2 and wanted.channels is None,
        guessed_alpha=wanted.keep_alpha and store.opacity,
        guessed_range=wanted.rules == 2 and wanted.value_range is None,
    )
    shards = Shards(
        source,
        tuple(group for group in kept if group.rows),
        columns,
        wanted,
        on_corrupt == "skip",
        window,
    )
    largest = max(group.rows for group in kept)
    if largest > _LARGEST * window:
        raise DataError(
            f"{source.field}: {source.path} has row groups of {largest:,} images, and each stream "
            "holds two in memory; write it with smaller row groups (ray-gen data convert), or set "
            f"data.window_images={largest} if the machines have enough memory"
        )
    digest = hashlib.blake2b(f"{store.digest} {shards.digest}".encode(), digest_size=16)
    labels = columns.label_count
    return replace(
        store,
        digest=digest.hexdigest(),
        label_count=labels,
        class_names=store.class_names if labels else None,
        stream=shards,
    )


def wanted_of(
    image_size: int | tuple[int, int] | None,
    center_crop: int | None,
    channels: int | Literal["auto"] | None,
    value_range: Literal["auto", "full"] | tuple[float, float] = "auto",
    **others: Any,
) -> Wanted:
    """The wanted pixels, of `PixelSettings`. Raises DataError for values that none can have."""
    if isinstance(channels, int) and not 1 <= channels <= LARGEST_CHANNELS:
        raise DataError(
            f"data.channels: {channels} is not in 1 to {LARGEST_CHANNELS}; set e.g. 1 (grey) or 3"
            " (RGB), or null for the channels of the images"
        )
    size_HW = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size_HW is not None:
        size_HW = (size_HW[0], size_HW[1])
        if min(size_HW) < 1:
            raise DataError(f"data.image_size: {image_size} is not positive; set e.g. 64")
    if center_crop is not None and center_crop < 1:
        raise DataError(f"data.center_crop: {center_crop} is not positive; set e.g. 64, or null")
    return Wanted(
        size_HW,
        center_crop,
        None if channels == "auto" else channels,
        keep_alpha=channels == "auto",
        full_range=value_range == "full",
        value_range=None if isinstance(value_range, str) else value_range,
        **others,
    )


def _key(**parts: Any) -> str:
    written = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(written.encode(), digest_size=32).hexdigest()


def _opened(entry: Path, key: str) -> Store | None:
    """The store in a cache entry. None if the entry does not exist, is not whole, or has another
    key."""
    try:
        manifest = json.loads((entry / MANIFEST).read_bytes())
        if key not in manifest["keys"]:
            return None
        sizes = {name: (entry / name).stat().st_size for name in manifest["bytes"]}
        watched = {name: list(file_stamp(Path(name))) for name in manifest["watched"]}
        if sizes != manifest["bytes"] or watched != manifest["watched"]:
            return None
        element = getattr(torch, manifest["element"])
        conditions = [Condition(**told) for told in manifest.get("conditions", ())]
        shape = manifest["shape_HWC"]
        splits = {
            name: Split(
                *arrow.read(entry / f"{name}.arrow", shape, count, element, len(conditions))
            )
            for name, count in manifest["counts"].items()
        }
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
        return None
    except OSError as error:
        raise cache_error(entry, error) from error
    names, found = manifest["class_names"], manifest["found"]
    sources = manifest.get("sources", [len(splits["train"])])
    return Store(
        train=splits["train"],
        held_out=splits["held_out"],
        class_names=None if names is None else tuple(names),
        skipped=manifest["skipped"],
        sources=tuple(sources),
        path=entry,
        label_count=manifest["label_count"],
        digest=manifest["digest"],
        opacity=manifest["opacity"],
        conditions=tuple(conditions),
        statistics=manifest["statistics"],
        found=Found(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}  # pyright: ignore
        ),
    )


@contextmanager
def _locked(cache_folder: Path, name: str, wait: bool = True) -> Generator[bool]:
    """Holds the lock of a cache entry among the processes of this node. Without `wait`, yields
    False if another process holds it.

    The lock file is never removed: a process could hold the old one while another locks a new one.
    """
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(cache_folder / f"{name}.lock", os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise cache_error(cache_folder, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError as error:
            raise cache_error(cache_folder, error) from error
        else:
            yield True
    finally:
        os.close(lock)


def _sweep(cache_folder: Path) -> None:
    """Removes the partial entries of processes that died during decoding: their locks are free."""
    for partial in cache_folder.glob(f"*{PARTIAL}"):
        with _locked(cache_folder, partial.name.removesuffix(PARTIAL), wait=False) as free:
            if free:
                shutil.rmtree(partial, ignore_errors=True)
