"""`search`: what Ray Tune varies of an experiment, by what it judges, and when it gives up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_serializer,
    model_validator,
)

from ray_gen.evaluators.names import LIKELIHOOD_SCORES, METRICS
from ray_gen.experiment.settings import Settings, free

OFFLINE = "sliced_wasserstein"
"""The metric that judges where nothing else is asked for: it needs no weights."""
LARGEST_GRID = 10_000
"""Trials. Each is a record that is written again when any of them changes."""


def better(
    metric: str, of_objective: Mapping[str, Literal["min", "max"] | None] | None = None
) -> Literal["min", "max"] | None:
    """Which of two values of a score is the better one; None where it does not say.

    of_objective: what an objective says of held-out scores of its own.
    """
    if of_objective and metric in of_objective:
        return of_objective[metric]
    word = METRICS[metric].better if metric in METRICS else LIKELIHOOD_SCORES.get(metric)
    return None if word is None else "min" if word == "lower" else "max"


class Range(Settings):
    """The values of one field: exactly one of these is given."""

    uniform: tuple[float, float] | None = None
    """Real numbers from the first to the second."""
    loguniform: tuple[float, float] | None = None
    """The same, uniform in their logarithm: for learning rates and weights of penalties."""
    randint: tuple[int, int] | None = None
    """Whole numbers from the first to below the second."""
    lograndint: tuple[int, int] | None = None
    """The same, uniform in their logarithm."""
    choice: tuple[Any, ...] | None = None
    """One of these, as an experiment would have them."""

    @model_validator(mode="before")
    @classmethod
    def _is_written_as_one(cls, given: Any) -> Any:
        if isinstance(given, cls):
            return given
        if not isinstance(given, dict):
            raise ValueError("a range is written as e.g. {loguniform: [1e-5, 1e-3]}")
        for kind, bounds in given.items():
            two = isinstance(bounds, (list, tuple)) and len(bounds) == 2
            if kind != "choice" and kind in cls.model_fields and bounds is not None and not two:
                raise ValueError(f"{kind}: takes two numbers, the lowest and the highest")
        return given

    @model_validator(mode="after")
    def _one_that_is_not_empty(self) -> Self:
        if len(self._given()) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"a range is one of {known}, e.g. {{loguniform: [1e-5, 1e-3]}}")
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice: there is nothing to choose from")
            for number, value in enumerate(self.choice):
                if value in self.choice[:number]:
                    raise ValueError(f"choice: {value!r} is named twice")
            return self
        assert self.bounds is not None
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"{self.kind}: is empty, {low} does not lie below {high}")
        if self.kind.startswith("log") and low <= 0:
            raise ValueError(f"{self.kind}: {low} has no logarithm; begin above 0")
        return self

    @model_serializer
    def _given(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
            if value is not None
        }

    @property
    def kind(self) -> str:
        """The name of the one that is given."""
        return next(iter(self._given()))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest (of integers: one above), or None of a choice."""
        return self.uniform or self.loguniform or self.randint or self.lograndint

    def examples(self) -> tuple[Any, ...]:
        """Values whose refusal is the range's: the ends and one between; every choice."""
        if self.choice is not None:
            return self.choice
        assert self.bounds is not None
        low, high = self.bounds
        if self.randint or self.lograndint:
            return tuple(sorted({int(low), int(low + high) // 2, int(high) - 1}))
        return (low, low + 0.37 * (high - low), high)

    def all_values(self) -> Sequence[Any] | None:
        """Every value, where they can be counted."""
        whole = self.randint or self.lograndint
        return self.choice or (None if whole is None else range(*whole))

    def draw(self, random: Random) -> Any:
        """A value by chance."""
        if self.choice is not None:
            return self.choice[random.randrange(len(self.choice))]
        assert self.bounds is not None
        low, high = self.bounds
        if self.kind.startswith("log"):
            value = math.exp(random.uniform(math.log(low), math.log(high)))
        else:
            value = random.uniform(low, high)
        whole = self.randint or self.lograndint
        return self.nearest(math.floor(value) if whole else value)  # rounding may leave the range

    def nearest(self, value: Any) -> Any:
        """A perturbed value, back in the range."""
        if self.bounds is None:
            return value
        low, high = self.bounds
        if self.randint or self.lograndint:
            return min(max(round(value), int(low)), int(high) - 1)
        return min(max(float(value), low), high)


class SearchWorkers(Settings):
    """What trains one trial."""

    count: PositiveInt = free(1)
    """Workers of a trial, which train data-parallel."""
    gpu: float | Literal["auto"] = free("auto")
    """GPUs of each worker: a fraction packs several trials on one, 0 trains on the CPU. auto: one
    where the cluster has any."""
    cpus: PositiveInt = free(1)
    """CPU cores of each worker."""

    @model_validator(mode="after")
    def _a_part_or_whole_gpus(self) -> Self:
        if self.gpu != "auto" and (self.gpu < 0 or self.gpu > 1):
            raise ValueError("gpu is a share of one GPU for each worker, from 0 to 1")
        if self.count > 1 and self.gpu not in ("auto", 0, 1):
            raise ValueError("gpu: two workers of a trial cannot share a GPU; use 1 or count 1")
        return self


class Search(Settings):
    """What is searched, and how."""

    space: dict[str, Range]
    """Ranges by the dotted path of the field."""
    metric: str | None = None
    """A held-out score of the objective, a metric of `evaluation`, or what a term reports
    (loss/generator). None: the objective's first held-out score, else sliced_wasserstein."""
    mode: Literal["min", "max"] | None = None
    """Which is better. None: what the metric itself says."""
    trials: PositiveInt = free(16)
    """How many. A grid has as many as there are combinations, and where there are fewer than this,
    each is tried once."""
    concurrent: PositiveInt | Literal["auto"] = free("auto")
    """How many at a time. auto: as many as the cluster has room for. Under pbt trials of one worker
    take turns in all the room there is; of several workers, so many are the population."""
    algorithm: Literal["auto", "random", "grid", "optuna"] = "auto"
    """What chooses values. random and grid are functions of `seed` and the trial's number; optuna
    (a tree-structured Parzen estimator, Bergstra et al. 2011) learns from finished trials. auto:
    optuna, but random under pbt, which learns by itself."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "asha"
    """asha: of the trials that reached a rung (every_images times a power of reduction_factor) only
    the best 1/reduction_factor go on (Li et al. 2020). median: trials that are worse than the
    median of the others' means stop (Golovin et al. 2017). pbt: all train on, the worst with
    weights and perturbed values of the best (Jaderberg et al. 2017)."""
    every_images: PositiveInt | None = None
    """Images between two judgements of a trial. None: a ninth of training.images."""
    grace_images: PositiveInt | None = None
    """No trial is stopped before. None: every_images."""
    reduction_factor: int = Field(3, ge=2)
    """η of asha."""
    quantile: float = Field(0.25, gt=0.0, le=0.5)
    """pbt: this share, the worst, take over from this share, the best."""
    seed: NonNegativeInt = 0
    """Of the values that are chosen; weights and data follow the experiment's seed."""
    perturbation: PositiveFloat = 1.25
    """pbt: a number is multiplied or divided by this."""
    workers: SearchWorkers = free(SearchWorkers())

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.space:
            raise ValueError(
                "space: names no field; e.g. {objective.latent_size: {choice: [16, 32, 64]}}"
            )
        if self.algorithm == "grid":
            for path, values in self.space.items():
                if values.all_values() is None:
                    raise ValueError(
                        f"space.{path}: a grid needs choice or randint, not {values.kind}"
                    )
            if self._points > LARGEST_GRID:
                raise ValueError(
                    f"algorithm: a grid of {self._points:,} trials; leave values out, or use "
                    "random with as many trials as there is time for"
                )
        if self.scheduler == "pbt" and self.algorithm == "optuna":
            raise ValueError("algorithm: pbt begins with all its trials; use random or grid")
        if self.scheduler == "pbt" and self.total < 2:
            raise ValueError("trials: pbt copies from one trial to another and needs at least two")
        return self

    @property
    def total(self) -> int:
        """Trials in all: `trials`, or the combinations of a grid."""
        return int(self._points) if self._is_exhausted else self.trials

    @property
    def learns(self) -> bool:
        """Whether later values depend on earlier trials."""
        tells = self.algorithm in ("optuna", "auto") and self.scheduler != "pbt"
        return tells and not self._is_exhausted

    def values_of(self, number: int) -> dict[str, Any]:
        """The values of a trial by its number, where they depend on nothing else. A grid's last
        path changes fastest; where values are chosen by chance, no trial is another's double as
        long as there are others."""
        if number >= self._points or self._points > LARGEST_GRID or self.scheduler == "pbt":
            random = Random(f"{self.seed} {number}")
            return {path: values.draw(random) for path, values in self.space.items()}
        if self.algorithm != "grid":
            order = list(range(int(self._points)))
            Random(self.seed).shuffle(order)
            number = order[number]
        point: dict[str, Any] = {}
        for path, values in reversed(self.space.items()):
            side = values.all_values()
            assert side is not None
            number, place = divmod(number, len(side))
            point[path] = side[place]
        return {path: point[path] for path in self.space}

    @property
    def _points(self) -> float:
        """Combinations of values; infinite where one cannot be counted."""
        sides = [values.all_values() for values in self.space.values()]
        return math.prod(math.inf if side is None else len(side) for side in sides)

    @property
    def _is_exhausted(self) -> bool:
        """Whether every combination is tried."""
        return self.algorithm == "grid" or (self.scheduler != "pbt" and self._points <= self.trials)
