"""What a node decodes of a Parquet data set that is streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ray_gen.data.errors import DataError
from ray_gen.data.sources.base import Item, Listing, SplitName
from ray_gen.data.sources.parquet import Parquet, RowGroup

HELD_OUT_IMAGES = 10_000
"""Held out of a stream at most, in whole row groups: they are decoded on every node."""
SAMPLE_IMAGES = 10_000
"""Of the images that are trained on, what a node decodes to look at and to compare with."""


class Sampled:
    """Of a Parquet data set that is streamed, the images that a node decodes: those held out, and a
    sample of those that are trained on."""

    kind = "parquet-stream"
    field = Parquet.field

    def __init__(self, source: Parquet, held_out_fraction: float) -> None:
        self._source = source
        self._fraction = held_out_fraction

    def identity(self) -> object:
        """That of the whole, and what of it is chosen."""
        return [self._source.identity(), self._fraction, HELD_OUT_IMAGES, SAMPLE_IMAGES]

    def listing(self) -> Listing:
        groups, columns = self._source.row_groups()
        train, held_out = self.split(groups)
        chosen: dict[SplitName, list[RowGroup]] = {
            "train": _first(_mixed(train), SAMPLE_IMAGES),
            "held_out": held_out,
        }
        count = sum(group.rows for groups in chosen.values() for group in groups)
        items = (
            Item(item.key, item.name, split, item.load)
            for split, groups in chosen.items()
            for item in self._source.items(sorted(groups, key=_place), columns)
        )
        return Listing(count, items, columns.class_names)

    def split(self, groups: Sequence[RowGroup]) -> tuple[list[RowGroup], list[RowGroup]]:
        """Those to train on and those held out, which are the data set's own, or chosen by a hash.

        Raises DataError where nothing is left to train on.
        """
        own = any(group.shard.split is not None for group in groups)
        mixed = _mixed(groups)
        if own:
            candidates = [group for group in mixed if group.shard.split == "held_out"]
            held_out = _first(candidates, HELD_OUT_IMAGES)
            kept = [group for group in groups if group.shard.split == "train"]
        else:
            total = sum(group.rows for group in groups)
            held_out = _first(mixed, min(HELD_OUT_IMAGES, self._fraction * total))
            chosen = {group.key for group in held_out}
            kept = [group for group in groups if group.key not in chosen]
        if not kept:
            raise DataError(
                f"{self.field}: {self._source.path} has too few row groups ({len(groups)}) to hold "
                "some out and stream the others; write it with smaller ones "
                "(ray-gen data convert), or set data.placement=auto"
            )
        return kept, held_out


def _mixed(groups: Iterable[RowGroup]) -> list[RowGroup]:
    """In an order by a hash, which does not depend on the other row groups."""
    return sorted(groups, key=lambda group: hashlib.blake2b(group.key.encode()).digest())


def _first(groups: Iterable[RowGroup], images: float) -> list[RowGroup]:
    """As many from the front as have so many images, but for the last that would be too much."""
    found: list[RowGroup] = []
    count = 0
    for group in groups:
        if images and (not found or count + group.rows <= images):
            found.append(group)
            count += group.rows
    return found


def _place(group: RowGroup) -> tuple[str, int]:
    return group.shard.path, group.number
