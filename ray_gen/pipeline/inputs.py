"""What a user hands to a pipeline, checked: labels, images and latents."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_gen.core import ImageShape
from ray_gen.errors import Refused

BATCH = 256
"""Images that are read, or go through a network, at once: memory stays bounded for any count."""

Labels = int | str | Sequence[int | str] | Tensor
"""Classes by number or name: one for all, or one for each."""


def checked_numbers(count: int | Sequence[int]) -> Tensor:
    """The numbers of samples: int64 (N,). A count means 0 to count - 1."""
    if isinstance(count, int):
        if count < 1:
            raise Refused(f"count: at least one image, not {count}")
        return torch.arange(count)
    if not count:
        raise Refused("count: no number of a sample is given; name at least one")
    if min(count) < 0 or max(count) >= 2**32:
        raise Refused(
            "count: numbers of samples go from 0 to 2^32 - 1, and these go from "
            f"{min(count)} to {max(count)}"
        )
    return torch.tensor(count)


def class_numbers(labels: Labels, count: int, class_names: Sequence[str]) -> Tensor:
    """Classes of `count` things: int64 (count,), on the CPU."""
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    if isinstance(labels, (int, str)):
        labels = [labels] * count
    if len(labels) != count:
        raise Refused(f"labels: {len(labels)} given for {count} images")
    return torch.tensor([class_number(label, class_names) for label in labels])


def class_number(label: int | str, class_names: Sequence[str]) -> int:
    """A class by number or name."""
    if isinstance(label, str) and label in class_names:
        return class_names.index(label)
    if isinstance(label, str) and label.lstrip("-").isdigit():
        label = int(label)
    if isinstance(label, int) and 0 <= label < len(class_names):
        return label
    near = difflib.get_close_matches(str(label), class_names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(class_names[:10]) + (", …" if len(class_names) > 10 else "")
    raise Refused(
        f"labels: there is no class {label!r} among the {len(class_names)} of this run "
        f"({names}){hint}"
    )


def checked_images(images: Tensor, shape: ImageShape) -> Tensor:
    """Images as (N, C, H, W); one image (C, H, W) becomes a batch of one."""
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise Refused(
            f"images: their shape is {_words(images.shape)} and this run's images are "
            f"{_words(('N', *shape))}; `pipeline.read` brings image files to that"
        )
    if not images.is_floating_point():
        raise Refused(f"images: are {images.dtype}; give floats in [0, 1], e.g. images / 255")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # nor where they are NaN
        raise Refused(f"images: go from {low:.4g} to {high:.4g}; bring them to [0, 1]")
    return images


def checked_latents(z: Tensor, shape: tuple[int, ...], argument: str = "z") -> Tensor:
    """Latents as (N, *shape), finite; one latent becomes a batch of one."""
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
        raise Refused(f"{argument}: has numbers that are not finite")
    return z


def _words(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
