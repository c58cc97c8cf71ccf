"""`optimizers`: one for each phase of the objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from ray_gen.experiment.schedules import Fraction, NonNegative, Positive, Rate
from ray_gen.settings import Settings, live, or_its_kind

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class LearningRateSchedule(Settings):
    """Learning rate over images. It has its own horizon, so longer training does not change the
    steps that are already done."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay constant, or fall to `final_fraction` linearly or along half a
    cosine."""
    warmup_images: NonNegativeInt = 0
    """Images over which the rate grows linearly from 0."""
    horizon_images: PositiveInt | None = None
    """Images at which the fall ends; after it the rate is constant."""
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """The rate at the horizon, as a share of the learning rate."""


class OptimizerSettings(Settings):
    """Settings that all optimisers share."""

    learning_rate: Rate = live(...)
    """Step size of the optimiser. `schedule` multiplies it."""
    clip_norm: Positive | None = live(None)
    """Largest norm of a phase's gradient over all its networks. None: no clipping."""
    schedule: LearningRateSchedule = LearningRateSchedule()


class Adam(OptimizerSettings):
    """Adam (Kingma and Ba 2015)."""

    kind: Literal["adam"] = "adam"
    betas: tuple[Decay, Fraction] = live((0.9, 0.999))
    """Decay of the averages of the gradient and of its square, β1 and β2; the second may be a
    schedule."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator, so that it is never 0."""


class AdamW(OptimizerSettings):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Decay, Fraction] = live((0.9, 0.999))
    """Decay of the averages of the gradient and of its square, β1 and β2; the second may be a
    schedule."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator, so that it is never 0."""
    weight_decay: NonNegative = live(0.01)
    """Share of itself that a weight loses in each step, times the learning rate."""


class Sgd(OptimizerSettings):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the last step that is added to the next one."""
    nesterov: bool = False
    """Nesterov's momentum instead of the classical one."""
    weight_decay: NonNegative = live(0.0)
    """The loss gets the term λ/2 ‖w‖²; this is λ."""


_Kinds = Adam | AdamW | Sgd
Optimizer = Annotated[_Kinds, Field(discriminator="kind"), or_its_kind(_Kinds)]
