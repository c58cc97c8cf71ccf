"""`training`, `workers`, `checkpoints`: amount of training, machines, and checkpoints to keep."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ray_gen.experiment.refusals import problems_of
from ray_gen.experiment.schedules import NonNegative, Positive
from ray_gen.experiment.start import StartFrom
from ray_gen.settings import Settings, Told, free, live


class EquilibriumStop(Settings):
    """Ends a run at the equilibrium of its objective: D(x) and D(G(z)) stay at their optimum, ½.
    Label smoothing moves this optimum. An optimal generator implies the equilibrium, but the
    equilibrium does not measure quality: a discriminator that has learnt nothing is there too."""

    tolerance: float = Field(0.02, gt=0.0, lt=0.5)
    """Largest distance of the means of D(x) and D(G(z)) from the optimum."""
    window_images: PositiveInt = 100_000
    """Images over which both must stay within the tolerance, after both were outside once."""


_Width = Annotated[float, Field(ge=0.001, le=0.28, allow_inf_nan=False)]
"""A width of an average by a power function. Below 0.2887 = 1/√12, the width of the average of all
weights since the start."""


class Training(Settings):
    """The amount of training, and its portions."""

    images: PositiveInt = free(...)
    """Real images that the whole run sees; rounded up to whole global batches. A finished run
    trains on if it gets a larger number."""
    global_batch_size: Annotated[PositiveInt, Told(unit="images")]
    """Images of a step, over all workers."""
    group_size: Annotated[PositiveInt, Told(unit="images")] | Literal["auto"] = "auto"
    """Number of consecutive images of the global batch that form a group. BatchNorm normalises over
    a group ("ghost" batches, Hoffer et al. 2017). A worker takes at least one group, so there are
    at most global_batch_size / group_size workers. auto: the largest divisor of the batch up to
    16."""
    micro_batch_size: Annotated[PositiveInt, Told(unit="images")] | None = free(None)
    """Images in one forward pass of a worker: whole groups. None: the worker's whole part of the
    batch. A smaller value needs less memory and more time."""
    ema_half_life_images: Positive = live(10_000)
    """Half-life of the average of the weights (EMA). Samples come from this average. R3GAN's
    schedule begins at 0: begin with 1, which keeps as little of earlier weights."""
    ema_ramp: NonNegative = live(0.05)
    """The half-life of the EMA is at most this share of the images seen, so that the average
    forgets the untrained start (Karras et al. 2020, StyleGAN2-ADA). 0: no such limit."""
    ema_every_steps: PositiveInt = 8
    """Steps between two updates of the average of the weights (EMA). Its decay accounts for these
    steps."""
    ema_profiles: tuple[_Width, ...] = Field((), max_length=2)
    """Also keep averages of the weights by power functions, of these widths σ, relative to the
    images seen (Karras et al. 2024, EDM2). Their snapshots give the average of any other width
    after the training: `ray-gen ema`. At most two: a third one costs memory and storage, and more
    snapshots help as much. The paper keeps [0.05, 0.1]."""
    ema_snapshot_images: PositiveInt | Literal["auto"] = free("auto")
    """Images between two snapshots of `ema_profiles`; rounded up to an update of the averages. They
    lie in the folder of the run and are never deleted. auto: a 64th of `images`. With profiles of
    0.05 and 0.1, 64 snapshots give widths from 0.03 to 0.2 with an error of at most 0.3 %, 16 of at
    most 4 %."""
    ema_snapshot_precision: Literal["fp16", "fp32"] = free("fp16")
    """The type of numbers of these snapshots. fp16 as in the paper: half the size; it rounds each
    weight by up to 0.05 %."""
    start_from: StartFrom = None
    """A trained model whose tensors the run begins with: a run or an exported folder, RUN, or with
    more {source: RUN, weights: raw}. New data, classes and rates are allowed. Moments of optimisers
    and all that training itself keeps (an adaptive probability, anchors) begin anew. None: the run
    begins with weights of its seed."""
    freeze: dict[str, PositiveInt | Literal["all"]] = Field(default_factory=dict)
    """What does not train: {discriminator: 3} freezes the 3 blocks that are nearest to the images
    (FreezeD, Mo et al. 2020), {encoder: all} a whole network. For a run with
    `training.start_from`. A frozen part is a fixed function: its BatchNorm keeps its statistics."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """The type of numbers to compute with. bf16: autocast of the networks; weights, losses and
    penalties stay in fp32."""
    compile: bool = free(False)
    """Compile each term's forward and backward passes into one graph, on a GPU into a CUDA graph.
    Costs about 20 s at the start (cached for the next run) and changes results by rounding. On a
    CPU it needs a C++ compiler."""
    report_every_images: PositiveInt = free(10_000)
    """Images between two reports: metrics, pictures, progress."""
    checkpoint_every_images: PositiveInt = free(50_000)
    """Images between two checkpoints; rounded up to a step. A crash loses at most this many images,
    or what was trained in `checkpoints.every_minutes`."""
    stop_at_equilibrium: EquilibriumStop | None = None
    """End the run when its objective reaches its equilibrium: a discriminator at ½."""

    @field_validator("ema_profiles", mode="after")
    @classmethod
    def _differ(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if len({*widths}) < len(widths):
            raise ValueError(f"{widths[0]} stands there twice; give two different widths")
        return widths

    @property
    def snapshot_interval(self) -> int:
        """Images between two snapshots of `ema_profiles`."""
        every = self.ema_snapshot_images
        return max(1, self.images // 64) if every == "auto" else every


class Span(Settings):
    """As many workers as the cluster has room for, between two limits. If a node leaves or joins,
    the run continues from its last checkpoint with fewer or more workers."""

    min: PositiveInt = 1
    """Least number of workers."""
    max: PositiveInt
    """Largest number of workers."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def _span(given: Any) -> Any:
    """Treat a mapping as a span, so that the error lists only problems of a span."""
    try:
        return Span.model_validate(given) if isinstance(given, dict) else given
    except ValidationError as error:
        raise ValueError("; ".join(problems_of(error, Span, given))) from None


class Workers(Settings):
    """The workers of a run."""

    count: Annotated[PositiveInt | Span | Literal["auto"], BeforeValidator(_span)] = free("auto")
    """Number of workers. auto: one for each GPU of the cluster, else one. {min: 1, max: 8}: as many
    as there is room for; this number may change during the run."""
    gpu: bool | Literal["auto"] = free("auto")
    """Whether each worker has a GPU. auto: if the cluster has any."""
    cpus: PositiveInt | Literal["auto"] = free("auto")
    """CPU cores of each worker. auto: 1 with GPUs; without, an equal share of the cluster's
    cores."""
    max_restarts: int = free(8, ge=0)
    """Number of times that dead workers are replaced; then the run fails. Nodes that announce that
    they leave do not count."""
    timeout_seconds: PositiveInt = free(1800)
    """Workers wait this long for a worker that does not answer; then all are replaced. Set it
    longer than a new node needs to decode the data."""

    @property
    def most(self) -> int | None:
        """The largest number of workers. None if the cluster determines it."""
        count = self.count
        return count.max if isinstance(count, Span) else None if count == "auto" else count


class Best(Settings):
    """The rule for the best checkpoint."""

    metric: str
    """The score that decides: a held-out score of the objective, e.g. elbo, or a metric of
    `evaluation`."""
    mode: Literal["min", "max"]
    """Whether a lower (min) or a higher (max) score is better."""


class Checkpoints(Settings):
    """Which checkpoints are kept."""

    keep: int = free(2, ge=2)
    """Number of newest checkpoints to keep. At least two, so that one is always complete."""
    every_minutes: Annotated[float, Told(unit="minutes")] | None = free(10.0, gt=0.0)
    """Also save when so much time has passed since the last checkpoint. The next checkpoint
    replaces this one. It has no scores, counts for nothing but a restart, and changes no result.
    None: do not save by time."""
    best: Best | None = free(None)
    """Also keep a copy of the best checkpoint. None: no copy."""
