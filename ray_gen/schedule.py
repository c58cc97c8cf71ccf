"""Quantities that change with the images seen, as pure functions of them."""

from __future__ import annotations

import math

from ray_gen.experiment.optimizers import Schedule


def learning_rate_factor(schedule: Schedule, images: int) -> float:
    """What the learning rate is multiplied by after `images` images."""
    warmup = schedule.warmup_images
    if images < warmup:
        return images / warmup
    if schedule.kind == "constant" or schedule.horizon_images is None:
        return 1.0
    progress = min(1.0, (images - warmup) / (schedule.horizon_images - warmup))
    if schedule.kind == "cosine":
        progress = 0.5 - 0.5 * math.cos(math.pi * progress)
    return 1.0 + (schedule.final_fraction - 1.0) * progress


def ema_decay(images: int, since: int, half_life: float, ramp: float) -> float:
    """Weight of the old average after `since` more images: 0.5^(since / half-life).

    The half-life is at most `ramp` times the images seen (Karras et al. 2020, StyleGAN2-ADA);
    ramp 0 leaves it constant.
    """
    if ramp:
        half_life = min(half_life, max(ramp * images, 1e-8))
    return 0.5 ** (since / half_life)
