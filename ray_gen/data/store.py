"""A data set as uint8 pixels on disk. Each node decodes it once, and all its workers map it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ray_gen.data import arrow
from ray_gen.data.build import FORMAT, MANIFEST, PARTIAL, build, cache_error, file_stamp
from ray_gen.data.decode import Wanted
from ray_gen.data.errors import DataError
from ray_gen.data.sampled import Sampled
from ray_gen.data.sources.base import Source
from ray_gen.data.sources.parquet import Parquet
from ray_gen.data.stream import Shards

_LARGEST = 4
"""Largest number of rows in a row group of a stream, as a multiple of the window. A larger row
group would need more memory than the window promises."""


@dataclass(frozen=True)
class Split:
    """One split of a data set, memory-mapped and read-only (writing to it ends the process)."""

    images_NHWC: torch.Tensor
    """uint8 (N, H, W, C), 0 to 255, contiguous, 64-byte aligned."""
    labels: torch.Tensor | None
    """int64 (N,), from 0; None if the source has none."""

    def __len__(self) -> int:
        return self.images_NHWC.shape[0]


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        _, height, width, channels = self.train.images_NHWC.shape
        return channels, height, width


def open_store(
    source: Source,
    *,
    image_size: int | tuple[int, int] | None,
    center_crop: int | None,
    channels: int | None,
    held_out_fraction: float,
    on_corrupt: Literal["stop", "skip"],
    cache_folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Maps the decoded data set. Decodes it first if no process of this node has done so.

    image_size: the side of a square, or (height, width); None: the images' own size, which must be
        the same for all.
    center_crop: side, in pixels of the original, of the square that is cut out before resizing;
        None: all of the image.
    channels: 1 (grey) or 3 (RGB); None: 1 if the first image is grey, else 3.
    held_out_fraction: in [0, 1), for a source without splits of its own. A hash of each image's
        relative path or row decides, so new images never move others between splits.
    on_corrupt: "stop" at an image that cannot be decoded, or "skip" and count it.
    progress: called with (images decoded, all images) by the process that decodes.

    Exactly one process decodes, under a lock that the kernel frees when the process dies. The
    others wait and map the result. An entry of the cache appears whole, by one rename, or not at
    all.
    """
    wanted = _wanted(image_size, center_crop, channels)
    if not 0 <= held_out_fraction < 1:
        raise DataError(
            f"data.held_out_fraction: {held_out_fraction} is not in [0, 1), but some images must be"
            " left to train on; set e.g. 0.1"
        )
    key = _key(
        format=FORMAT,
        kind=source.kind,
        source=source.identity(),
        image_size=wanted.size_HW,
        center_crop=center_crop,
        channels=channels,
        held_out_fraction=held_out_fraction,
        on_corrupt=on_corrupt,
    )
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
    image_size: int | tuple[int, int] | None,
    center_crop: int | None,
    channels: int | None,
    held_out_fraction: float,
    on_corrupt: Literal["stop", "skip"],
    cache_folder: Path,
    window: int,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Opens a data set that is streamed from its place, not decoded as a whole; see `open_store`.
    `train` is a sample of the streamed images, `held_out` are the held-out images. Each has at most
    about 10,000 images, in whole row groups.

    window: number of images of a stream that are shuffled together.
    """
    sampled = Sampled(source, held_out_fraction)
    store = open_store(
        sampled,
        image_size=image_size,
        center_crop=center_crop,
        channels=channels,
        held_out_fraction=held_out_fraction,
        on_corrupt=on_corrupt,
        cache_folder=cache_folder,
        progress=progress,
    )
    groups, columns = source.row_groups()
    kept, _ = sampled.split(groups)
    channels, height, width = store.image_shape
    size_from = "the first" if image_size is None else None
    shards = Shards(
        source,
        tuple(group for group in kept if group.rows),
        columns,
        Wanted((height, width), center_crop, channels, size_from),
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
    return replace(store, digest=digest.hexdigest(), label_count=columns.label_count, stream=shards)


def _wanted(
    image_size: int | tuple[int, int] | None, center_crop: int | None, channels: int | None
) -> Wanted:
    if channels not in (None, 1, 3):
        raise DataError(
            f"data.channels: {channels} is not 1 (grey) or 3 (RGB); set one of them, or null for"
            " the channels of the first image"
        )
    size_HW = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size_HW is not None:
        size_HW = (size_HW[0], size_HW[1])
        if min(size_HW) < 1:
            raise DataError(f"data.image_size: {image_size} is not positive; set e.g. 64")
    if center_crop is not None and center_crop < 1:
        raise DataError(f"data.center_crop: {center_crop} is not positive; set e.g. 64, or null")
    return Wanted(size_HW, center_crop, channels)


def _key(**parts: Any) -> str:
    written = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(written.encode(), digest_size=32).hexdigest()


def _opened(entry: Path, key: str) -> Store | None:
    """The store in a cache entry. None if the entry does not exist, is not whole, or has another
    key."""
    try:
        manifest = json.loads((entry / MANIFEST).read_bytes())
        if manifest["key"] != key:
            return None
        sizes = {name: (entry / name).stat().st_size for name in manifest["bytes"]}
        watched = {name: list(file_stamp(Path(name))) for name in manifest["watched"]}
        if sizes != manifest["bytes"] or watched != manifest["watched"]:
            return None
        splits = {
            name: Split(*arrow.read(entry / f"{name}.arrow", manifest["shape_HWC"], count))
            for name, count in manifest["counts"].items()
        }
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
        return None
    except OSError as error:
        raise cache_error(entry, error) from error
    names = manifest["class_names"]
    return Store(
        train=splits["train"],
        held_out=splits["held_out"],
        class_names=None if names is None else tuple(names),
        skipped=manifest["skipped"],
        path=entry,
        label_count=manifest["label_count"],
        digest=manifest["digest"],
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
