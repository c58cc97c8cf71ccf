"""Any torchvision data set of single images, by the name of its class."""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import operator
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_gen.data.errors import DataError, reason
from ray_gen.data.sources.base import HELD_OUT_NAMES, Item, Listing, SplitName

if TYPE_CHECKING:
    from PIL.Image import Image

_TRAIN_NAMES = ("train", "trainval")

# FakeData seeds torch's global generator for each item, so two threads would mix their images.
_NOT_THREAD_SAFE = {"FakeData"}


class TorchvisionDataset:
    """A class of `torchvision.datasets`, e.g. MNIST, CIFAR10, CelebA, FakeData.

    If the data set has its own train and held-out parts, they are the two splits: `train=True` and
    `train=False`, or `split="train"` and the first of "validation", "valid", "val", "test" that it
    knows. If `options` already chooses one part, `data.held_out_fraction` divides this part.
    Targets that are one integer become labels. Other targets are left out.
    """

    kind = "torchvision"
    field = "data.root"

    def __init__(
        self,
        *,
        dataset: str,
        root: str,
        download: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.root = Path(root).expanduser().absolute()
        self.download = download
        self.options = dict(options or {})

    def identity(self) -> object:
        """Does not import torchvision (7 to 9 s), so an existing store opens without it.

        The data set's class chooses its files, and they may not exist yet. So this key does not
        contain them; `Listing.watched` does.
        """
        try:
            version = importlib.metadata.version("torchvision")
        except importlib.metadata.PackageNotFoundError as error:
            raise DataError(
                "data.kind: torchvision is not installed; pip install the torchvision version"
                " that belongs to the installed torch"
            ) from error
        return {
            "dataset": self.dataset,
            "root": str(self.root),
            "options": self.options,
            "torchvision": version,
        }

    def listing(self) -> Listing:
        parts = self._parts()
        labelled = all(self._has_labels(part) for part in parts.values())
        watched: dict[str, tuple[int, int]] = {}
        for part in parts.values():
            watched.update(_watched(part, self.root))
        return Listing(
            count=sum(len(part) for part in parts.values()),
            items=self._items(parts, labelled),
            class_names=_class_names(next(iter(parts.values()))) if labelled else None,
            watched=watched,
        )

    def _items(self, parts: Mapping[SplitName | None, Any], labelled: bool) -> Iterator[Item]:
        lock = threading.Lock() if self.dataset in _NOT_THREAD_SAFE else nullcontext()
        for split, part in parts.items():
            where = "" if split is None else f" ({split.replace('_', ' ')})"
            for index in range(len(part)):
                yield Item(
                    key=str(index),
                    name=f"{self.dataset}{where}, image {index}",
                    split=split,
                    load=partial(_load, part, index, labelled, lock),
                )

    def _has_labels(self, part: Any) -> bool:
        """Whether the target of an item is one integer. Raises DataError if items are no images."""
        from PIL.Image import Image

        for index in range(len(part)):
            try:
                item = part[index]
            except Exception:
                # The store names an unreadable image, or skips it.
                continue
            if not (isinstance(item, tuple) and item and isinstance(item[0], Image)):
                raise DataError(
                    f"data.dataset: the items of torchvision's {self.dataset} are not single"
                    " images; choose a data set for image classification"
                )
            return len(item) == 2 and _class_index(item[1]) is not None
        return False

    def _parts(self) -> Mapping[SplitName | None, Any]:
        """The data set's objects by split. One object, under None, if it has no splits of its own
        or `options` chooses one."""
        make = self._class()
        needed = _parameters(make)
        accepted = set(needed)
        unknown = next((name for name in self.options if name not in accepted), None)
        if unknown is not None:
            free = sorted(accepted - {"root", "download"})
            near = difflib.get_close_matches(unknown, free, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(free)}"
            raise DataError(
                f"data.options.{unknown}: torchvision's {self.dataset} has no such argument; {hint}"
            )
        for name in accepted - {"root", *self.options}:
            if needed[name]:
                raise DataError(
                    f"data.options.{name}: torchvision's {self.dataset} cannot be made without it;"
                    " set it (torchvision's documentation lists the choices)"
                )
        if "train" in accepted and "train" not in self.options:
            return {
                "train": self._make(make, accepted, train=True),
                "held_out": self._make(make, accepted, train=False),
            }
        if "split" in accepted and "split" not in self.options:
            train = self._first_split(make, accepted, _TRAIN_NAMES)
            held_out = self._first_split(make, accepted, HELD_OUT_NAMES)
            if train is not None and held_out is not None:
                return {"train": train, "held_out": held_out}
        return {None: self._make(make, accepted)}

    def _class(self) -> Any:
        try:
            from torchvision import datasets
        except ImportError as error:
            raise DataError(
                f"data.kind: torchvision cannot be imported ({reason(error)}); install the version"
                " that belongs to the installed torch"
            ) from error

        base = datasets.VisionDataset
        classes = {name: getattr(datasets, name) for name in datasets.__all__}
        names = [n for n, c in classes.items() if isinstance(c, type) and base in c.__mro__[1:]]
        if self.dataset in names:
            return classes[self.dataset]
        by_lower_case = {name.lower(): name for name in names}
        near = difflib.get_close_matches(self.dataset.lower(), by_lower_case, n=3, cutoff=0.5)
        hint = " or ".join(by_lower_case[name] for name in near) or "MNIST or CIFAR10"
        raise DataError(
            f"data.dataset: torchvision has no data set {self.dataset!r}; did you mean {hint}?"
        )

    def _first_split(self, make: Any, accepted: set[str], names: tuple[str, ...]) -> Any | None:
        """The first split that the class knows, or None. It has to try: a class does not list its
        splits."""
        for name in names:
            try:
                return self._make(make, accepted, split=name)
            except _UnknownSplitError:
                continue
        return None

    def _make(self, make: Any, accepted: set[str], **part: Any) -> Any:
        general = {"root": str(self.root), "download": self.download}
        arguments = {name: value for name, value in general.items() if name in accepted}
        try:
            return make(**arguments, **self.options, **part)
        except (ValueError, KeyError, AssertionError) as error:
            # The oldest classes raise KeyError or AssertionError for a split that they lack.
            if "split" in part and ("split" in str(error) or isinstance(error, KeyError)):
                raise _UnknownSplitError from error
            raise DataError(
                f"data.options: torchvision's {self.dataset} refuses {self.options}:"
                f" {reason(error)}"
            ) from error
        except TypeError as error:
            raise DataError(
                f"data.options: torchvision's {self.dataset} cannot be made with"
                f" {self.options}: {reason(error)}"
            ) from error
        except (ImportError, OSError, RuntimeError) as error:
            raise self._missing(error, "download" in accepted) from error

    def _missing(self, error: Exception, can_download: bool) -> DataError:
        if isinstance(error, ImportError):
            return DataError(f"data.dataset: {self.dataset} needs a library: {reason(error)}")
        if self.download and can_download:
            return DataError(
                f"data.download: {self.dataset} could not be downloaded to {self.root}"
                f" ({reason(error)}); check that this machine has access to the internet, or put"
                " the files there by hand"
            )
        # Cut off torchvision's own advice, "You can use download=True": here it is data.download.
        cause = reason(error).partition(". You ")[0]
        remedy = "set data.download=true to fetch it, or " if can_download else ""
        return DataError(
            f"data.root: {self.dataset} cannot be read from {self.root} ({cause});"
            f" {remedy}set data.root to the folder that contains it"
        )


class _UnknownSplitError(Exception):
    """The class has no split of this name."""


def _parameters(make: Any) -> dict[str, bool]:
    """A class's arguments, and whether each is required. Follows **kwargs to the base classes
    (EMNIST takes `train` from MNIST)."""
    needed: dict[str, bool] = {}
    for base in make.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(base.__init__).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                needed.setdefault(parameter.name, parameter.default is parameter.empty)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return needed


def _class_index(target: Any) -> int | None:
    """The target as a class if it is one integer (or a scalar tensor), else None.

    A negative integer is no class: STL10 marks its unlabelled images with -1.
    """
    try:
        index = operator.index(target)
    except TypeError:
        return None
    return index if index >= 0 else None


def _class_names(part: Any) -> tuple[str, ...] | None:
    """`classes` of the data set. ImageNet has several words for one class: they are joined."""
    classes = getattr(part, "classes", None)
    if not isinstance(classes, (list, tuple)) or not classes:
        return None
    return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in classes)


def _watched(part: Any, root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the entries at the top of the data set's own folder, else of the files in
    `root`.

    Not deeper: CelebA has 200,000 files in a sub-folder. The time of the sub-folder itself changes
    when a file is added or removed.
    """
    places = (getattr(part, name, None) for name in ("raw_folder", "base_folder", "_base_folder"))
    folder = next((root / place for place in places if isinstance(place, (str, Path))), root)
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if folder != root or path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def _load(
    part: Any, index: int, labelled: bool, lock: AbstractContextManager[Any]
) -> tuple[Image, int | None]:
    with lock:
        image, *target = part[index]
    image.load()
    return image, _class_index(target[0]) if labelled else None
