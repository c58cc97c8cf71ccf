"""Consistency regularisation of a discriminator (Zhang et al. 2020; Zhao et al. 2021, "Improved
consistency regularization for GANs"): an image and its mirrored, shifted copy get like logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_gen.augment import augment
from ray_gen.core import Batch, Noise, Noises

CONSISTENCY_NOISE: Noises = {
    f"{prefix}_{name}": Noise(shape, "uniform")
    for prefix in ("moved_real", "moved_fake")
    for name, shape in (("flip", ()), ("shift", (2,)))
}
"""Of a copy of each real and of each generated image."""


def moved(images: Tensor, batch: Batch, of: str) -> Tensor:
    """Copies of images_NCHW, half of them mirrored, and all shifted by whole pixels, up to 1/8 of
    each side. of: "moved_real" or "moved_fake"."""
    mirrored = (batch.noise[f"{of}_flip"] < 0.5)[:, None, None, None]
    images = torch.where(mirrored, images.flip(3), images)
    shift = {"augment_translation": batch.noise[f"{of}_shift"]}
    return augment(images, ("translation",), shift)
