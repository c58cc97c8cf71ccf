"""The part of a streamed Parquet data set that each node decodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ray_gen.data.errors import DataError
from ray_gen.data.sources.base import Listing, SplitName
from ray_gen.data.sources.parquet import Parquet, RowGroup

HELD_OUT_IMAGES = 10_000
"""Largest number of held-out images of a stream, in whole row groups: every node decodes them."""
SAMPLE_IMAGES = 10_000
"""Largest number of training images that each node decodes, to look at and to compare with."""


class Sampled:
    """The images of a streamed Parquet data set that each node decodes: the held-out images, and a
    sample of the training images."""

    kind = "parquet-stream"
    field = Parquet.field

    def __init__(self, source: Parquet, held_out_fraction: float) -> None:
        self._source = source
        self._fraction = held_out_fraction

    def identity(self) -> object:
        """Identity of the whole data set, and the settings that choose the part."""
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
            replace(item, split=split)
            for split, groups in chosen.items()
            for item in self._source.items(sorted(groups, key=_place), columns)
        )
        return Listing(
            count,
            items,
            columns.class_names,
            columns.watched,
            notes=columns.notes,
            no_classes=columns.no_classes,
            condition_names=columns.conditions.names,
        )

    def split(self, groups: Sequence[RowGroup]) -> tuple[list[RowGroup], list[RowGroup]]:
        """Row groups to train on, and row groups held out. The split is the data set's own, else
        chosen by a hash.

        Raises DataError if nothing is left to train on.
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
                "some out and stream the others; write it with smaller row groups "
                "(ray-gen data convert), or set data.placement=auto"
            )
        return kept, held_out

    def with_splits(self, groups: Sequence[RowGroup]) -> list[RowGroup]:
        """The row groups, each with the split of `split`. Splits of the data set's own stay.

        Raises DataError if nothing is left to train on.
        """
        if any(group.shard.split is not None for group in groups):
            return list(groups)
        chosen = {group.key for group in self.split(groups)[1]}
        splits: list[SplitName] = ["held_out" if g.key in chosen else "train" for g in groups]
        return [
            replace(group, shard=replace(group.shard, split=split))
            for group, split in zip(groups, splits, strict=True)
        ]


def _mixed(groups: Iterable[RowGroup]) -> list[RowGroup]:
    """Row groups in the order of a hash of their keys. The hash of a group does not depend on the
    other groups."""
    return sorted(groups, key=lambda group: hashlib.blake2b(group.key.encode()).digest())


def _first(groups: Iterable[RowGroup], images: float) -> list[RowGroup]:
    """Row groups in order, up to `images` images in all: the first group, and then each group that
    still fits. Empty if `images` is 0."""
    found: list[RowGroup] = []
    count = 0
    for group in groups:
        if images and (not found or count + group.rows <= images):
            found.append(group)
            count += group.rows
    return found


def _place(group: RowGroup) -> tuple[str, int]:
    return group.shard.path, group.number
