"""Schedules: numbers that change with the images seen. Each `live` field may be a schedule.

    objective.beta: {kind: linear, start: 0, end: 1, until_images: 100000}
    objective.r1_weight: {kind: cosine, start: 2, end: 0.2, until_images: 20000000}
    objective.discriminator_steps: {kind: steps, values: [[0, 5], [50000, 1]]}

Every schedule is constant before its first image count and after its last one. So longer training
does not change the steps that are already done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from ray_gen.experiment.refusals import SCHEDULES, problems_of
from ray_gen.settings import Settings, Told


class Constant(Settings):
    """A schedule that does not change."""

    kind: Literal["constant"] = "constant"
    value: float
    """The value at all times."""

    def at(self, images: float) -> float:
        """The value when the run has seen `images` images."""
        del images
        return self.value

    def extremes(self) -> tuple[float, ...]:
        """The end values. All others lie between them."""
        return (self.value,)


class _Way(Settings):
    """Moves from one number to another."""

    start: float
    """The value until `from_images`."""
    end: float
    """The value from `until_images` on."""
    from_images: NonNegativeInt = 0
    """Images at which the change begins."""
    until_images: PositiveInt
    """Images at which the change ends."""

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.until_images <= self.from_images:
            raise ValueError(
                f"until_images: {self.until_images} is not larger than from_images "
                f"{self.from_images}"
            )
        return self

    def _progress(self, images: float) -> float:
        passed = (images - self.from_images) / (self.until_images - self.from_images)
        return min(1.0, max(0.0, passed))

    def extremes(self) -> tuple[float, ...]:
        """The end values. All others lie between them."""
        return (self.start, self.end)


class Linear(_Way):
    """Along a straight line."""

    kind: Literal["linear"] = "linear"

    def at(self, images: float) -> float:
        """The value when the run has seen `images` images."""
        return self.start + (self.end - self.start) * self._progress(images)


class Cosine(_Way):
    """Along half a cosine: slow at both ends (Loshchilov and Hutter 2017, SGDR, eq. 5)."""

    kind: Literal["cosine"] = "cosine"

    def at(self, images: float) -> float:
        """The value when the run has seen `images` images."""
        way = 0.5 - 0.5 * math.cos(math.pi * self._progress(images))
        return self.start + (self.end - self.start) * way


def _in_order(places: list[int]) -> None:
    if not places or places[0] != 0:
        raise ValueError("values: the first must begin at 0 images: [[0, 1.0], [50000, 0.5]]")
    for before, after in itertools.pairwise(places):
        if after <= before:
            raise ValueError(f"values: image counts must increase, but {after} follows {before}")


class Steps(Settings):
    """A sequence of values."""

    kind: Literal["steps"] = "steps"
    values: tuple[tuple[NonNegativeInt, float], ...]
    """Pairs [images, value]: the value applies from there on. The first is at 0 images."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        _in_order([images for images, _ in self.values])
        return self

    def at(self, images: float) -> float:
        """The value when the run has seen `images` images."""
        return next(value for since, value in reversed(self.values) if since <= images)

    def extremes(self) -> tuple[float, ...]:
        """All values."""
        return tuple(value for _, value in self.values)


class CountSteps(Settings):
    """A sequence of whole numbers. They decide which phases and terms are due."""

    kind: Literal["steps"] = "steps"
    values: tuple[tuple[NonNegativeInt, int], ...]
    """Pairs [images, number]: the number applies from there on. The first is at 0 images."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        _in_order([images for images, _ in self.values])
        return self

    def at(self, images: float) -> int:
        """The number when the run has seen `images` images."""
        return next(value for since, value in reversed(self.values) if since <= images)

    def extremes(self) -> tuple[int, ...]:
        """All numbers."""
        return tuple(value for _, value in self.values)


AnySchedule = Annotated[
    Constant | Linear | Cosine | Steps, Field(discriminator="kind"), Told("a schedule")
]

_SCHEDULES: TypeAdapter[Any] = TypeAdapter(AnySchedule)
_COUNTS: TypeAdapter[Any] = TypeAdapter(CountSteps)


def number(given: Any) -> float | Constant | Linear | Cosine | Steps:
    """A number, or a schedule from its mapping. For options of your own classes.

    Raises ValueError for anything else.
    """
    if isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given):
        return float(given)
    try:
        return _SCHEDULES.validate_python(given)
    except ValidationError as error:
        said = (problem.removeprefix(".") for problem in problems_of(error, Settings, given))
        raise ValueError(f"a schedule: {'; '.join(said)}") from None


class _Either:
    """Validates a number or a schedule. Each value of the schedule must be valid as a number."""

    def __init__(
        self,
        number: Any,
        schedules: TypeAdapter[Any],
        kinds: tuple[type, ...],
        value: Any = None,
    ) -> None:
        """number: type of a plain number. value: type of a schedule's values, if it allows more."""
        self._number: TypeAdapter[Any] = TypeAdapter(number)
        self._value: TypeAdapter[Any] = TypeAdapter(number if value is None else value)
        self._schedules = schedules
        self._kinds = kinds

    def __call__(self, given: Any, handler: Callable[[Any], Any]) -> Any:
        del handler  # it reports the errors of all alternatives, not only of the intended one
        if not isinstance(given, (dict, *self._kinds)):
            return self._checked(given)
        if CountSteps in self._kinds and isinstance(given, dict) and given.get("kind") != "steps":
            raise ValueError(
                "kind: a schedule of whole numbers must be steps, e.g. "
                "{kind: steps, values: [[0, 5], [50000, 1]]}"
            )
        try:
            schedule = self._schedules.validate_python(given)
        except ValidationError as error:
            problems = [
                problem.removeprefix(".") for problem in problems_of(error, Settings, given)
            ]
            raise ValueError("; ".join(problems)) from None
        for value in schedule.extremes():
            try:
                self._value.validate_python(value)
            except ValidationError as error:
                why = error.errors()[0]["msg"].removeprefix("Input ")
                raise ValueError(f"the schedule reaches {value:g}, which {why}") from None
        return schedule

    def _checked(self, number: Any) -> Any:
        try:
            return self._number.validate_python(number)
        except ValidationError as error:
            if number in SCHEDULES:
                example = "values: [[0, 1], [50000, 2]]" if number == "steps" else "start: 1, …"
                raise ValueError(f"a schedule is written {{kind: {number}, {example}}}") from None
            found = error.errors()[0]
            raise PydanticKnownError(found["type"], found.get("ctx")) from None  # pyright: ignore


class _OrAdaptive(_Either):
    """Validates also the word "adaptive"."""

    def __call__(self, given: Any, handler: Callable[[Any], Any]) -> Any:
        return given if given == "adaptive" else super().__call__(given, handler)


def _number(plain: Any) -> WrapValidator:
    return WrapValidator(_Either(plain, _SCHEDULES, (Constant, Linear, Cosine, Steps)))


def _count(plain: Any) -> WrapValidator:
    return WrapValidator(_Either(plain, _COUNTS, (CountSteps,)))


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

Positive = Annotated[_Positive | AnySchedule, _number(_Positive)]
"""A number above 0, or a schedule of such numbers."""
Rate = Annotated[
    _Positive | AnySchedule,
    WrapValidator(_Either(_Positive, _SCHEDULES, (Constant, Linear, Cosine, Steps), _NonNegative)),
]
"""A number above 0, or a schedule that may begin or end at 0."""
NonNegative = Annotated[_NonNegative | AnySchedule, _number(_NonNegative)]
"""A number of at least 0, or a schedule of such numbers."""
Fraction = Annotated[_Share | AnySchedule, _number(_Share)]
"""A number from 0 to below 1, or a schedule of such numbers."""
AdaptiveProbability = Annotated[
    Literal["adaptive"] | _Probability | AnySchedule,
    WrapValidator(_OrAdaptive(_Probability, _SCHEDULES, (Constant, Linear, Cosine, Steps))),
]
"""A number from 0 to 1, a schedule of such numbers, or "adaptive"."""
Count = Annotated[
    PositiveInt | Annotated[CountSteps, Told("a schedule of kind steps")], _count(PositiveInt)
]
"""A whole number of at least 1, or a schedule of such numbers (`CountSteps`)."""


def counts_in(settings: Any, path: str = "") -> Iterator[tuple[str, CountSteps]]:
    """Every `CountSteps` inside the settings, with its dotted path."""
    if isinstance(settings, CountSteps):
        yield path, settings
    elif isinstance(settings, Settings):
        for name in type(settings).model_fields:
            yield from counts_in(getattr(settings, name), f"{path}.{name}" if path else name)
    elif isinstance(settings, dict):
        for name, value in settings.items():
            yield from counts_in(value, f"{path}.{name}")
