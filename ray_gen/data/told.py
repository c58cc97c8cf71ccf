"""What was read of a data set, in words: one line, and sentences about what a user should know."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ray_gen.data.errors import printable
from ray_gen.data.store import Store
from ray_gen.pixels import channels_in_words

FEW_IMAGES = 1_000
"""Below this number a network learns its training images by heart."""
FEW_OF_CLASS = 10
FEW_HELD_OUT = 50
"""Below this number the mean of a score over the held-out images moves by more than a seventh of
the images' own spread."""
_MOST_KINDS = 6


def lines(store: Store) -> Iterator[str]:
    """The line and the remarks, to be printed before training starts."""
    yield printable(summary(store))
    for remark in remarks(store):
        yield f"  {printable(remark)}"


def summary(store: Store) -> str:
    """One line: images, splits, size, channels, classes, and what was not read."""
    _, height, width = store.image_shape
    train = store.stream.rows if store.stream is not None else len(store.train)
    held_out = len(store.held_out)
    parts = [
        f"{_count(train + held_out, 'image')} ({train:,} train, {held_out:,} held out)"
        f" of {height}×{width}, {_channels(store)}"
    ]
    if store.label_count:
        parts[0] += f", {_count(store.label_count, 'class')}"
    if store.conditions:
        parts[0] += f", numbers {', '.join(one.name for one in store.conditions)}"
    not_read = store.found.not_read
    if not_read:
        kinds = [f"{count:,} {kind}" for kind, count in not_read.items()]
        more = len(kinds) - _MOST_KINDS
        shown = ", ".join(kinds[:_MOST_KINDS]) + (f" and {more} more kinds" if more > 0 else "")
        parts.append(f"{_count(sum(not_read.values()), 'file')} not read: {shown}")
    if store.skipped:
        parts.append(f"{store.skipped:,} corrupt")
    return "; ".join(parts)


def remarks(store: Store) -> Iterator[str]:
    """What was assumed, and what may disappoint, each with its consequence or remedy."""
    found = store.found
    channels, _, _ = store.image_shape
    yield from found.notes
    if len(found.modes) > 1:
        counts = ", ".join(f"{count:,} {mode}" for mode, count in found.modes.items())
        yield f"{counts}: all become {_channels(store)}"
    transparent = found.transparent
    if transparent and channels in (1, 3):
        yield (
            f"transparent pixels of {_count(transparent, 'image')} are put on white;"
            f" data.channels={channels + 1} keeps their opacity"
        )
    if found.values is not None and found.value_range is not None:
        yield _range(found.types, found.values, found.value_range)
    some_have = found.unlabelled < len(store.train) + len(store.held_out)
    if store.label_count is None and some_have and (found.unlabelled or found.no_classes):
        why = found.no_classes or f"images without a class: {found.unlabelled:,}"
        yield f"classes are not used: {why}"
    if found.corrupt:
        name, why = found.corrupt[0]
        yield f"the first corrupt image is {name}: {why}"
    train = store.stream.rows if store.stream is not None else len(store.train)
    if train < FEW_IMAGES:
        yield (
            f"only {_count(train, 'training image')}: a model learns them by heart;"
            " its samples will be copies or mixtures of them"
        )
    yield from _classes(store)
    held_out = len(store.held_out)
    if 0 < held_out < FEW_HELD_OUT:
        own = found.least_fraction is None  # the data set's own split
        more = "add held-out images" if own else "set a larger data.held_out_fraction"
        yield (
            f"only {_count(held_out, 'held-out image')}: scores on them are noisy, also a score by"
            f" which checkpoints.best chooses; {more}"
        )


def _count(count: int, what: str) -> str:
    """ "1 image", "2 images", "3 classes"."""
    return f"{count:,} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")


def _channels(store: Store) -> str:
    channels, _, _ = store.image_shape
    if store.moments is not None:
        drawn = "drawn from q(z|x)" if store.moments.noise else "means"
        mirrored = ", mirrored images too" * store.moments.has_flips
        return f"latents of {_count(channels, 'channel')} ({drawn}{mirrored})"
    bits = 16 if store.train.images_NHWC.dtype == torch.uint16 else 8
    return channels_in_words(channels, opacity=store.opacity, bits=bits)


def _range(
    types: tuple[str, ...], values: tuple[float, float], value_range: tuple[float, float]
) -> str:
    """How deep values were read."""
    low, high = (f"{value:,.6g}" for value in value_range)
    return (
        f"{' and '.join(types)} values from {values[0]:,.6g} to {values[1]:,.6g}:"
        f" {low} becomes black and {high} white; data.value_range sets other limits"
    )


def _classes(store: Store) -> Iterator[str]:
    """Sentences about classes without training images, and about small ones."""
    if store.found.class_counts is None or store.stream is not None:  # of a stream: a sample's
        return
    names = store.class_names or ()
    counts = dict.fromkeys(map(str, range(len(names))), 0)
    counts.update(store.found.class_counts.get("train", {}))

    def name(label: str) -> str:
        return names[int(label)] if int(label) < len(names) else label

    without = [name(label) for label, count in counts.items() if not count]
    if without:
        more = len(without) - 1
        others = f" and {_count(more, 'more class')}" if more else ""
        yield (
            f"no training image is of class {without[0]}{others}; a model cannot learn what it"
            " looks like"
        )
    few = [(count, label) for label, count in counts.items() if 0 < count < FEW_OF_CLASS]
    if not few:
        return
    count, label = min(few)
    more = len(few) - 1
    has = "more class has" if more == 1 else "more classes have"
    others = f", and {more:,} {has} fewer than {FEW_OF_CLASS}" if more else ""
    yield (
        f"class {name(label)} has {_count(count, 'training image')}{others};"
        " samples of such a class will look like its images"
    )
