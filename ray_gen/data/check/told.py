"""What a check found: as text for a terminal, and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ray_gen.data.check.checking import Checked, Copies
from ray_gen.data.check.findings import Fault, Findings, Named
from ray_gen.data.errors import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
"""Version of the JSON. It is raised when a key changes its meaning or goes."""
_SIZES, _GROUPS, _NAMES, _CLASSES, _REFUSALS = 6, 5, 3, 12, 30
"""Numbers of lines and names in the text. JSON has all."""


class ClassCount(NamedTuple):
    """A class, and the number of its images in each split."""

    name: str | None
    """None: without a class."""
    train: int
    held_out: int


def class_counts(checked: Checked) -> list[ClassCount]:
    """All classes, in the order of their numbers; last, the images without one."""
    held_out = np.frombuffer(bytes(checked.found.held_out), np.uint8)
    labels = np.asarray(checked.found.labels, np.int64)
    counts = [Counter(labels[held_out == part].tolist()) for part in (0, 1)]
    names = checked.class_names
    seen = sorted({*range(len(names)), *counts[0], *counts[1]} - {-1})
    rows = [
        ClassCount(names[k] if k < len(names) else str(k), counts[0][k], counts[1][k]) for k in seen
    ]
    loose = ClassCount(None, counts[0][-1], counts[1][-1])
    return [*rows, loose] if loose.train or loose.held_out else rows


class Sizes(NamedTuple):
    """The sizes of all images, in pixels."""

    distinct: int
    common: list[tuple[int, int, int]]
    """(height, width, number of images), the most common first."""
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]


def sizes_of(found: Findings) -> Sizes:
    """The sizes of all images."""
    heights, widths = np.asarray(found.heights, np.int64), np.asarray(found.widths, np.int64)
    sizes, counts = np.unique(heights << 32 | widths, return_counts=True)
    order = np.lexsort((sizes, -counts))
    common = [(int(sizes[i]) >> 32, int(sizes[i]) & 0xFFFFFFFF, int(counts[i])) for i in order]
    return Sizes(len(sizes), common, heights, widths)


RATIOS = (
    ("taller than 1:2", 0.0, 0.499),
    ("1:2 to 3:4", 0.499, 0.751),
    ("3:4 to square", 0.751, 0.999),
    ("square", 0.999, 1.001),
    ("square to 4:3", 1.001, 1.335),
    ("4:3 to 2:1", 1.335, 2.001),
    ("wider than 2:1", 2.001, math.inf),
)
"""Names of ranges of width over height, each with its lower (inclusive) and upper end."""


def ratios_of(found: Findings) -> dict[str, int]:
    """Number of images by their aspect ratio."""
    sizes = sizes_of(found)
    ratios = sizes.widths / np.maximum(sizes.heights, 1)
    return {name: int(((low <= ratios) & (ratios < high)).sum()) for name, low, high in RATIOS}


def levels_of(found: Findings) -> list[dict[str, Any]]:
    """Mean, standard deviation and histogram of the values, by channels and type."""
    rows: list[dict[str, Any]] = []
    for (channels, kind), counts in sorted(found.histograms.items()):
        values = np.arange(counts.shape[1], dtype=np.float64)
        total = counts.sum(1)
        mean = (counts @ values) / total
        variance = (counts @ values**2) / total - mean**2
        rows.append(
            {
                "channels": channels,
                "type": kind,
                "mean": mean.tolist(),
                "std": np.sqrt(np.maximum(variance, 0)).tolist(),
                "histogram": counts.reshape(channels, 256, -1).sum(2).tolist(),
            }
        )
    return rows


def as_json(checked: Checked, source: str) -> dict[str, Any]:
    """Everything, as plain Python. `ray-gen data check --help` tells the keys."""
    found, contents, outlook = checked.found, checked.contents, checked.outlook
    sizes = sizes_of(found)
    seen = found.seen
    held_out = sum(found.held_out)
    return {
        "version": VERSION,
        "source": source,
        "complete": checked.complete,
        "training": {
            "would_start": not outlook.refusals,
            "refusals": list(outlook.refusals),
            "line": outlook.line,
            "remarks": list(outlook.remarks),
        },
        "images": {
            "listed": contents.count,
            "looked_at": found.looked_at,
            "read": found.count,
            "train": found.count - held_out,
            "held_out": held_out,
        },
        "classes": [row._asdict() for row in class_counts(checked)],
        "formats": dict(found.formats.most_common()),
        "kinds": [
            {
                "mode": look.mode,
                "channels": look.channels,
                "opacity": look.alpha,
                "type": look.type,
                "count": named.count,
                "first": named.names[0],
            }
            for look, named in sorted(found.looks.items(), key=lambda one: -one[1].count)
        ],
        "deep_values": [seen.low, seen.high] if seen.types else None,
        "values": levels_of(found),
        "sizes": {
            "distinct": sizes.distinct,
            "height": _spread(sizes.heights),
            "width": _spread(sizes.widths),
            "common": [
                {"height": height, "width": width, "count": count}
                for height, width, count in sizes.common[:100]
            ],
        },
        "aspect_ratios": ratios_of(found),
        "animated": {**_named(found.animated), "images": found.frames},
        "misnamed": _named(found.misnamed),
        "one_colour": _named(found.blank),
        "corrupt": _faults(found.corrupt),
        "unreadable": _faults(found.refused),
        "not_read": dict(contents.listing.not_read) if contents.listing is not None else {},
        "not_read_images": _faults(contents.unread),
        "not_read_others": {kind: _named(named) for kind, named in contents.others.items()},
        "duplicates": {
            "exact": [_copies(copies, checked) for copies in checked.exact],
            "near": [_copies(copies, checked) for copies in checked.near],
            "leaking_groups": sum(copies.leaks for copies in (*checked.exact, *checked.near)),
            "not_compared": checked.plain,
            "all_compared": checked.all_compared,
        },
    }


def _spread(values: NDArray[np.int64]) -> dict[str, float] | None:
    if not len(values):
        return None
    return {
        "least": int(values.min()),
        "median": float(np.median(values)),
        "greatest": int(values.max()),
    }


def _faults(faults: Sequence[Fault]) -> list[dict[str, str]]:
    return [{"name": fault.name, "reason": fault.reason} for fault in faults]


def _named(named: Named) -> dict[str, Any]:
    return {"count": named.count, "names": named.names}


def _copies(copies: Copies, checked: Checked) -> dict[str, Any]:
    names = checked.class_names
    images = [
        {
            "name": image.name,
            "split": "held_out" if image.held_out else "train",
            "class": names[image.label] if 0 <= image.label < len(names) else None,
        }
        for image in copies.images
    ]
    return {"images": images, "leaks": copies.leaks}


def in_words(checked: Checked) -> Iterator[str]:
    """The lines for a terminal. Faults come first; all corrupt images are named."""
    found, contents = checked.found, checked.contents
    if not checked.complete:
        yield (
            f"interrupted: {found.looked_at:,} of {contents.count:,} images were looked at;"
            " what follows is of these"
        )
    yield from _of_leaks(checked)
    yield from _of_training(checked)
    if found.corrupt:
        yield f"{_number(len(found.corrupt), 'corrupt image')}:"
        yield from _of_faults(found.corrupt, checked)
    yield from _of_files(checked)
    if not found.count:
        return
    yield from _of_images(checked)
    yield from _of_copies("exact duplicates", checked.exact, checked)
    yield from _of_copies("near duplicates", checked.near, checked)
    if checked.plain:
        yield (
            f"{_number(checked.plain, 'image')} without contrast"
            f" {'was' if checked.plain == 1 else 'were'} not compared for near duplicates"
        )
    if not checked.all_compared:
        yield "too many images are alike to compare all pairs: there may be more near duplicates"


def _of_leaks(checked: Checked) -> Iterator[str]:
    leaks = [copies for copies in (*checked.exact, *checked.near) if copies.leaks]
    if not leaks:
        return
    held_out = sum(image.held_out for copies in leaks for image in copies.images)
    yield (
        f"leakage: {_number(held_out, 'held-out image')} {'has' if held_out == 1 else 'have'}"
        f" duplicates among the training images ({_number(len(leaks), 'group')}); scores on"
        " held-out images will be too good; remove the copies"
    )
    for copies in leaks[:_GROUPS]:
        yield f"  {_group(copies, checked)}"
    if len(leaks) > _GROUPS:
        yield f"  and {len(leaks) - _GROUPS:,} more groups"


def _of_training(checked: Checked) -> Iterator[str]:
    outlook = checked.outlook
    if outlook.refusals:
        yield "training would be refused:"
        yield from (f"  {printable(refusal)}" for refusal in outlook.refusals[:_REFUSALS])
        if len(outlook.refusals) > _REFUSALS:
            yield f"  and {len(outlook.refusals) - _REFUSALS:,} more reasons"
        if outlook.line is not None:
            yield "once that is mended, training would read:"
    elif outlook.line is not None:
        yield "training would read:"
    if outlook.line is not None:
        yield f"  {outlook.line}"
        yield from (f"    {printable(remark)}" for remark in outlook.remarks)


def _of_files(checked: Checked) -> Iterator[str]:
    contents = checked.contents
    if contents.unread:
        yield f"{_number(len(contents.unread), 'image')} not read:"
        yield from _of_faults(contents.unread, checked)
    if contents.others:
        yield "other files, not read:"
        for suffix, named in contents.others.items():
            names = f": {_some(named, checked)}" if named.names else ""
            yield f"  {named.count:,} {printable(suffix)}{names}"


def _of_faults(faults: Sequence[Fault], checked: Checked) -> Iterator[str]:
    for fault in faults:
        yield f"  {printable(checked.contents.brief(fault.name))}: {printable(fault.reason)}"


def _of_images(checked: Checked) -> Iterator[str]:
    found = checked.found
    rows = class_counts(checked)
    if rows and rows[0].name is not None:
        yield f"{len(rows):,} classes (train, held out):"
        for row in rows[:_CLASSES]:
            name = "without a class" if row.name is None else printable(row.name)
            yield f"  {name}: {row.train:,}, {row.held_out:,}"
        if len(rows) > _CLASSES:
            yield f"  and {len(rows) - _CLASSES:,} more"
    yield "formats: " + _counts(found.formats)
    yield "kinds: " + _counts(kinds_of(found))
    if found.seen.types:
        yield f"values of deep images: {found.seen.low:,.6g} to {found.seen.high:,.6g}"
    for row in levels_of(found):
        mean, std = (", ".join(f"{value:.4g}" for value in row[name]) for name in ("mean", "std"))
        yield (
            f"values of {row['channels']}-channel {row['type']}: mean {mean}; standard deviation"
            f" {std}"
        )
    sizes = sizes_of(found)
    common = ", ".join(f"{n:,} of {h}×{w}" for h, w, n in sizes.common[:_SIZES])
    more = sizes.distinct - _SIZES
    yield f"sizes (height×width): {common}" + (f" and {more:,} more sizes" if more > 0 else "")
    ratios = {name: count for name, count in ratios_of(found).items() if count}
    yield "aspect ratios: " + _counts(ratios)
    for what, of, named in (
        ("file", "of several images", found.animated),
        ("file", "with the name of another format", found.misnamed),
        ("image", "of one colour", found.blank),
    ):
        if named.count:
            yield f"{_number(named.count, what)} {of}: {_some(named, checked)}"


def kinds_of(found: Findings) -> dict[str, int]:
    """Number of images by mode and type: "RGB", "grey of uint16"."""
    counts: Counter[str] = Counter()
    for look, named in found.looks.items():
        mode = f"with {look.mode}" if look.mode[:1].isdigit() else look.mode
        counts[mode + ("" if look.type == "uint8" else f" of {look.type}")] += named.count
    return dict(counts.most_common())


def _of_copies(title: str, groups: Sequence[Copies], checked: Checked) -> Iterator[str]:
    if not groups:
        return
    images = sum(len(copies.images) for copies in groups)
    yield f"{title}: {images:,} images in {_number(len(groups), 'group')}"
    for copies in groups[:_GROUPS]:
        yield f"  {_group(copies, checked)}"
    if len(groups) > _GROUPS:
        yield f"  and {len(groups) - _GROUPS:,} more groups"


def _group(copies: Copies, checked: Checked) -> str:
    shown = [
        printable(checked.contents.brief(image.name)) + (" (held out)" if image.held_out else "")
        for image in copies.telling()
    ]
    more = len(copies.images) - len(shown)
    return " = ".join(shown) + (f" and {more:,} more" if more > 0 else "")


def _some(named: Named, checked: Checked) -> str:
    shown = [printable(checked.contents.brief(name)) for name in named.names[:_NAMES]]
    return ", ".join(shown) + (", …" if named.count > _NAMES else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
