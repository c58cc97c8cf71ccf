"""Pure functions of the images seen: the learning rate and the decay of the EMA."""

from __future__ import annotations

import math

from ray_gen.core import Number, value_at
from ray_gen.experiment.optimizers import LearningRateSchedule, Optimizer


def learning_rate_factor(schedule: LearningRateSchedule, images: float) -> float:
    """Factor of the learning rate after `images` images."""
    warmup = schedule.warmup_images
    if images < warmup:
        return images / warmup
    if schedule.kind == "constant" or schedule.horizon_images is None:
        return 1.0
    progress = min(1.0, (images - warmup) / (schedule.horizon_images - warmup))
    if schedule.kind == "cosine":
        progress = 0.5 - 0.5 * math.cos(math.pi * progress)
    return 1.0 + (schedule.final_fraction - 1.0) * progress


class LearningRate:
    """The learning rate of an optimiser: `learning_rate`, a number or a schedule, times the factor
    of `schedule`."""

    def __init__(self, settings: Optimizer) -> None:
        self._settings = settings

    def at(self, images: float) -> float:
        """The learning rate after `images` images."""
        settings = self._settings
        return value_at(settings.learning_rate, images) * learning_rate_factor(
            settings.schedule, images
        )


def learning_rate(settings: Optimizer) -> Number:
    """The learning rate: the setting itself if `schedule` never changes it."""
    schedule = settings.schedule
    if schedule.kind == "constant" and not schedule.warmup_images:
        return settings.learning_rate
    return LearningRate(settings)


def ema_decay(images: float, since: float, half_life: float, ramp: float) -> float:
    """Weight of the old average after `since` more images: 0.5^(since / half-life).

    The half-life is at most `ramp` times the images seen (Karras et al. 2020, StyleGAN2-ADA). With
    ramp 0 it is constant.
    """
    if ramp:
        half_life = min(half_life, max(ramp * images, 1e-8))
    return 0.5 ** (since / half_life)
