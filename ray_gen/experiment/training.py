"""`training`, `workers`, `checkpoints`: how long, how large, on what, and what is kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ray_gen.experiment.schedules import Positive
from ray_gen.experiment.settings import Settings, free, live, problems_of


class EquilibriumStop(Settings):
    """Ends a run when its objective has come to rest: D(x) and D(G(z)) at the optimum of their
    game, ½, or where label smoothing moves it. Being there is necessary for an optimal generator
    and no measure of its quality: a discriminator that has learnt nothing is there too."""

    tolerance: float = Field(0.02, gt=0.0, lt=0.5)
    """Largest distance of both means from the optimum."""
    window_images: PositiveInt = 100_000
    """Images over which both must stay within the tolerance, after both were outside once."""


class Training(Settings):
    """How much is trained, in what portions."""

    images: PositiveInt = free(...)
    """Real images to see in the whole run; rounded up to whole global batches. A finished run that
    gets a larger number trains on."""
    global_batch_size: PositiveInt
    """Images of a step over all workers."""
    group_size: PositiveInt | Literal["auto"] = "auto"
    """Consecutive images of the global batch over which BatchNorm normalises ("ghost" batches,
    Hoffer et al. 2017), and the smallest part of a batch that a worker takes: at most
    global_batch_size / group_size workers. auto: the largest divisor of the batch up to 16."""
    micro_batch_size: PositiveInt | None = free(None)
    """Images that a worker puts through its networks at once: whole groups. None: all of its part.
    Smaller takes less memory and more time."""
    ema_half_life_images: Positive = live(10_000)
    """Half-life of the average over the weights that samples are drawn from."""
    ema_ramp: float = Field(0.05, ge=0.0)
    """The half-life is at most this share of the images seen, so that the average forgets the
    untrained start (Karras et al. 2020, StyleGAN2-ADA); 0 leaves it constant."""
    ema_every_steps: PositiveInt = 8
    """Steps between two updates of the average, whose decay takes account of them."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16: autocast of the networks; weights, losses and penalties stay in fp32."""
    compile: bool = free(False)
    """Compile each term's forward and backward passes into one graph, on a GPU a CUDA graph. Costs
    some 20 s at the start (cached for the next run) and changes results by rounding. On a CPU it
    needs a C++ compiler."""
    report_every_images: PositiveInt = free(10_000)
    """Images between two reports: metrics, pictures, progress."""
    checkpoint_every_images: PositiveInt = free(50_000)
    """Images between two checkpoints; rounded up to a report. A crash loses at most this much."""
    stop_at_equilibrium: EquilibriumStop | None = None
    """End a run whose objective has a rest to come to: a discriminator at ½."""


class Span(Settings):
    """As many workers as the cluster has room for, between two numbers: a node that leaves shrinks
    the run, one that joins grows it, each from the last checkpoint."""

    min: PositiveInt = 1
    max: PositiveInt

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def _span(given: Any) -> Any:
    """A mapping is a span, so that only what is wrong with it as one is told."""
    try:
        return Span.model_validate(given) if isinstance(given, dict) else given
    except ValidationError as error:
        raise ValueError("; ".join(problems_of(error, Span, given))) from None


class Workers(Settings):
    """What trains."""

    count: Annotated[PositiveInt | Span | Literal["auto"], BeforeValidator(_span)] = free("auto")
    """auto: one for each GPU of the cluster, else one. {min: 1, max: 8}: as many as there is room
    for, which may change as the run goes on."""
    gpu: bool | Literal["auto"] = free("auto")
    """Whether each has a GPU. auto: if the cluster has any."""
    cpus: PositiveInt | Literal["auto"] = free("auto")
    """CPU cores of each. auto: without GPUs, the cluster's cores shared out; with GPUs, 1."""
    max_restarts: int = free(8, ge=0)
    """How often dead workers are replaced before the run gives up. Nodes that announce that they
    leave are not counted."""
    timeout_seconds: PositiveInt = free(1800)
    """How long workers wait for one that does not answer before all are replaced. Longer than a
    fresh node takes to decode the data."""

    @property
    def most(self) -> int | None:
        """The largest number of workers; None where the cluster says it."""
        count = self.count
        return count.max if isinstance(count, Span) else None if count == "auto" else count


class Best(Settings):
    """Which checkpoint is the best one."""

    metric: str
    """A held-out score of the objective, e.g. elbo."""
    mode: Literal["min", "max"]


class Checkpoints(Settings):
    """What is kept of the past."""

    keep: int = free(2, ge=2)
    """The newest so many. At least two, so that there is always a complete one."""
    best: Best | None = free(None)
    """Keep a copy of the best one, too."""
