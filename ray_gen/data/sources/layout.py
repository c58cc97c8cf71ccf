"""Splits and classes of image files, from the names of their folders."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ray_gen.data.errors import DataError, Refuse, raised
from ray_gen.data.formats import suffix_of
from ray_gen.data.sources.base import SplitName
from ray_gen.data.sources.labels import visible

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
_TRAIN = "training|train|trn"
_HELD_OUT = "validation|valid|val|vld|testing|test|tst|evaluation|eval|dev|heldout|holdout|held"
_REST = f"({_TRAIN}|{_HELD_OUT}|sets?|data|images?|imgs?|[a-ds])?"
_LIKE: Mapping[SplitName, re.Pattern[str]] = {
    "train": re.compile(f"(pre|sub|mini)?({_TRAIN}){_REST}"),
    "held_out": re.compile(f"({_HELD_OUT}){_REST}"),
}
"""Words that may mean a split: trainval, pretrain, testset."""
_NUMBERING = re.compile(r"\d+[-_.]of[-_.]\d+|(?<![^\W_])[0-9a-f]{8,}(?![^\W_])")
"""Numbers and digests of shards: 00000-of-00002-b42a775f407cee45."""
_MAY_BE = re.compile("|".join(_OF_KEYWORD), re.IGNORECASE)
_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z]\w*", re.IGNORECASE)
"""A name that YAML reads as this text without quotes."""


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


def _words(name: str) -> list[str]:
    """The words of a name, in small letters."""
    text = _NUMBERING.sub(" ", visible(name).lower())
    return [word for word in re.split(r"[\W\d_]+", text) if word]


def split_named(name: str) -> str | None:
    """The split that a name means: "train" for "Train-0" and "train2017". None: it says something
    else besides, as "train_tracks" does, or it names no split."""
    words = _words(name)
    return _OF_KEYWORD.get(words[0]) if len(words) == 1 else None


def _like(name: str) -> SplitName | None:
    """The split that a name may mean: "train" for trainA, train_val and pretrain."""
    words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]
    words.append("".join(words))  # held_out
    for split, pattern in _LIKE.items():
        if any(pattern.fullmatch(word) for word in words):
            return split
    return None


def splits_in_names(paths: Iterable[str]) -> tuple[str, str] | None:
    """A training file and a held-out file by their names, which else say the same: train_0.png and
    test_3.png. None: there are no two."""
    named: dict[tuple[str, ...], dict[bool, str]] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        if _MAY_BE.search(name) is None:
            continue
        split, rest = split_of_shard(name)
        if split is not None:
            alike = named.setdefault(rest, {})
            alike.setdefault(split == "train", name)
            if len(alike) == 2:
                return alike[True], alike[False]
    return None


def layout_of(
    paths: Sequence[str],
    splits: Splits,
    root: str,
    barren: Sequence[str] = (),
    refuse: Refuse = raised,
    *,
    classes: bool = True,
) -> Layout:
    """The places of the image files of a tree.

    paths: of all image files, whether they can be read or not. root: the tree, for messages.
    barren: files that are no images, and empty folders and links to nothing, with a slash behind.
    Raises DataError if the names allow two readings, and for a split or a class without an image.
    refuse: if it goes on, folders that may be splits or classes are read as classes. classes:
    whether folders are classes; if not, they are only splits.
    """
    wrapper = _wrapper(paths, splits)
    below = {path: path.removeprefix(wrapper) for path in paths}
    tops = _tops(below.values())
    where = f"{root}/{wrapper}".rstrip("/")
    hollow = _hollow_splits(paths, barren, wrapper) if splits == "auto" else {}
    for folder, kinds in hollow.items():
        refuse(
            DataError(
                f"data.path: {root}/{folder} {_content(kinds)}, and has the name of a split; put"
                " images into it, or move it away"
            )
        )
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
            places[path] = Place(key, None, _class(top) if slash else None)
        elif (split := roles.get(top)) is not None and slash:
            inner, deeper, _ = rest.partition("/")
            places[path] = Place(key, split, _class(inner) if deeper else None)
        else:
            unused[top] = unused.get(top, 0) + 1
    if not classes:
        unnamed = {path: replace(place, class_name=None) for path, place in places.items()}
        return Layout(unnamed, None, unused)
    _check(places, where, refuse)
    names = sorted({place.class_name for place in places.values() if place.class_name is not None})
    if names:
        for folder, kinds in _hollow(paths, barren, wrapper, depth=1 if roles else 0).items():
            top = folder.removeprefix(wrapper).partition("/")[0]
            if folder in hollow or (roles and top not in roles):
                continue
            refuse(
                DataError(
                    f"data.path: {root}/{folder} {_content(kinds)}, beside folders that are"
                    " classes; put images into it, or move it away"
                )
            )
    return Layout(places, tuple(names) or None, unused)


def _class(folder: str) -> str:
    """The class of a folder. One text for all its images: a million need 50 MiB less."""
    return sys.intern(visible(folder))


def _tops(keys: Iterable[str]) -> list[str]:
    """The folders that hold images, at the top."""
    return sorted({key.partition("/")[0] for key in keys if "/" in key})


def _wrapper(paths: Sequence[str], splits: Splits) -> str:
    """The folder that holds everything, with a slash; "" without one.

    A folder of images only is a class. A folder of folders, if it stands alone, is no class: it
    wraps the data set, and so does a `train` that stands alone.
    """
    wrapper = ""
    named = set(map(visible, splits.values())) if isinstance(splits, Mapping) else set()
    rest = list(paths)
    while rest and all("/" in path for path in rest):
        tops = {path.partition("/")[0] for path in rest}
        if len(tops) > 1 or (named & set(map(visible, tops))):
            break
        (top,) = tops
        inner = [path.partition("/")[2] for path in rest]
        is_split = splits == "auto" and split_named(top) == "train"
        if not is_split and not all("/" in path for path in inner):
            break
        wrapper += f"{top}/"
        rest = inner
    return wrapper


def _roles(
    tops: list[str], keys: list[str], splits: Splits, where: str
) -> dict[str, SplitName] | None:
    """The split of each folder that is one. None: the folders are classes."""
    if splits == "none":
        return None
    if isinstance(splits, Mapping):
        if splits["train"] == splits["held_out"]:
            raise DataError(
                f"data.splits: train and held_out are both {splits['train']!r}; name two folders,"
                " or give the folder itself and set data.held_out_fraction"
            )
        roles: dict[str, SplitName] = {}
        for split, name in splits.items():
            found = [top for top in tops if visible(top) == visible(name)]
            if not found:
                raise DataError(
                    f"data.splits.{split}: {where} has no folder {name!r} with images;"
                    f" it has {_listed(tops) or 'no folder'}"
                )
            roles |= dict.fromkeys(found, "train" if split == "train" else "held_out")
        return roles
    named = {top: split_named(top) for top in tops}
    of = {kind: [top for top in tops if named[top] == kind] for kind in KEYWORDS}
    train, held_out = of["train"], of["validation"] or of["test"]
    loose = any("/" not in key for key in keys)
    if train and held_out and all(named.values()) and not loose:
        return {**dict.fromkeys(train, "train"), **dict.fromkeys(held_out, "held_out")}
    _check_inner(keys, where)
    if len(tops) < 2:
        return None
    train_like = [*train, *(top for top in tops if _like(top) == "train")]
    held_out_like = [*held_out, *(top for top in tops if _like(top) == "held_out")]
    if train_like and held_out_like:
        raise DataError(_two_readings(tops, train_like[0], held_out_like[0], where))
    if all(_like(top) == "held_out" for top in tops):
        second = (of["test"] or [top for top in tops if "test" in top.lower()] or tops[1:])[0]
        first = next(top for top in tops if top != second)
        raise DataError(_two_readings(tops, first, second, where))
    if train and _all_nested(train, keys):
        raise DataError(
            f"data.splits: {where} has {train[0]}, which holds folders as a split does, beside"
            f" {_listed([top for top in tops if top not in train])}; give {where}/{train[0]}"
            " itself, or set data.splits=none if all of them are classes"
        )
    return None


def _all_nested(tops: Sequence[str], keys: Iterable[str]) -> bool:
    """Whether all images of some folders lie in folders below them, as classes in a split do."""
    inner = [key for key in keys if key.partition("/")[0] in tops]
    return all(key.count("/") > 1 for key in inner)


def _check_inner(keys: Iterable[str], where: str) -> None:
    """Raises DataError if a folder holds folders that may be splits, as CLASS/train, CLASS/test."""
    inner: dict[str, dict[str, None]] = {}
    for key in keys:
        top, _, rest = key.partition("/")
        name, slash, _ = rest.partition("/")
        if slash:
            inner.setdefault(top, {})[name] = None
    for top, names in inner.items():
        of = {_like(name): name for name in names}
        if "train" in of and "held_out" in of:
            raise DataError(
                f"data.splits: folders of {where} hold folders named like splits"
                f" ({top}/{of['train']}, {top}/{of['held_out']}); give {where}/{top} alone, or lay"
                f" all out as train/{top} and test/{top}, or set data.splits=none to train on all"
            )


def _two_readings(tops: Sequence[str], train: str, held_out: str, where: str) -> str:
    """The sentence about folders that could be classes or splits."""
    train, held_out = (
        name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)
        for name in (train, held_out)
    )
    named = shlex.quote(f"{{train: {train}, held_out: {held_out}}}")
    return (
        f"data.splits: the folders of {where} ({_listed(tops)}) may be splits or classes; for"
        f" splits set data.splits={named} (other folders are not read), for classes set"
        " data.splits=none"
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


def _hollow(
    paths: Iterable[str], barren: Iterable[str], below: str, depth: int = 0
) -> dict[str, Counter[str]]:
    """Folders at a depth below a folder that hold no image, and how many files of what kind."""

    def folder_of(path: str) -> str | None:
        parts = path.removeprefix(below).split("/", depth + 1)
        held = path.startswith(below) and len(parts) > depth + 1
        return below + "/".join(parts[:-1]) if held else None

    found: dict[str, Counter[str]] = {}
    for path in barren:
        if (folder := folder_of(path)) is not None:
            kinds = found.setdefault(folder, Counter())
            if not path.endswith("/"):
                kinds[suffix_of(path) or "without suffix"] += 1
    if found:
        for path in paths:
            found.pop(folder_of(path) or "", None)
    return found


def _hollow_splits(
    paths: Sequence[str], barren: Sequence[str], wrapper: str
) -> dict[str, Counter[str]]:
    """As `_hollow`: folders with the name of a split, beside folders with images."""
    names = wrapper.split("/")[:-1]
    levels = ["".join(f"{name}/" for name in names[:i]) for i in range(len(names) + 1)]
    beside = [level for level, name in zip(levels, names, strict=False) if split_named(name)]
    if any("/" in path.removeprefix(wrapper) for path in paths):
        beside.append(wrapper)
    found = {k: v for level in beside for k, v in _hollow(paths, barren, level).items()}
    return {path: kinds for path, kinds in found.items() if split_named(path.split("/")[-1])}


def _content(kinds: Counter[str]) -> str:
    """What a folder without images holds."""
    if not kinds:
        return "is empty or a link to nothing"
    counts = (f"{count:,} {kind}" for kind, count in kinds.most_common(6))
    return f"has no images, but {', '.join(counts)}"


def _parts_of(path: str) -> list[str]:
    """The name of a file without its suffix, and the name of its folder."""
    *folders, file = path.split("/")
    return [file.rpartition(".")[0], *folders[-1:]]


def split_of_shard(path: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that the name of a shard means, or else the name of its folder, and what the name
    says besides: ("test", ("digits",)) for "digits-test-0.parquet". None: no split, or several."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for words in map(_words, _parts_of(path)):
        splits = {_OF_KEYWORD[word] for word in words if word in _OF_KEYWORD}
        if len(splits) == 1:
            rest = tuple(word for word in words if word not in _OF_KEYWORD)
            found.append((splits.pop(), rest))
    return min(found, key=lambda told: bool(told[1]), default=(None, ()))


def splits_of_shards(paths: Sequence[str], where: str) -> dict[str, SplitName | None]:
    """The split of each shard to read, from the name of its file or of its folder. None for all, if
    the data set has no splits of its own."""
    named = {path: split_of_shard(path) for path in paths}
    may_be: set[str | None] = set()
    for path, (kind, _) in named.items():
        like = [meant for part in _parts_of(path) if (meant := _like(part))]
        sure = "train" if kind == "train" else "held_out"
        may_be.add(sure if kind is not None else like[0] if like else None)
    kinds = {kind for kind, _ in named.values()}
    if "held_out" not in may_be or (len(kinds) == 1 and len(may_be) == 1):
        return dict.fromkeys(paths)
    nameless = next((path for path, (kind, _) in named.items() if kind is None), None)
    if nameless is not None:
        clear = " and ".join(kind for kind in KEYWORDS if kind in kinds) or "several splits"
        raise DataError(
            f"data.path: {where} has shards of {clear}, but the name {nameless} tells no split, or"
            " several; move this file away or rename it to train-..."
        )
    held_out = "validation" if "validation" in kinds else "test"
    if "train" not in kinds:
        raise DataError(
            f"data.path: {where} has shards of the splits validation and test and none of train;"
            " rename those to train on to train-..., or give one file or folder of them"
        )
    of_train = {path: rest for path, (kind, rest) in named.items() if kind == "train"}
    other = next(
        (p for p, (_, rest) in named.items() if rest and rest not in of_train.values()), None
    )
    if other is not None:
        raise DataError(
            f"data.path: the shards {next(iter(of_train))} and {other} of {where} may be of two"
            " splits, or both to train on; rename them to train-... and test-..., or both to"
            " train-..."
        )
    names: dict[str | None, SplitName] = {"train": "train", held_out: "held_out"}
    return {path: names[kind] for path, (kind, _) in named.items() if kind in names}
