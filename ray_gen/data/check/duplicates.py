"""Finds duplicates: images of equal pixels, and images whose prints are close."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_gen.data.check.prints import DIGEST_BYTES, GREY_VALUES, PRINT_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR = 2.5
"""Largest root mean square difference of the prints of near duplicates, in steps of 255: of the
brightness, and of the colours.

False alarms: none in the 12.5 million pairs of 5,000 MNIST digits, which are different digits that
look alike. Found, of 400 copies each of emoji (64 px), digits (28 px) and parts of photographs (48
to 200 px): JPEG of quality 90: 99.8, 100, 99.7 %; of quality 50: 97, 61, 97 %; WebP of quality 70:
99.5, 100, 97 %; half the size: 100, 2, 99 %; 1.5 times the size: 99.8, 100, 99 %. Copies that are
cropped or brighter are mostly not found."""
NEAR_OF_CONTRAST = 0.1
"""The difference must also be at most this part of the contrast (the standard deviation of the
brightness) of both."""
PLAIN = 5.0
"""Images with less contrast are not compared: skies and empty pages are all alike."""
COMPARED = 300_000_000
"""Number of comparisons that are worth the time: about a minute on one core."""
_MOST_COMPARED = 20_000
"""Number of comparisons of one image."""
_CHUNK = 8_192
_PAIRS_AT_ONCE = 100_000
_MOST_AXES = 12


@dataclass(frozen=True)
class Groups:
    """Groups of images that are duplicates of each other, by their number among those read."""

    exact: list[list[int]]
    near: list[list[int]]
    """Of different images only: of those that are exact duplicates it holds the first."""
    plain: int
    """Number of images that were not compared with others, because they have no contrast."""
    complete: bool
    """Whether all close pairs were found. False if too many images are alike."""


def groups_of(
    digests: bytes | bytearray,
    prints: bytes | bytearray,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Groups:
    """All groups, each in the order of its images, in the order of their first images.

    digests, prints: those of all images, one after another. The time grows with the number of
    images and not with its square: images are dealt to cells along the directions in which the
    prints differ most, and an image is compared only with those in the cells around it.
    """
    digest_rows = np.frombuffer(digests, f"V{DIGEST_BYTES}")
    count = len(digest_rows)
    _, firsts, which = np.unique(
        _sortable(digest_rows),
        return_index=True,
        return_inverse=True,
    )
    exact = _gathered(which.ravel(), len(firsts))
    different = np.sort(firsts)
    all_prints = np.frombuffer(prints, np.uint8).reshape(count, PRINT_BYTES)
    contrast = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        part = all_prints[start : start + _CHUNK, :GREY_VALUES]
        contrast[start : start + _CHUNK] = part.astype(np.float32).std(1)
    compared = different[contrast[different] >= PLAIN]
    plain = len(different) - len(compared)
    close, complete = _close(all_prints[compared], contrast[compared], progress)
    near = [[int(compared[i]) for i in group] for group in close]
    return Groups(exact, near, plain, complete)


def _sortable(digests: NDArray[Any]) -> NDArray[Any]:
    """Digests as pairs of numbers, which NumPy can sort."""
    return digests.view(np.dtype([("high", "<u8"), ("low", "<u8")]))


def _gathered(which: NDArray[np.int64], kinds: int) -> list[list[int]]:
    """The places of each value that occurs more than once. Values are below `kinds`."""
    counts = np.bincount(which, minlength=kinds)
    repeated = np.flatnonzero(counts[which] > 1)
    groups: dict[int, list[int]] = {}
    for index in repeated.tolist():
        groups.setdefault(int(which[index]), []).append(index)
    return list(groups.values())


def _close(
    prints: NDArray[np.uint8],
    contrast: NDArray[np.float32],
    progress: Callable[[int, int], None],
) -> tuple[list[list[int]], bool]:
    """Groups of close prints, and whether all close pairs were found."""
    count = len(prints)
    if count < 2:
        return [], True
    places, reach = _placed(prints)
    cells = _Cells(places, reach)
    most = max(20, min(_MOST_COMPARED, COMPARED // count))
    joined = _Joined(count)
    for start in range(0, count, _CHUNK):
        progress(start, count)
        owners = np.arange(start, min(start + _CHUNK, count))
        for i, j in cells.candidates(owners, most):
            for may_be in (joined.are_apart, cells.may_be_near):
                left = may_be(i, j)
                i, j = i[left], j[left]
            near = _are_near(prints, contrast, i, j)
            joined.join(i[near], j[near])
    progress(count, count)
    return joined.groups(), cells.complete


def _placed(prints: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """The prints along the directions in which they differ most, (N, axes), in units of a cell's
    side; and the farthest that near prints can be from each other along one."""
    count, size = prints.shape
    total = np.zeros(size)
    squares = np.zeros((size, size))
    for start in range(0, count, _CHUNK):
        part = prints[start : start + _CHUNK].astype(np.float64)
        total += part.sum(0)
        squares += part.T @ part
    mean = total / count
    values, directions = np.linalg.eigh(squares / count - np.outer(mean, mean))
    axes = directions[:, ::-1][:, :_MOST_AXES]
    far = NEAR * float(np.sqrt(size))
    side = 4 * far  # along an axis, half of the images have a second cell within reach
    spread = np.sqrt(np.maximum(values[::-1][:_MOST_AXES], 0))
    # An axis of twice this spread has 1.7 times fewer images in a cell, and 1.5 times more cells to
    # look at. Few images need few axes.
    useful = max(1, int((spread > side / 4).sum()))
    wanted = max(1, int(np.ceil(np.log2(max(count, 2)) / 1.6)))
    axes = axes[:, : min(useful, wanted, _MOST_AXES)]
    places = np.empty((count, axes.shape[1]), np.float32)
    for start in range(0, count, _CHUNK):
        part = prints[start : start + _CHUNK].astype(np.float64) - mean
        places[start : start + _CHUNK] = part @ axes / side
    return places, far / side


class _Cells:
    """Images by the cell of a grid that they lie in. A cell is known by a hash of its place."""

    def __init__(self, places: NDArray[np.float32], reach: float) -> None:
        """places: (N, axes), in units of a cell's side. reach: largest distance to look at, below
        ½."""
        self.complete = True
        self._at = places
        self._reach = reach + 1e-3  # a margin for the rounding of float32
        axes = places.shape[1]
        self._steps = np.random.default_rng(0).integers(1, 2**63, axes, np.uint64) | np.uint64(1)
        whole = np.floor(places)
        with np.errstate(over="ignore"):
            steps = whole.astype(np.int64).astype(np.uint64) * self._steps
            self._keys = steps.sum(1, dtype=np.uint64)
        inside = places - whole
        above, below = inside > 1 - self._reach, inside < self._reach
        self._sides = above.astype(np.int8) - below.astype(np.int8)
        self._order = np.argsort(self._keys, kind="stable")
        self._sorted, starts, sizes = np.unique(
            self._keys[self._order], return_index=True, return_counts=True
        )
        self._ends = starts + sizes
        # The cell and the image in one number, in order.
        self._places = np.repeat(np.arange(len(starts)), sizes) * len(places) + self._order

    def may_be_near(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the places of each pair are within reach."""
        difference = self._at[i] - self._at[j]
        return np.einsum("ij,ij->i", difference, difference) <= self._reach**2

    def candidates(
        self, owners: NDArray[np.int64], most: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs (i, j) with i < j of images that may be close, i of `owners`, some at a time. At
        most `most` for each i; if one has more, `complete` becomes False."""
        who = owners
        keys = self._keys[owners]
        with np.errstate(over="ignore"):
            for axis, step in enumerate(self._steps):
                sides = self._sides[who, axis]
                beside = sides != 0
                steps = np.where(sides[beside] > 0, step, np.uint64(0) - step)
                keys = np.concatenate([keys, keys[beside] + steps])
                who = np.concatenate([who, who[beside]])
        at = np.searchsorted(self._sorted, keys)
        at[at == len(self._sorted)] = 0
        there = self._sorted[at] == keys
        who, at = who[there], at[there]
        # All cells of one image together, its own first.
        order = np.argsort(who, kind="stable")
        who, at = who[order], at[order]
        # Only the images of a cell that come after its own.
        starts = np.searchsorted(self._places, at * len(self._keys) + who, side="right")
        sizes = self._ends[at] - starts
        before = np.cumsum(sizes) - sizes
        first = np.searchsorted(who, who)
        room = most - (before - before[first])
        kept = np.minimum(sizes, np.maximum(room, 0))
        self.complete &= bool((kept == sizes).all())
        ends = np.cumsum(kept)
        begin = 0
        while begin < len(kept):
            done = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, "right")))
            part = kept[begin:end]
            offsets = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
            right = self._order[np.repeat(starts[begin:end], part) + offsets]
            yield np.repeat(who[begin:end], part), right
            begin = end


def _are_near(
    prints: NDArray[np.uint8],
    contrast: NDArray[np.float32],
    i: NDArray[np.int64],
    j: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the prints of each pair are close."""
    difference = prints[i].astype(np.float32) - prints[j]  # sums of whole numbers are exact
    grey, colours = (
        np.einsum("ij,ij->i", part, part) / part.shape[1]
        for part in (difference[:, :GREY_VALUES], difference[:, GREY_VALUES:])
    )
    most = np.minimum(NEAR, NEAR_OF_CONTRAST * np.minimum(contrast[i], contrast[j]))
    return np.maximum(grey, colours) <= most**2


class _Joined:
    """Numbers that pairs join to groups."""

    def __init__(self, count: int) -> None:
        self._above = np.arange(count)
        """A smaller number of the same group, or the number itself."""

    def are_apart(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether it is not yet known that they are of one group, for each pair."""
        return self._above[i] != self._above[j]

    def join(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> None:
        """Joins the groups of each pair."""
        while len(i):
            i, j = self._first(i), self._first(j)
            apart = i != j
            i, j = i[apart], j[apart]
            np.minimum.at(self._above, np.maximum(i, j), np.minimum(i, j))

    def _first(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first number of each group."""
        first = self._above[numbers]
        while (further := self._above[first] != first).any():
            first[further] = self._above[first[further]]
        self._above[numbers] = first
        return first

    def groups(self) -> list[list[int]]:
        """All groups of more than one number."""
        first = self._first(np.arange(len(self._above)))
        return _gathered(first, len(first))


def crosses(group: Sequence[int], held_out: bytes | bytearray) -> bool:
    """Whether a group has images of both splits."""
    return len({held_out[index] for index in group}) == 2
