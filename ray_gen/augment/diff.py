"""DiffAugment (Zhao et al. 2020): differentiable transforms of a discriminator's input.

Pure functions of images and noise. A real image and its generated partner share one draw, so losses
that compare the two see the same transform. Images are in [-1, 1], pixels outside the image are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_gen.core import Noise


def augment_noise(names: Sequence[str]) -> dict[str, Noise]:
    """The noise of the named transforms for one image."""
    return {f"augment_{name}": Noise((_TRANSFORMS[name][1],), "uniform") for name in names}


def augment(
    images: Tensor, names: Sequence[str], noise: Mapping[str, Tensor], *, opacity: bool = False
) -> Tensor:
    """Apply the transforms in the order of `names`. images: (N, C, H, W); noise: U[0, 1), (N, k)
    each. opacity: whether the last channel is opacity; "color" leaves it as it is."""
    for name in names:
        transform, _ = _TRANSFORMS[name]
        drawn = noise[f"augment_{name}"]
        if opacity and name == "color":
            images = torch.cat([transform(images[:, :-1], drawn), images[:, -1:]], dim=1)
        else:
            images = transform(images, drawn)
    return images


def _color(images: Tensor, uniform: Tensor) -> Tensor:
    """Brightness ± 0.5, saturation x [0, 2], contrast x [0.5, 1.5]."""
    brightness, saturation, contrast = uniform.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2.0 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def _translation(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift by whole pixels, up to 1/8 of each side. Pixels from outside the image are 0."""
    _, _, height, width = images.shape
    rows = _shifted(uniform[:, 0], height)
    columns = _shifted(uniform[:, 1], width)
    padded = F.pad(images, (1, 1, 1, 1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # The channel axis separates the advanced indices, so torch puts it last: (N, H, W, C).
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted(uniform: Tensor, size: int) -> Tensor:
    """For each target index, the source index in a line padded by 1: (N, size)."""
    reach = (size + 4) // 8
    shift = (uniform * (2 * reach + 1)).floor().to(torch.int64) - reach
    source = torch.arange(size, device=uniform.device) + shift[:, None]
    return source.clamp(-1, size) + 1


def _cutout(images: Tensor, uniform: Tensor) -> Tensor:
    """Set a rectangle with half the sides of the image to 0. Its centre may be anywhere in the
    image."""
    _, _, height, width = images.shape
    rows = _inside(uniform[:, 0], height)
    columns = _inside(uniform[:, 1], width)
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _inside(uniform: Tensor, size: int) -> Tensor:
    """Whether each position lies in the hole: (N, size)."""
    length = (size + 1) // 2
    centre = (uniform * (size + 1 - length % 2)).floor()[:, None]
    position = torch.arange(size, device=uniform.device)
    first = centre - length // 2
    return (position >= first) & (position < first + length)


_TRANSFORMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "color": (_color, 3),
    "translation": (_translation, 2),
    "cutout": (_cutout, 2),
}
"""By name, the transform and the number of uniform numbers that it takes for one image."""
