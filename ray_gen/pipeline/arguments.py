"""Checks of the arguments of a pipeline: numbers, labels, images and latents."""

from __future__ import annotations

import difflib
import math
import operator
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from ray_gen.core import ImageShape, Shape
from ray_gen.errors import Refused
from ray_gen.experiment.data import Condition

BATCH = 256
"""Images that are read or go through a network at once. It bounds the memory for any count."""

STACK = "`torch.stack` makes one tensor from a list of tensors"
"""Remedy for a user who passes a list of latents."""


class Array(Protocol):
    """An object that NumPy accepts as an array. Does not import NumPy."""

    def __array__(self, dtype: Any = None, /) -> Any:
        """This object as a NumPy array."""
        ...


Floats = Tensor | Array
"""A tensor or a NumPy array."""

Labels = int | str | Sequence[int | str] | Tensor | Array
"""Classes by number or name: one for all, or one for each."""


Conditions = Mapping[str, SupportsFloat | Sequence[float] | Floats]
"""Numbers to condition on, by name, in the data's own units: one for all, or one for each."""


def whole_number(given: SupportsIndex, argument: str) -> int:
    """A whole number from Python, NumPy or torch, as int. Raises Refused."""
    if not isinstance(given, bool):
        try:
            return operator.index(given)
        except TypeError:
            pass
    raise Refused(f"{argument}: {_shown(given)} is not a whole number")


def real_number(given: SupportsFloat, argument: str) -> float:
    """A number from Python, NumPy or torch, as float. Raises Refused."""
    if not isinstance(given, (bool, str, bytes)):
        try:
            return float(given)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise Refused(f"{argument}: {_shown(given)} is not a number")


def listed(given: Any) -> list[Any] | None:
    """The entries of a list, an array or a tensor. None for a single value or a set."""
    plain = _plain(given)
    if isinstance(plain, Sequence) and not isinstance(plain, (str, bytes, bytearray)):
        return list(plain)
    return None


def all_whole(given: SupportsIndex | Sequence[int] | Array, argument: str) -> list[int]:
    """One or several whole numbers, as a list."""
    entries = listed(given)
    return [
        whole_number(one, argument) for one in ([_plain(given)] if entries is None else entries)
    ]


def checked_numbers(count: SupportsIndex | Sequence[int] | Array) -> Tensor:
    """The numbers of samples: int64 (N,). A count means 0 to count - 1."""
    numbers = all_whole(count, "count")
    if listed(count) is None:
        return torch.arange(checked_count(numbers[0]))
    if not numbers:
        raise Refused("count: the list of sample numbers is empty; give at least one")
    if min(numbers) < 0 or max(numbers) >= 2**32:
        raise Refused(
            f"count: the sample numbers go from {min(numbers)} to {max(numbers)}; give numbers "
            "from 0 to 2^32 - 1"
        )
    return torch.tensor(numbers)


def checked_count(count: SupportsIndex) -> int:
    """The number of images to make."""
    number = whole_number(count, "count")
    if number < 1:
        raise Refused(f"count: {number} is too small; ask for at least one image")
    if number > 2**32:
        raise Refused(f"count: {number} is too large; sample numbers are below 2^32")
    return number


def class_numbers(labels: Labels, count: int, class_names: Sequence[str]) -> Tensor:
    """Class numbers of `count` images: int64 (count,), on the CPU."""
    entries = listed(labels)
    if entries is None:
        entries = [_plain(labels)] * count
    if len(entries) != count:
        raise Refused(f"labels: {len(entries)} given for {count} images")
    return torch.tensor([class_number(label, class_names) for label in entries])


def condition_numbers(conditions: Conditions, count: int, known: Sequence[Condition]) -> Tensor:
    """The numbers to condition on of `count` images: float64 (count, K), in the data's own units.
    Raises Refused. known: the numbers of the run."""
    told = ", ".join(f"{one.name} (from {one.low:g} to {one.high:g} in the data)" for one in known)
    if not isinstance(conditions, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Refused(f"conditions: give a mapping by name: {told}")
    names = [one.name for one in known]
    missing = [name for name in names if name not in conditions]
    strange = [str(name) for name in conditions if name not in names]
    if missing or strange:
        what = f"{strange[0]!r} is no number of this run" if strange else f"{missing[0]} is missing"
        raise Refused(f"conditions: {what}; give exactly {told}")
    columns: list[list[float]] = []
    for name in names:
        argument, entries = f"conditions[{name!r}]", listed(conditions[name])
        if entries is None:
            entries = [_plain(conditions[name])] * count
        if len(entries) != count:
            raise Refused(f"{argument}: {len(entries)} given for {count} images")
        numbers = [real_number(one, argument) for one in entries]
        if not all(map(math.isfinite, numbers)):
            raise Refused(f"{argument}: has a number that is not finite; give finite numbers")
        columns.append(numbers)
    return torch.tensor(columns, dtype=torch.float64).T


def class_number(label: SupportsIndex | str, class_names: Sequence[str]) -> int:
    """The number of a class, from its number or name. Raises Refused."""
    if isinstance(label, str) and label in class_names:
        return class_names.index(label)
    if isinstance(label, str) and label.removeprefix("-").isdecimal():
        label = int(label)
    if not isinstance(label, str):
        label = _class_by_number(label)
    if isinstance(label, int) and 0 <= label < len(class_names):
        return label
    near = difflib.get_close_matches(str(label), class_names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(class_names[:10]) + (", …" if len(class_names) > 10 else "")
    raise Refused(
        f"labels: there is no class {label!r} among the {len(class_names)} of this run "
        f"({names}){hint}"
    )


def _class_by_number(label: SupportsIndex) -> int:
    try:
        return whole_number(label, "labels")
    except Refused:
        raise Refused(
            f"labels: {_shown(label)} is not a class; give a number or name, one for all or a list "
            "with one for each"
        ) from None


def tensor_of(given: Floats, argument: str, remedy: str) -> Tensor:
    """The same tensor, or an array as a tensor."""
    if isinstance(given, Tensor):
        return given
    array = getattr(given, "__array__", None)
    if array is not None:
        try:
            # A copy, because torch refuses negative strides and warns about read-only arrays.
            return torch.as_tensor(array().copy())
        except TypeError:  # an array of text or objects, or a class instead of an array
            pass
    raise Refused(
        f"{argument}: give a tensor or a NumPy array of numbers, not {type(given).__name__}; "
        f"{remedy}"
    )


def checked_images(given: Floats, shape: ImageShape) -> Tensor:
    """Images as (N, C, H, W); one image (C, H, W) becomes a batch of one."""
    images = tensor_of(given, "images", "`pipeline.read` makes a tensor from image files")
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise Refused(
            f"images: their shape is {_words(images.shape)} and this run's images are "
            f"{_words(('N', *shape))}; `pipeline.read` gives image files this shape"
        )
    if not images.is_floating_point():
        most = 65_535 if images.dtype == torch.uint16 else 255
        raise Refused(f"images: are {images.dtype}; give floats in [0, 1], e.g. images / {most}")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # NaN fails too
        raise Refused(f"images: go from {low:.4g} to {high:.4g}; scale them to [0, 1]")
    return images


def checked_levels(
    given: Floats | Mapping[str, Floats], shapes: Mapping[str, Shape], argument: str = "z"
) -> dict[str, Tensor]:
    """Latents by name, each (N, *shape) with the same N. A model with one latent also takes a
    tensor."""
    if not isinstance(given, Mapping):
        if len(shapes) > 1:
            raise Refused(
                f"{argument}: this run has the latents {levels_in_words(shapes)}; give a mapping "
                "by name, as `pipeline.latents` returns"
            )
        return {name: checked_latents(given, shape, argument) for name, shape in shapes.items()}
    if given.keys() != shapes.keys():
        raise Refused(
            f"{argument}: has {', '.join(map(str, given)) or 'nothing'}; give exactly the latents "
            f"of this run: {levels_in_words(shapes)}"
        )
    levels = {
        name: checked_latents(given[name], shape, f"{argument}[{name!r}]")
        for name, shape in shapes.items()
    }
    counts = {len(z) for z in levels.values()}
    if len(counts) > 1:
        raise Refused(
            f"{argument}: its latents have different numbers of images, {min(counts)} to "
            f"{max(counts)}; give the same number of each"
        )
    return levels


def levels_in_words(shapes: Mapping[str, Shape]) -> str:
    """Names and shapes of latents, for a message."""
    return ", ".join(f"{name} {_words(shape)}" for name, shape in shapes.items())


def checked_latents(given: Floats, shape: tuple[int, ...], argument: str = "z") -> Tensor:
    """Latents as (N, *shape), finite; one latent becomes a batch of one."""
    z = tensor_of(given, argument, STACK)
    if z.shape == shape:
        z = z[None]
    if z.shape[1:] != shape or not len(z):
        raise Refused(
            f"{argument}: the shape is {_words(z.shape)} and this run's latents are "
            f"{_words(('N', *shape))}; `pipeline.latents` draws some"
        )
    if not z.is_floating_point():
        raise Refused(f"{argument}: is {z.dtype}; give floats")
    if not bool(z.isfinite().all()):
        raise Refused(f"{argument}: has numbers that are not finite; give finite numbers")
    return z


def _plain(given: Any) -> Any:
    """Values of NumPy or torch as Python numbers and lists. Other values stay as they are."""
    tolist = getattr(given, "tolist", None)
    return given if tolist is None or isinstance(given, type) else tolist()


def _shown(given: object) -> str:
    """A value in one short line."""
    return " ".join(reprlib.repr(given).split())


def _words(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
