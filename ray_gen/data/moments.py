"""Latents of images as data: what a store holds of each image, and how training draws z from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ray_gen.core import Noise

Name = Literal["mean", "std", "mean_flipped", "std_flipped"]

DEVIATION = 0.5
"""Standard deviation of each channel of standardised latents, over the training images. Karras et
al. 2024 (EDM2) train on latents of this deviation: it is near that of images in [-1, 1]."""


@dataclass(frozen=True)
class Moments:
    """The moments of q(z|x) = N(mean, std²) of an image, and of the image mirrored. In a store they
    are maps one above the other: (k h, w, c) for k moments."""

    shape_CHW: tuple[int, int, int]
    """Shape of z: (c, h, w)."""
    names: tuple[Name, ...]
    """What is stored, in order: "mean", or "mean" and "std"; then the same of the mirrored image,
    if it was encoded."""
    samples: bool = True
    """Whether training draws z from q(z|x). False: z is its mean."""

    @property
    def has_flips(self) -> bool:
        """Whether the mirrored images were encoded, too."""
        return "mean_flipped" in self.names

    @property
    def noise(self) -> dict[str, Noise]:
        """Random numbers of each image for `draw`. Empty if z is the mean."""
        return {"latent": Noise(self.shape_CHW)} if self.samples and "std" in self.names else {}

    def means(self, maps_NHWC: Tensor) -> Tensor:
        """The means of unflipped images, as a view: (N, k h, w, c) to (N, h, w, c)."""
        return maps_NHWC[:, : self.shape_CHW[1]]

    def draw(self, maps: Tensor, flip: Tensor | None, epsilon: Tensor | None) -> Tensor:
        """z = mean + std ε of each image: (N, c, k h, w) to (N, c, h, w).

        flip: bool (N, 1, 1, 1), which images are mirrored; None: none is. epsilon: N(0, 1) of the
        shape of z; None: z is the mean.
        """
        parts = maps.unflatten(2, (len(self.names), -1)).unbind(2)
        found = dict(zip(self.names, parts, strict=True))

        def of_image(name: Name, of_mirrored: Name) -> Tensor:
            plain = found[name]
            return plain if flip is None else torch.where(flip, found[of_mirrored], plain)

        z = of_image("mean", "mean_flipped")
        if epsilon is not None:
            z = z + of_image("std", "std_flipped") * epsilon
        return z.contiguous(memory_format=torch.channels_last)
