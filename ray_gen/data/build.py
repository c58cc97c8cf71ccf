"""Decodes a source into a cache entry, in parallel and in bounded memory, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ray_gen.data import arrow
from ray_gen.data.decode import decode, glance
from ray_gen.data.errors import CorruptImageError, DataError, reason
from ray_gen.data.found import found_of
from ray_gen.data.sources.base import Item, Listing, Source, SplitName
from ray_gen.data.threads import in_threads
from ray_gen.data.wanted import ELEMENTS, Pixels, Seen, Unforeseen, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

_T = TypeVar("_T")

FORMAT = 7
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
    key_of: Callable[[Wanted], str],
    progress: Callable[[int, int], None],
) -> None:
    """Decodes all images into the folder `entry`. The caller holds the lock of `entry`.

    key_of: the key of given settings. The settings of a run name what these leave open, and its
    next process must find this entry too.

    Writes everything to a folder beside `entry`, the manifest last, flushes it to disk, and renames
    the folder.
    """
    room = 0
    folder = entry.with_name(entry.name + PARTIAL)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        listing = source.listing()
        asked = wanted
        wanted, items = with_shape_of_first(asked, listing.items, source.field, skip_corrupt)
        room = listing.count * math.prod(_shape_of(wanted)) * _bytes_of(wanted)
        if shutil.disk_usage(folder).free < room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fill = partial(
            _fill, folder, source.field, held_out_fraction, skip_corrupt, progress, listing.count
        )
        try:
            splits, tally = fill(items, wanted)
        except Unforeseen:
            # The first images suggested other channels or values than a later one has.
            sized = replace(asked, size_HW=wanted.size_HW, size_from=wanted.size_from)
            wanted = surveyed(source.listing().items, sized, listing.count, progress)
            splits, tally = fill(source.listing().items, wanted)
        if not splits["train"].count:
            raise nothing_to_train_on(
                source.field, listing.count, len(tally.corrupt), held_out_fraction
            )
        wanted = replace(wanted, opacity=asked.opacity)
        wanted = replace(wanted, opacity=tally.seen.has_opacity(wanted))
        labels = chain(*(split.labels for split in splits.values()))
        for lost in classes_lost(tally.lost, labels, listing.class_names, source.field):
            raise lost
        resolved = replace(
            wanted,
            size_from=None,
            guessed_channels=False,
            guessed_alpha=False,
            guessed_range=False,
            of_floats=None,
            keep_alpha=False,
            full_range=asked.full_range and wanted.value_range is None,
        )
        keys = [key, key_of(resolved)]
        _write(folder, splits, wanted, listing, tally, held_out_fraction, keys)
        if entry.is_symlink():  # to an entry that is gone
            entry.unlink()
        shutil.rmtree(entry, ignore_errors=True)
        folder.rename(entry)
        link_to(entry, keys[1])
        _flush_folder(entry.parent)
    except OSError as error:
        raise cache_error(entry.parent, error, room) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Tally:
    """What was met while decoding."""

    seen: Seen = field(default_factory=Seen)
    corrupt: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Name and reason of each image that was skipped."""
    lost: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """The first of `corrupt` by class."""
    least_place: float = math.inf
    """Of the images that no split names."""
    sources: Counter[int] = field(default_factory=Counter[int])
    """Number of training images of each joined source."""


def _fill(
    folder: Path,
    blamed: str,
    held_out_fraction: float,
    skip_corrupt: bool,
    progress: Callable[[int, int], None],
    count: int,
    items: Iterator[Item],
    wanted: Wanted,
) -> tuple[dict[SplitName, _Decoded], _Tally]:
    """Decodes all images into raw files, one for each split. Raises Unforeseen if `wanted` was
    guessed wrong."""
    splits: dict[SplitName, _Decoded] = {
        "train": _Decoded(folder / "train.raw", wanted),
        "held_out": _Decoded(folder / "held_out.raw", wanted),
    }
    tally = _Tally()
    done = 0
    with (
        splits["train"].file,
        splits["held_out"].file,
        closing(decoded(items, wanted, blamed)) as results,
    ):
        for item, result in results:
            if isinstance(result, CorruptImageError):
                if not skip_corrupt:
                    raise corrupt(item.name, result, blamed)
                tally.corrupt.append((item.name, str(result)))
                if item.class_name is not None:
                    tally.lost.setdefault(item.class_name, tally.corrupt[-1])
            else:
                name = item.split or split_of(item.key, held_out_fraction)
                if item.split is None:
                    tally.least_place = min(tally.least_place, place_of(item.key))
                splits[name].append(result.values_HWC, result.label, item.conditions)
                tally.seen.add(result.look)
                tally.sources[item.source] += name == "train"
            done += 1
            if done % TASK_IMAGES == 0 or done == count:
                progress(done, count)
    return splits, tally


def surveyed(
    items: Iterator[Item],
    wanted: Wanted,
    count: int,
    progress: Callable[[int, int], None],
) -> Wanted:
    """`wanted` with the channels and the value range that suit all images."""
    seen = Seen()
    looks = _in_threads(items, partial(glance, wanted=wanted), TASK_IMAGES)
    with closing(looks):
        for done, (_, look) in enumerate(looks, 1):
            if look is not None:
                seen.add(look)
            if done % TASK_IMAGES == 0:
                progress(done, count)
    return seen.settle(wanted, guessed=False)


def link_to(entry: Path, key: str) -> None:
    """Lets the settings of `key` find the entry, too."""
    link = entry.with_name(f"{entry.name.rpartition('-')[0]}-{key[:16]}")
    if link == entry:
        return
    with suppress(OSError):  # it saves time, and nothing depends on it
        if link.is_symlink():
            link.unlink()
        link.symlink_to(entry.name)


def split_of(key: str, held_out_fraction: float) -> SplitName:
    """The split of an image if its source has no splits: a function of its key alone."""
    return "held_out" if place_of(key) < held_out_fraction * 2.0**64 else "train"


def place_of(key: str) -> int:
    """A hash of an image's key, in [0, 2**64). The images with the least are held out."""
    digest = hashlib.blake2b(os.fsencode(key), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def classes_lost(
    lost: Mapping[str, tuple[str, str]],
    labels: Iterable[int],
    names: Sequence[str] | None,
    blamed: str,
) -> list[DataError]:
    """The errors for classes of which no image can be decoded. lost: name and reason of a corrupt
    image of each class that has one. labels: of the decoded images, -1 without one."""
    if not lost or names is None:
        return []
    met = {names[label] for label in set(labels) if 0 <= label < len(names)}
    return [
        DataError(
            f"{blamed}: no image of class {name} can be decoded, not even {image}: {why};"
            " restore its images, or move all of them away"
        )
        for name, (image, why) in lost.items()
        if name not in met
    ]


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

    def __init__(self, raw: Path, wanted: Wanted) -> None:
        self.raw = raw
        self.file = raw.open("wb")
        self.pixels = hashlib.blake2b(digest_size=16)
        self.count = 0
        self.labels = array("q")
        self.conditions = array("f")
        self.moments = _Moments() if wanted.element == "float16" else None

    def append(
        self,
        values_HWC: NDArray[Any],
        label: int | None,
        conditions: tuple[float, ...] | None,
    ) -> None:
        """Adds one image."""
        content = np.ascontiguousarray(values_HWC).data.cast("B")
        self.file.write(content)
        self.pixels.update(content)
        self.labels.append(-1 if label is None else label)
        self.conditions.extend(conditions or ())
        self.count += 1
        if self.moments is not None:
            self.moments.add(values_HWC)

    def digest(self, labels: array[int] | None) -> bytes:
        """Digest of the pixels in their order, then of the labels and of the conditions if there
        are any."""
        content = self.pixels.copy()
        if labels is not None:
            content.update(labels)
        content.update(self.conditions)
        return content.digest()

    def statistics(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Mean, standard deviation, least and greatest value of each condition. The sums are exact
        before they are rounded to float64, so they are equal on every machine."""
        found: list[dict[str, Any]] = []
        values = np.asarray(self.conditions, np.float64).reshape(self.count, len(names))
        for name, column in zip(names, values.T, strict=True):
            mean = math.fsum(column) / self.count
            deviation = math.sqrt(math.fsum((column - mean) ** 2) / self.count)
            low, high = float(column.min()), float(column.max())
            # `mean` of equal numbers may be rounded, so that they seem to differ from it.
            deviation = deviation if low < high else 0.0
            told = {"name": name, "mean": mean, "deviation": deviation, "low": low, "high": high}
            found.append(told)
        return found


class _Moments:
    """Mean and standard deviation of each channel of maps, summed in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def add(self, values_HWC: NDArray[Any]) -> None:
        values = values_HWC.astype(np.float64)
        self._count += values.shape[0] * values.shape[1]
        self._sum = self._sum + values.sum((0, 1))
        self._squares = self._squares + (values**2).sum((0, 1))

    def of_channels(self) -> dict[str, list[float]] | None:
        """{"mean": …, "std": …}; None if there was no map."""
        if not self._count:
            return None
        mean = self._sum / self._count
        variance = np.maximum(self._squares / self._count - mean**2, 0.0)
        return {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}


def _write(
    folder: Path,
    splits: Mapping[SplitName, _Decoded],
    wanted: Wanted,
    listing: Listing,
    tally: _Tally,
    held_out_fraction: float,
    keys: list[str],
) -> None:
    """Writes the Arrow file of each split, then the manifest. Flushes all of them to disk."""
    found = found_of(
        tally.seen,
        wanted,
        listing,
        {name: split.labels for name, split in splits.items()},
        tally.corrupt,
        tally.least_place,
        held_out_fraction,
    )
    labelled = not found.unlabelled
    shape = _shape_of(wanted)
    told = repr(shape) if wanted.rules == 1 else repr((wanted.rules, wanted.element, shape))
    digest = hashlib.blake2b(told.encode(), digest_size=16)
    for name, split in splits.items():
        labels = split.labels if labelled else None
        digest.update(split.digest(labels))
        itemsize = _bytes_of(wanted)
        target = folder / f"{name}.arrow"
        conditions = split.conditions if listing.condition_names else None
        size = math.prod(shape) * itemsize
        arrow.write(split.raw, target, size, labels, split.count, conditions)
        split.raw.unlink()
    sources = [tally.sources[number] for number in range(listing.sources)]
    if len(sources) > 1:
        digest.update(repr(sources).encode())
    if listing.condition_names:
        digest.update(repr(listing.condition_names).encode())
    moments = splits["train"].moments
    manifest = {
        "keys": keys,
        "digest": digest.hexdigest(),
        "shape_HWC": shape,
        "element": wanted.element,
        "opacity": wanted.opacity,
        "statistics": moments.of_channels() if moments is not None else None,
        "counts": {name: split.count for name, split in splits.items()},
        "bytes": {file.name: file.stat().st_size for file in folder.iterdir()},
        "class_names": listing.class_names if labelled else None,
        "label_count": found.label_count(listing.class_names),
        "sources": sources,
        "conditions": splits["train"].statistics(listing.condition_names),
        "skipped": len(tally.corrupt),
        "watched": listing.watched,
        "found": asdict(found),
    }
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _bytes_of(wanted: Wanted) -> int:
    """Bytes of one number of the store."""
    return np.dtype(ELEMENTS[wanted.element]).itemsize


def _shape_of(wanted: Wanted) -> tuple[int, int, int]:
    assert wanted.size_HW is not None and wanted.channels is not None
    return (*wanted.size_HW, wanted.channels)


def with_shape_of_first(
    wanted: Wanted, items: Iterator[Item], blamed: str, skip_corrupt: bool
) -> tuple[Wanted, Iterator[Item]]:
    """`wanted`, with its open fields filled in from the first image that can be decoded. By the
    second rules that is a guess, and an image that needs more is `Unforeseen`.

    Also returns all items: the inspected ones are decoded again with the others. blamed: the
    experiment's field for the error.
    """
    looked_at: list[Item] = []
    for item in items:
        looked_at.append(item)
        trial = wanted
        if wanted.rules == 2 and (look := glance(item, wanted)) is not None:
            seen = Seen()
            seen.add(look)
            trial = seen.settle(wanted, guessed=True)
        # A guess from an image holds for this image, also if it is rounded (floats beyond 1).
        sure = replace(trial, guessed_channels=False, guessed_range=False)
        result = decode(item, sure, blamed)
        if not isinstance(result, CorruptImageError):
            height, width, channels = result.values_HWC.shape
            size_from = item.name if wanted.size_HW is None else None
            trial = replace(trial, size_HW=(height, width), channels=channels, size_from=size_from)
            return trial, chain(looked_at, items)
        if not skip_corrupt:
            raise corrupt(item.name, result, blamed)
    raise nothing_to_train_on(blamed, len(looked_at), len(looked_at), 0)


def decoded(
    items: Iterator[Item], wanted: Wanted, blamed: str
) -> Generator[tuple[Item, Pixels | CorruptImageError]]:
    """Decodes in threads and yields in order.

    Pillow releases the interpreter's lock while it decompresses and resizes: two threads on two
    cores decode 600 JPEGs of 640×480 a second, one thread 330. At 64×64 the interpreter's own work
    dominates, and any number of threads decodes about 6,000 a second.
    """
    task_images = max(1, min(TASK_IMAGES, TASK_BYTES // math.prod(_shape_of(wanted))))
    yield from _in_threads(items, lambda item: decode(item, wanted, blamed), task_images)


def _in_threads(
    items: Iterator[Item], work: Callable[[Item], _T], task_images: int
) -> Generator[tuple[Item, _T]]:
    """The result of `work` for each item, in order. See `in_threads`."""

    def work_on_all(group: Iterable[Item]) -> list[tuple[Item, _T]]:
        return [(item, work(item)) for item in group]

    with closing(in_threads(items, work_on_all, task_images, name="decode")) as groups:
        for group in groups:
            yield from group


def corrupt(name: str, error: CorruptImageError, blamed: str) -> DataError:
    """The error for an image that cannot be decoded."""
    return DataError(
        f"{blamed}: {name} cannot be decoded: {error}; remove it, or set data.on_corrupt=skip to"
        " skip such images"
    )


def nothing_to_train_on(
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
