"""Several sources as one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ray_gen.data.errors import DataError
from ray_gen.data.sources.base import Item, Listing, Source
from ray_gen.data.sources.labels import MOST_CLASSES

if TYPE_CHECKING:
    from ray_gen.data.sources.base import Picture

_T = TypeVar("_T")
_OWN = (
    *("path", "splits", "frames", "labels", "label_column", "conditions", "image_column"),
    *("image_ending", "dataset", "root", "download", "options", "kind"),
)
"""Fields of `data` that each of the joined sources has for itself."""
_OF_ONE = re.compile(rf"\bdata(?=\.({'|'.join(_OWN)})\b|=)")


class Joined:
    """The images of several sources, source by source.

    Classes are joined by their names: those of the first source in their order, then those that the
    second has besides. Each source keeps its own splits. Each image keeps its key, so that it is in
    the same split as without the others.
    """

    kind = "joined"
    field = "data.sources"

    def __init__(self, *, sources: Sequence[Source]) -> None:
        self.sources = sources

    def identity(self) -> object:
        """Kind and identity of each source."""
        return [
            [source.kind, _of(number, source.identity)]
            for number, source in enumerate(self.sources)
        ]

    def listing(self) -> Listing:
        listings = [_of(number, source.listing) for number, source in enumerate(self.sources)]
        names, notes = _joined_classes([listing.class_names for listing in listings])
        conditions = listings[0].condition_names
        for number, listing in enumerate(listings):
            if listing.condition_names != conditions:
                raise DataError(
                    f"{_name(number)}.conditions: has the numbers"
                    f" {', '.join(listing.condition_names) or 'of no column'}, and {_name(0)}"
                    f" {', '.join(conditions) or 'of no column'}; name the same in all sources"
                )
        not_read: Counter[str] = Counter()
        watched: dict[str, tuple[int, int]] = {}
        why = ""
        for number, listing in enumerate(listings):
            not_read.update(listing.not_read)
            watched |= listing.watched
            notes += [f"{_name(number)}: {_in_words(number, note)}" for note in listing.notes]
            if listing.no_classes and not why:
                why = f"{_name(number)}: {_in_words(number, listing.no_classes)}"
        return Listing(
            sum(listing.count for listing in listings),
            self._items(listings, names),
            names,
            watched,
            dict(not_read.most_common()),
            tuple(notes),
            why,
            sources=len(listings),
            condition_names=conditions,
        )

    def _items(self, listings: Sequence[Listing], names: tuple[str, ...] | None) -> Iterator[Item]:
        index = {name: i for i, name in enumerate(names or ())}
        for number, listing in enumerate(listings):
            table = [index[name] for name in listing.class_names or ()] if names else []
            items = iter(listing.items)
            while (item := _of(number, partial(next, items, None))) is not None:
                yield replace(item, load=partial(_load, item.load, table), source=number)


def _name(number: int) -> str:
    return f"data.sources.{number}"


def _in_words(number: int, text: str) -> str:
    """A sentence of a source, with the fields that it names where they stand."""
    return _OF_ONE.sub(_name(number), text)


def _of(number: int, function: Callable[[], _T]) -> _T:
    try:
        return function()
    except DataError as error:
        raise DataError(_in_words(number, str(error))) from error


def _joined_classes(
    named: Sequence[tuple[str, ...] | None],
) -> tuple[tuple[str, ...] | None, list[str]]:
    """All classes, and what to tell of them. None if a source has none."""
    with_classes = [names for names in named if names is not None]
    if not with_classes:
        return None, []
    if len(with_classes) < len(named):
        without = [_name(number) for number, names in enumerate(named) if names is None]
        some = "has" if len(without) == 1 else "have"
        return None, [f"{', '.join(without)} {some} no named classes, so classes are not used"]
    counts = Counter(name for names in with_classes for name in dict.fromkeys(names))
    if len(counts) > MOST_CLASSES:
        return None, [
            f"the sources have {len(counts):,} classes, more than {MOST_CLASSES:,} and too many, so"
            " labels are left out"
        ]
    if len(named) > 1 and max(counts.values()) == 1:
        return tuple(counts), [
            f"the sources have no class in common: their names together are {len(counts):,} classes"
        ]
    return tuple(counts), []


def _load(
    load: Callable[[], tuple[Picture, int | None]], table: Sequence[int]
) -> tuple[Picture, int | None]:
    """The image, with the joined number of its class."""
    picture, label = load()
    return picture, None if label is None or not table else table[label]
