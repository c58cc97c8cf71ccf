"""`search`: the fields that Ray Tune varies, the score that judges trials, and the rule that stops
them."""

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

from ray_gen.evaluation.metrics import BETTER
from ray_gen.settings import Settings, free

OFFLINE = "sliced_wasserstein"
"""The default metric of an objective without held-out scores. It needs no weights."""
LARGEST_GRID = 10_000
"""Largest number of trials of a grid. A change of one trial rewrites the records of all."""


def better_of_score(
    metric: str, of_objective: Mapping[str, Literal["min", "max"] | None] | None = None
) -> Literal["min", "max"] | None:
    """Whether a lower ("min") or a higher ("max") value of a score is better. None if unknown.

    of_objective: the same for the objective's own held-out scores.
    """
    if of_objective and metric in of_objective:
        return of_objective[metric]
    word = BETTER.get(metric)
    return None if word is None else "min" if word == "lower" else "max"


class Range(Settings):
    """The range of one field. Exactly one attribute is set."""

    uniform: tuple[float, float] | None = None
    """Real numbers from the first to the second number."""
    loguniform: tuple[float, float] | None = None
    """Real numbers between the two, uniform in the logarithm: for learning rates and weights of
    penalties."""
    randint: tuple[int, int] | None = None
    """Whole numbers from the first to below the second number."""
    lograndint: tuple[int, int] | None = None
    """Whole numbers from the first to below the second number, uniform in the logarithm."""
    choice: tuple[Any, ...] | None = None
    """One of these values, each written as in an experiment."""

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
                raise ValueError("choice: is empty; give at least one value")
            for number, value in enumerate(self.choice):
                if value in self.choice[:number]:
                    raise ValueError(f"choice: has {value!r} twice")
            return self
        assert self.bounds is not None
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"{self.kind}: is empty, {low} is not below {high}")
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
        """The name of the attribute that is set."""
        return next(iter(self._given()))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest value (for integers the highest + 1). None for `choice`."""
        return self.uniform or self.loguniform or self.randint or self.lograndint

    def examples(self) -> tuple[Any, ...]:
        """Test values: both ends and one between, or every choice. If one is refused, so is the
        range."""
        if self.choice is not None:
            return self.choice
        assert self.bounds is not None
        low, high = self.bounds
        if self.randint or self.lograndint:
            return tuple(sorted({int(low), int(low + high) // 2, int(high) - 1}))
        return (low, low + 0.37 * (high - low), high)

    def all_values(self) -> Sequence[Any] | None:
        """All values if they can be counted, else None."""
        whole = self.randint or self.lograndint
        return self.choice or (None if whole is None else range(*whole))

    def draw(self, random: Random) -> Any:
        """A random value."""
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
        """The nearest value of the range to a perturbed value."""
        if self.bounds is None:
            return value
        low, high = self.bounds
        if self.randint or self.lograndint:
            return min(max(round(value), int(low)), int(high) - 1)
        return min(max(float(value), low), high)


class SearchWorkers(Settings):
    """The workers of one trial."""

    count: PositiveInt = free(1)
    """Workers of a trial. They train data-parallel."""
    gpu: float | Literal["auto"] = free("auto")
    """GPUs of each worker of a trial. A fraction puts several trials on one GPU; 0 trains on the
    CPU. auto: one GPU if the cluster has any."""
    cpus: PositiveInt = free(1)
    """CPU cores of each worker."""

    @model_validator(mode="after")
    def _a_part_or_whole_gpus(self) -> Self:
        if self.gpu != "auto" and (self.gpu < 0 or self.gpu > 1):
            raise ValueError("gpu is a share of one GPU per worker, from 0 to 1")
        if self.count > 1 and self.gpu not in ("auto", 0, 1):
            raise ValueError("gpu: two workers of a trial cannot share a GPU; use 1 or count 1")
        return self


class Search(Settings):
    """The settings of a search."""

    space: dict[str, Range] = Field(examples=[{"objective.latent_size": {"choice": [16, 32, 64]}}])
    """The range of each field that is searched, by the dotted path of the field."""
    metric: str | None = None
    """The score that judges trials: a held-out score of the objective, a metric of `evaluation`, or
    a number that a term reports (loss/generator). None: the objective's first held-out score, else
    sliced_wasserstein."""
    mode: Literal["min", "max"] | None = None
    """Whether a lower (min) or a higher (max) score is better. None: as known for the metric."""
    trials: PositiveInt = free(16)
    """Number of trials. A grid ignores it and tries every combination. If there are fewer
    combinations than this number, each is tried once."""
    concurrent: PositiveInt | Literal["auto"] = free("auto")
    """Trials at a time. auto: as many as the cluster has room for. pbt with one worker per trial:
    the trials take turns and use all the room. pbt with several workers per trial: this number is
    the population."""
    algorithm: Literal["auto", "random", "grid", "optuna"] = "auto"
    """The method that chooses values. random and grid: a function of `seed` and the trial's number.
    optuna (a tree-structured Parzen estimator, Bergstra et al. 2011): learns from finished trials.
    auto: optuna, but random for pbt: pbt learns by itself."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "asha"
    """The rule that stops trials early. none: every trial trains to its end. asha: at each rung
    (every_images times a power of reduction_factor) only the best 1/reduction_factor of the trials
    continue (Li et al. 2020). median: a trial stops if it is worse than the median of the others'
    means (Golovin et al. 2017). pbt: all trials continue; the worst take weights and perturbed
    values of the best (Jaderberg et al. 2017)."""
    every_images: PositiveInt | None = None
    """Images between two scores of a trial. None: a ninth of training.images."""
    grace_images: PositiveInt | None = None
    """No trial stops before this number of images. None: every_images."""
    reduction_factor: int = Field(3, ge=2)
    """At each rung of asha the best 1/η of the trials continue; this is η."""
    quantile: float = Field(0.25, gt=0.0, le=0.5)
    """For pbt: this share of the trials, the worst, copies from the same share of the best."""
    seed: NonNegativeInt = 0
    """Seed of the chosen values. Weights and data use the experiment's seed."""
    perturbation: PositiveFloat = 1.25
    """For pbt: a perturbed number is multiplied or divided by this."""
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
                    f"algorithm: a grid of {self._points:,} trials is too large; remove values, or "
                    "use random with fewer trials"
                )
        if self.scheduler == "pbt" and self.algorithm == "optuna":
            raise ValueError("algorithm: pbt needs all values at the start; use random or grid")
        if self.scheduler == "pbt" and self.total < 2:
            raise ValueError("trials: pbt copies from one trial to another and needs at least two")
        return self

    @property
    def total(self) -> int:
        """Number of all trials: `trials`, or the number of combinations if all are tried."""
        return int(self._points) if self._is_exhausted else self.trials

    @property
    def learns(self) -> bool:
        """Whether later values depend on earlier trials."""
        tells = self.algorithm in ("optuna", "auto") and self.scheduler != "pbt"
        return tells and not self._is_exhausted

    def values_of(self, number: int) -> dict[str, Any]:
        """The values of a trial as a function of its number, if the search does not learn.

        A grid's last path changes fastest. Random combinations do not repeat until all are used
        (with at most `LARGEST_GRID` combinations, and not for pbt).
        """
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
        """Number of combinations. Infinite if a range has values that cannot be counted."""
        sides = [values.all_values() for values in self.space.values()]
        return math.prod(math.inf if side is None else len(side) for side in sides)

    @property
    def _is_exhausted(self) -> bool:
        """Whether every combination is tried."""
        return self.algorithm == "grid" or (self.scheduler != "pbt" and self._points <= self.trials)
