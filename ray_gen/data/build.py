"""Decodes a source into a cache entry, in parallel and in bounded memory, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from ray_gen.data import arrow
from ray_gen.data.decode import CorruptImageError, Pixels, Wanted, decode
from ray_gen.data.errors import DataError, reason
from ray_gen.data.sources.base import Item, Listing, Source, SplitName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 2
"""Part of every key. Raise it when the same settings give other bytes, or when the content of the
manifest changes."""
MANIFEST = "manifest.json"
PARTIAL = ".partial"

# Largest number of images, and of bytes, in one task of a thread. With 64 images (6 ms of work at
# 64×64), the hand-over to the thread costs little. A task takes at most about 4 MiB.
TASK_IMAGES, TASK_BYTES = 64, 4 << 20

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build(
    source: Source,
    wanted: Wanted,
    *,
    held_out_fraction: float,
    skip_corrupt: bool,
    entry: Path,
    key: str,
    progress: Callable[[int, int], None],
) -> None:
    """Decodes all images into the folder `entry`. The caller holds the lock of `entry`.

    Writes everything to a folder beside `entry`, the manifest last, flushes it to disk, and renames
    the folder.
    """
    listing = source.listing()
    wanted, items = with_shape_of_first(wanted, listing.items, source.field, skip_corrupt)
    room = listing.count * math.prod(_shape_of(wanted))
    folder = entry.with_name(entry.name + PARTIAL)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if shutil.disk_usage(folder).free < room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        splits: dict[SplitName, _Decoded] = {
            "train": _Decoded(folder / "train.raw"),
            "held_out": _Decoded(folder / "held_out.raw"),
        }
        skipped = done = 0
        with (
            splits["train"].file,
            splits["held_out"].file,
            closing(_decoded(items, wanted, source.field)) as results,
        ):
            for item, result in results:
                if not isinstance(result, CorruptImageError):
                    name = item.split or split_of(item.key, held_out_fraction)
                    splits[name].append(*result)
                elif skip_corrupt:
                    skipped += 1
                else:
                    raise corrupt(item.name, result, source.field)
                done += 1
                if done % TASK_IMAGES == 0 or done == listing.count:
                    progress(done, listing.count)
        if not splits["train"].count:
            raise _nothing_to_train_on(source.field, listing.count, skipped, held_out_fraction)
        _write(folder, splits, wanted, listing, skipped, key)
        shutil.rmtree(entry, ignore_errors=True)
        folder.rename(entry)
        _flush_folder(entry.parent)
    except OSError as error:
        raise cache_error(entry.parent, error, room) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def split_of(key: str, held_out_fraction: float) -> SplitName:
    """The split of an image if its source has no splits: a function of its key alone."""
    digest = hashlib.blake2b(os.fsencode(key), digest_size=8).digest()
    held_out = int.from_bytes(digest, "big") < held_out_fraction * 2.0**64
    return "held_out" if held_out else "train"


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time (ns) of a file. If they change, the file must be decoded again."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def cache_error(folder: Path, error: OSError, room: int | None = None) -> DataError:
    """The error for a cache folder that cannot be written or read. room: bytes that it needs."""
    if error.errno in _NO_ROOM:
        size = "" if room is None else f" ({room / 2**30:.3f} GiB)"
        return DataError(
            f"the data cache {folder} has no room for the decoded images{size}: {reason(error)};"
            " free some space, or choose a folder on another disk with $RAY_GEN_CACHE"
        )
    return DataError(
        f"the data cache {folder} cannot be used: {reason(error)}; set $RAY_GEN_CACHE to a folder"
        " on a local disk that this user may write to"
    )


class _Decoded:
    """One split during decoding. Its pixels go to a file, its labels stay in memory."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw
        self.file = raw.open("wb")
        self.pixels = hashlib.blake2b(digest_size=16)
        self.count = 0
        self.labels = array("q")
        self.labelled = True

    def append(self, pixels_HWC: NDArray[np.uint8], label: int | None) -> None:
        self.file.write(pixels_HWC.data)
        self.pixels.update(pixels_HWC.data)
        self.labels.append(-1 if label is None else label)
        self.labelled &= label is not None
        self.count += 1

    def digest(self, labels: array[int] | None) -> bytes:
        """Digest of the pixels in their order, then of the labels if there are any."""
        content = self.pixels.copy()
        if labels is not None:
            content.update(labels)
        return content.digest()


def _write(
    folder: Path,
    splits: Mapping[SplitName, _Decoded],
    wanted: Wanted,
    listing: Listing,
    skipped: int,
    key: str,
) -> None:
    """Writes the Arrow file of each split, then the manifest. Flushes all of them to disk."""
    labelled = all(split.labelled for split in splits.values())
    digest = hashlib.blake2b(repr(_shape_of(wanted)).encode(), digest_size=16)
    for name, split in splits.items():
        labels = split.labels if labelled else None
        digest.update(split.digest(labels))
        arrow.write(split.raw, folder / f"{name}.arrow", _shape_of(wanted), labels, split.count)
        split.raw.unlink()
    named = len(listing.class_names or ())
    seen = max(max(split.labels, default=-1) + 1 for split in splits.values())
    manifest = {
        "key": key,
        "digest": digest.hexdigest(),
        "shape_HWC": _shape_of(wanted),
        "counts": {name: split.count for name, split in splits.items()},
        "bytes": {file.name: file.stat().st_size for file in folder.iterdir()},
        "class_names": listing.class_names if labelled else None,
        "label_count": max(named, seen) if labelled else None,
        "skipped": skipped,
        "watched": listing.watched,
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _shape_of(wanted: Wanted) -> tuple[int, int, int]:
    assert wanted.size_HW is not None and wanted.channels is not None
    return (*wanted.size_HW, wanted.channels)


def with_shape_of_first(
    wanted: Wanted, items: Iterator[Item], blamed: str, skip_corrupt: bool
) -> tuple[Wanted, Iterator[Item]]:
    """`wanted`, with its open fields filled in from the first image that can be decoded.

    Also returns all items: the inspected ones are decoded again with the others. blamed: the
    experiment's field for the error.
    """
    looked_at: list[Item] = []
    for item in items:
        looked_at.append(item)
        result = decode(item, wanted, blamed)
        if not isinstance(result, CorruptImageError):
            height, width, channels = result[0].shape
            size_from = item.name if wanted.size_HW is None else None
            size_HW = (height, width)
            wanted = replace(wanted, size_HW=size_HW, channels=channels, size_from=size_from)
            return wanted, chain(looked_at, items)
        if not skip_corrupt:
            raise corrupt(item.name, result, blamed)
    raise _nothing_to_train_on(blamed, len(looked_at), len(looked_at), 0)


def _decoded(
    items: Iterator[Item], wanted: Wanted, blamed: str
) -> Generator[tuple[Item, Pixels | CorruptImageError]]:
    """Decodes in threads and yields in order, with at most two unfinished tasks per thread.

    Pillow releases the interpreter's lock while it decompresses and resizes: two threads on two
    cores decode 600 JPEGs of 640×480 a second, one thread 330. At 64×64 the interpreter's own work
    dominates, and any number of threads decodes about 6,000 a second.
    """
    task_images = max(1, min(TASK_IMAGES, TASK_BYTES // math.prod(_shape_of(wanted))))

    def decode_all(group: list[Item]) -> list[tuple[Item, Pixels | CorruptImageError]]:
        return [(item, decode(item, wanted, blamed)) for item in group]

    threads = _threads()
    pending: deque[Future[list[tuple[Item, Pixels | CorruptImageError]]]] = deque()
    with ThreadPoolExecutor(threads, "decode") as pool:
        try:
            while group := list(islice(items, task_images)):
                pending.append(pool.submit(decode_all, group))
                if len(pending) >= 2 * threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _threads() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def corrupt(name: str, error: CorruptImageError, blamed: str) -> DataError:
    """The error for an image that cannot be decoded."""
    return DataError(
        f"{blamed}: {name} cannot be decoded: {error}; remove it, or set data.on_corrupt=skip to"
        " skip such images"
    )


def _nothing_to_train_on(
    blamed: str, count: int, skipped: int, held_out_fraction: float
) -> DataError:
    if count == 0:
        return DataError(f"{blamed}: the data set has no images; choose another")
    if skipped == count:
        return DataError(
            f"{blamed}: none of the {count} images can be decoded; set data.on_corrupt=stop to see"
            " the error of the first one"
        )
    return DataError(
        f"data.held_out_fraction: {held_out_fraction} leaves none of {count - skipped} images to"
        " train on; make it smaller, or add images"
    )


def _flush_folder(folder: Path) -> None:
    """Flushes a folder to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
