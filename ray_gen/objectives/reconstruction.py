"""A discriminator that also reconstructs the real images that it sees (Liu et al. 2021, FastGAN,
section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ray_gen.core import Batch, Networks, Reconstructing, noise_of
from ray_gen.errors import Refused

DISTANCE = "distance"
"""Name of the distance among an objective's own modules."""


def reconstructed(networks: Networks, seen: Tensor, batch: Batch) -> tuple[Any, Tensor]:
    """D's output for augmented real images, and E_f ‖f(x) - D_f(x)‖ (eq. 4), from one pass: the
    distance of all that D reconstructs of an image from what it saw, summed, (N,)."""
    discriminator = networks["discriminator"]
    if not isinstance(discriminator, Reconstructing):
        raise Refused(
            f"objective.reconstruction_weight: {type(discriminator).__name__} has no method "
            "`reconstructed` (ray_gen.core.Reconstructing); give it one, set "
            "networks.discriminator.kind to fastgan or objective.reconstruction_weight to 0"
        )
    noise = noise_of(batch.noise, "judged_real")
    judgement, pairs = discriminator.reconstructed(seen, batch.labels, **noise)
    distances = [networks[DISTANCE](image, again) for image, again in pairs]
    return judgement, torch.stack(distances).sum(0).to(batch.images.dtype)
