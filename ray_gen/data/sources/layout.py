"""Splits and classes of image files, from the names of their folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ray_gen.data.errors import DataError, Refuse, raised
from ray_gen.data.sources.base import SplitName

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Names of splits, as Hugging Face's data sets know them. A validation split comes before a test
split: it chooses the best checkpoint, and the test split stays unseen."""

Splits = Literal["auto", "none"] | Mapping[str, str]
"""`data.splits`: by their names; no folder is a split; or the names of the folders of each split,
{train: NAME, held_out: NAME}."""

_OF_KEYWORD = {word: split for split, words in KEYWORDS.items() for word in words}


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image file belongs."""

    key: str
    """Its path below the folder that wraps the whole data set. It decides the split, if the data
    set has no splits."""
    split: SplitName | None
    class_name: str | None


@dataclass(frozen=True)
class Layout:
    """The places of all image files."""

    places: dict[str, Place]
    """By path. Files of a split that is not read are left out."""
    class_names: tuple[str, ...] | None
    unused: dict[str, int] = field(default_factory=dict[str, int])
    """Number of images by the name of a split that is not read."""


def split_named(name: str) -> tuple[str | None, bool]:
    """The split that a name means, and whether the name says nothing else: ("train", True) for
    "Train-0", ("train", False) for "train_images". None: no split, or several."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    found = {_OF_KEYWORD[word] for word in words if word in _OF_KEYWORD}
    if len(found) != 1:
        return None, False
    return found.pop(), len(words) == 1


def layout_of(
    paths: Sequence[str],
    splits: Splits,
    root: str,
    barren: Iterable[str] = (),
    refuse: Refuse = raised,
    *,
    classes: bool = True,
) -> Layout:
    """The places of the image files of a tree.

    paths: of all image files, whether they can be read or not. root: the tree, for messages.
    barren: folders and links that hold nothing. Raises DataError if the names allow two readings.
    refuse: if it goes on, folders that may be splits or classes are read as classes. classes:
    whether folders are classes; if not, they are only splits.
    """
    barren = list(barren)
    wrapper = _wrapper(paths, splits)
    below = {path: path.removeprefix(wrapper) for path in paths}
    tops = _tops(below.values())
    where = root if not wrapper else f"{root}/{wrapper.rstrip('/')}"
    try:
        roles = _roles(tops, list(below.values()), splits, where)
    except DataError as error:
        refuse(error)
        roles = None
    places: dict[str, Place] = {}
    unused: dict[str, int] = {}
    for path, key in below.items():
        top, slash, rest = key.partition("/")
        if roles is None:
            places[path] = Place(key, None, top if slash else None)
        elif (split := roles.get(top)) is not None and slash:
            inner, deeper, _ = rest.partition("/")
            places[path] = Place(key, split, inner if deeper else None)
        else:
            unused[top] = unused.get(top, 0) + 1
    if not classes:
        unnamed = {path: replace(place, class_name=None) for path, place in places.items()}
        return Layout(unnamed, None, unused)
    _check(places, where, refuse)
    names = sorted({place.class_name for place in places.values() if place.class_name is not None})
    if names:
        _check_barren(barren, wrapper, roles, set(names), root, refuse)
    return Layout(places, tuple(names) or None, unused)


def _tops(keys: Iterable[str]) -> list[str]:
    """The folders that hold images, at the top."""
    return sorted({key.partition("/")[0] for key in keys if "/" in key})


def _wrapper(paths: Sequence[str], splits: Splits) -> str:
    """The folder that holds everything, with a slash; "" without one.

    A folder of images only is a class. A folder of folders, if it stands alone, is no class: it
    wraps the data set, and so does a `train` that stands alone.
    """
    wrapper = ""
    rest = list(paths)
    while rest and all("/" in path for path in rest):
        tops = {path.partition("/")[0] for path in rest}
        if len(tops) > 1 or (isinstance(splits, Mapping) and tops & set(splits.values())):
            break
        (top,) = tops
        inner = [path.partition("/")[2] for path in rest]
        is_split = splits == "auto" and split_named(top) == ("train", True)
        if not is_split and not all("/" in path for path in inner):
            break
        wrapper += f"{top}/"
        rest = inner
    return wrapper


def _roles(
    tops: list[str], keys: list[str], splits: Splits, where: str
) -> dict[str, SplitName] | None:
    """The split of each folder that is one. None: the folders are classes."""
    if splits == "none" or (splits == "auto" and len(tops) < 2):
        return None
    if isinstance(splits, Mapping):
        roles: dict[str, SplitName] = {}
        for split, name in splits.items():
            if name not in tops:
                raise DataError(
                    f"data.splits.{split}: {where} has no folder {name!r} with images;"
                    f" it has {_listed(tops) or 'no folder'}"
                )
            roles[name] = "train" if split == "train" else "held_out"
        return roles
    named = {top: split_named(top) for top in tops}
    others = [top for top, (split, _) in named.items() if split is None]
    of = {kind: [top for top, (split, _) in named.items() if split == kind] for kind in KEYWORDS}
    held_out = of["validation"] or of["test"]
    loose = any("/" not in key for key in keys)
    if not others and of["train"] and held_out and not loose:
        roles = dict.fromkeys(of["train"], "train")
        return {**roles, **dict.fromkeys(held_out, "held_out")}
    certain = {kind: [top for top in found if named[top][1]] for kind, found in of.items()}
    sure_held_out = certain["validation"] or certain["test"]
    nested = certain["train"] and _all_nested(certain["train"], keys)
    if (certain["train"] and sure_held_out) or (not others and not of["train"] and held_out):
        raise DataError(_two_readings(tops, certain["train"], sure_held_out or held_out, where))
    if nested:
        raise DataError(
            f"data.splits: {where} has {certain['train'][0]}, which holds folders as a split does,"
            f" beside {_listed(others)}; give {where}/{certain['train'][0]} itself, or set"
            " data.splits=none if all of them are classes"
        )
    return None


def _all_nested(tops: Sequence[str], keys: Iterable[str]) -> bool:
    """Whether all images of some folders lie in folders below them, as classes in a split do."""
    inner = [key for key in keys if key.partition("/")[0] in tops]
    return all(key.count("/") > 1 for key in inner)


def _two_readings(
    tops: Sequence[str], train: Sequence[str], held_out: Sequence[str], where: str
) -> str:
    """The sentence about folders that could be classes or splits."""
    first = train[0] if train else next(top for top in tops if top not in held_out[:1])
    second = held_out[0] if held_out else next(top for top in tops if top != first)
    return (
        f"data.splits: the folders of {where} ({_listed(tops)}) may be splits or classes; for"
        f" splits set data.splits='{{train: {first}, held_out: {second}}}' (other folders are not"
        " read), for classes set data.splits=none"
    )


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _check(places: Mapping[str, Place], where: str, refuse: Refuse) -> None:
    """Refuses if images lie beside class folders, or if only one split has classes."""
    for split in {place.split for place in places.values()}:
        inside = [place for place in places.values() if place.split == split]
        loose = next((place.key for place in inside if place.class_name is None), None)
        classed = next((place.key for place in inside if place.class_name is not None), None)
        if loose and classed:
            refuse(
                DataError(
                    f"data.path: {where} has images beside class folders that hold images"
                    f" ({loose}, {classed}); move the loose images into a class folder, or away"
                )
            )
            return
    if len({place.class_name is None for place in places.values()}) > 1:
        refuse(
            DataError(
                f"data.path: {where} has class folders in only one of its splits;"
                " lay out both in the same way"
            )
        )


def _check_barren(
    barren: Iterable[str],
    wrapper: str,
    roles: Mapping[str, SplitName] | None,
    names: set[str],
    root: str,
    refuse: Refuse,
) -> None:
    """Refuses if a class folder holds nothing, or is a link to nothing."""
    for path in barren:
        if not path.startswith(wrapper):
            continue
        parts = path.removeprefix(wrapper).split("/")
        if roles is not None:
            if parts[0] not in roles:
                continue
            parts = parts[1:]
        if len(parts) == 1 and (roles is not None or parts[0] not in names):
            refuse(
                DataError(
                    f"data.path: {root}/{path} is empty or a link to nothing, beside folders that"
                    " are classes; put images into it, mend the link, or remove it"
                )
            )


def splits_of_shards(paths: Sequence[str], where: str) -> dict[str, SplitName | None]:
    """The split of each shard to read, from the name of its file or of its folder. None for all, if
    the data set has no splits of its own."""
    named: dict[str, str | None] = {}
    for path in paths:
        parts = path.split("/")[-2:]
        stem = parts[-1].rpartition(".")[0]
        named[path] = split_named(stem)[0] or (split_named(parts[0])[0] if parts[1:] else None)
    kinds = set(named.values())
    held_out = next((kind for kind in ("validation", "test") if kind in kinds), None)
    if held_out is None or "train" not in kinds:
        return dict.fromkeys(paths)
    nameless = next((path for path, kind in named.items() if kind is None), None)
    if nameless is not None:
        raise DataError(
            f"data.path: {where} has shards of the splits train and {held_out}, but the name"
            f" {nameless} tells no split, or several; move this file away or rename it to train-..."
        )
    names: dict[str | None, SplitName] = {"train": "train", held_out: "held_out"}
    return {path: names[kind] for path, kind in named.items() if kind in names}
