"""Data larger than a node: row groups of Parquet files, read during training.

A global batch consists of groups of images (`training.group_size`). Each group of images takes its
images from its own stream. Each epoch deals all row groups to the streams in random order. A stream
reads its row groups in blocks, and gives the rows of a block in random order. So the order is a
function of the seed alone. A worker reads only the streams of its own groups of images. So each row
group is read once per epoch, by one worker, for any number of workers.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ray_gen.data.build import corrupt
from ray_gen.data.decode import decode
from ray_gen.data.errors import CorruptImageError, DataError
from ray_gen.data.sources.base import Item
from ray_gen.data.sources.parquet import Columns, Parquet, RowGroup, RowsInMemory
from ray_gen.data.wanted import ELEMENTS, Wanted
from ray_gen.noise import permutation

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Decoded = tuple[Tensor, Tensor, Tensor]
"""Images, classes (-1: none) and conditions (N, K) of a group."""
_AHEAD = 4
"""Number of steps whose images are decoded in advance."""
_READS_AT_ONCE = 16


@dataclass(frozen=True)
class ShuffledBlock:
    """Row groups of one stream whose rows are shuffled together."""

    epoch: int
    number: int
    groups: tuple[int, ...]
    """In the order in which they are read."""
    rows: int


class Streams:
    """The rows of each of `streams` virtual streams, a function of the seed."""

    def __init__(self, seed: int, rows: Sequence[int], streams: int, window: int) -> None:
        """rows: number of rows of each row group, at least 1. window: approximate number of rows in
        a block."""
        self._seed = seed
        self._rows = np.asarray(rows, np.int64)
        self._streams = streams
        self._window = window
        self._epoch = lru_cache(2)(self._dealt)

    def _dealt(self, epoch: int) -> NDArray[np.int64]:
        return permutation(self._seed, "row groups", epoch, len(self._rows)).numpy()

    def blocks(self, stream: int, position: int) -> Iterator[tuple[ShuffledBlock, int]]:
        """The endless blocks of a stream, from the block that holds row `position` (counted from
        the start of the run). Each comes with the number of its rows before `position`."""
        for epoch in itertools.count():
            # Dealing continues where the last epoch ended, so that the extra row groups do not
            # always go to the same streams.
            first = (stream - epoch * len(self._rows)) % self._streams
            groups = self._epoch(epoch)[first :: self._streams]
            rows = self._rows[groups]
            if position >= (total := int(rows.sum())):
                position -= total
                continue
            # Shifted, so that the streams of a worker do not all begin a new block in one step.
            shift = self._window * stream // self._streams
            numbers = (np.cumsum(rows) - rows + shift) // self._window
            for number in np.unique(numbers):
                chosen = numbers == number
                size = int(rows[chosen].sum())
                if position >= size:
                    position -= size
                    continue
                yield (
                    ShuffledBlock(epoch, int(number), tuple(groups[chosen].tolist()), size),
                    position,
                )
                position = 0

    def within(self, stream: int, block: ShuffledBlock) -> list[int]:
        """The order of a block's rows. Rows are numbered across its row groups."""
        name = f"rows {stream} {block.number}"
        return permutation(self._seed, name, block.epoch, block.rows).tolist()


@dataclass(frozen=True)
class Shards:
    """The row groups that a run streams, and how to read them."""

    source: Parquet
    groups: tuple[RowGroup, ...]
    columns: Columns
    wanted: Wanted
    skip_corrupt: bool
    window: int

    @property
    def rows(self) -> int:
        """Number of all images."""
        return sum(group.rows for group in self.groups)

    @property
    def digest(self) -> str:
        """Digest of the footers: the row groups, their rows and bytes. Does not cover pixels."""
        told = [(g.key, g.rows, g.bytes) for g in self.groups]
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def read(self, group: int) -> RowsInMemory:
        """The rows of a row group, still encoded."""
        return self.source.read(self.groups[group], self.columns)


class Streamed:
    """Reads the images of a part of the global batch, step by step, in advance."""

    def __init__(
        self,
        shards: Shards,
        *,
        seed: int,
        streams: int,
        group_size: int,
        part: range,
        labels: Callable[[Tensor | None, Tensor | None], Tensor | None],
        pinned: bool,
    ) -> None:
        """streams: number of groups of the global batch. part: the images of the global batch to
        read, in whole groups. labels: makes the labels that networks get of classes, int64 (N,) or
        None, and conditions, float32 (N, K) or None. pinned: return pinned memory, for copies to a
        GPU."""
        self._shards = shards
        self._group_size = group_size
        self._streams = range(part.start // group_size, part.stop // group_size)
        rows = [group.rows for group in shards.groups]
        self._order = Streams(seed, rows, streams, shards.window)
        self._labels = labels
        self._pinned = pinned

    def batches(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """uint8 (N, H, W, C), and labels or None, of each step from `first` to `last` - 1."""
        threads = torch.get_num_threads()
        with (
            ThreadPoolExecutor(_READS_AT_ONCE, "row groups") as reads,
            ThreadPoolExecutor(threads, "decode") as decodes,
        ):
            streams = [self._images(s, first * self._group_size, reads) for s in self._streams]
            pending: deque[list[Future[_Decoded]]] = deque()
            try:
                for _ in range(first, last):
                    groups = [list(itertools.islice(s, self._group_size)) for s in streams]
                    pending.append([decodes.submit(self._decoded, group) for group in groups])
                    if len(pending) > _AHEAD:
                        yield self._joined(pending.popleft())
                while pending:
                    yield self._joined(pending.popleft())
            finally:
                for stream in streams:
                    stream.close()
                for pool in (reads, decodes):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _images(
        self, stream: int, position: int, reads: ThreadPoolExecutor
    ) -> Generator[tuple[_Loaded, int]]:
        """Yields the images of one stream: for each, a block and the image's place in the block.
        Reads the next block meanwhile."""

        def ordered() -> Iterator[tuple[list[Future[RowsInMemory]], list[int], int]]:
            for block, offset in self._order.blocks(stream, position):
                read = [reads.submit(self._shards.read, group) for group in block.groups]
                yield read, self._order.within(stream, block), offset

        blocks = ordered()
        following = next(blocks)
        while True:
            (read, order, offset), following = following, next(blocks)
            groups = [future.result() for future in read]
            loaded = _Loaded(groups, order, self._shards.wanted)
            for place in range(offset, len(order)):
                yield loaded, place

    def _decoded(self, group: Iterable[tuple[_Loaded, int]]) -> _Decoded:
        pixels, labels, conditions = zip(*(self._image(*place) for place in group), strict=True)
        given = [-1 if label is None else label for label in labels]
        numbers = torch.tensor([row or () for row in conditions], dtype=torch.float32)
        return torch.from_numpy(np.stack(pixels)), torch.tensor(given), numbers

    def _image(
        self, loaded: _Loaded, place: int
    ) -> tuple[NDArray[Any], int | None, tuple[float, ...] | None]:
        """An image of a block, with its class and its conditions. If it is corrupt and corrupt
        images are skipped: the next one that is not corrupt."""
        if loaded.pixels is not None:
            row = loaded.order[place]
            return loaded.pixels[row], loaded.labels[row], loaded.conditions[row]
        blamed = self._shards.source.field
        for following in range(len(loaded)):
            item = loaded[place + following]
            result = decode(item, self._shards.wanted, blamed)
            if not isinstance(result, CorruptImageError):
                return result.values_HWC, result.label, item.conditions
            if not self._shards.skip_corrupt:
                raise corrupt(item.name, result, blamed)
        raise DataError(
            f"{blamed}: none of {len(loaded)} images around {loaded[place].name} can be decoded; "
            "set data.on_corrupt=stop to see why"
        )

    def _joined(self, groups: list[Future[_Decoded]]) -> tuple[Tensor, Tensor | None]:
        images, classes, conditions = map(
            torch.cat, zip(*(group.result() for group in groups), strict=True)
        )
        labels = self._labels(classes, conditions if conditions.shape[1] else None)
        if self._pinned:
            images = images.pin_memory()
            labels = None if labels is None else labels.pin_memory()
        return images, labels


class _Loaded:
    """The rows of a block in their random order."""

    def __init__(
        self, groups: Sequence[RowsInMemory], order: Sequence[int], wanted: Wanted
    ) -> None:
        self._groups: Sequence[RowsInMemory] = groups
        self.order = order
        self._starts = list(itertools.accumulate((len(group) for group in groups), initial=0))
        stored = [group.pixels_NHWC for group in groups]
        whole = wanted.center_crop is None
        shape = (*(wanted.size_HW or ()), wanted.channels)
        self.pixels: NDArray[Any] | None = None
        """Pixels of all rows, in the order of the groups. None if the stored pixels do not have the
        wanted shape."""
        kind = ELEMENTS[wanted.element]
        if whole and all(
            pixels is not None and pixels.shape[1:] == shape and pixels.dtype == kind
            for pixels in stored
        ):
            self.pixels = np.concatenate([pixels for pixels in stored if pixels is not None])
            self.labels = [label for group in groups for label in group.labels]
            self.conditions = [
                row for group in groups for row in group.conditions or [None] * len(group)
            ]
            self._groups = ()  # frees the groups that were just copied

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Item:
        row = self.order[place % len(self.order)]
        number = bisect.bisect_right(self._starts, row) - 1
        return self._groups[number][row - self._starts[number]]
