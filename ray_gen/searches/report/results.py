"""Trials by rank, and the axes of the figures."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_gen.experiment.search import Range, Search
from ray_gen.searches.records import Mode, Trial, ranked, short_names
from ray_gen.searches.report.texts import escaped_for_plotly, number_of, shown


class Results:
    """The trials in the order of their rank, and the axes of the figures."""

    def __init__(self, search: Search, metric: str, mode: Mode, trials: Sequence[Trial]) -> None:
        self.search, self.metric = search, metric
        self.mode: Mode = mode
        self.judged = ranked(filter(_is_judged, trials), mode)
        self.trials = [*self.judged, *itertools.filterfalse(_is_judged, trials)]
        self.scores = [trial.score or 0.0 for trial in self.judged]
        self.score = score_axis(metric, self.scores, mode)
        labels = short_names(list(search.space))
        self.axes = {path: _axis_of(labels[path], values) for path, values in search.space.items()}

    def told(self, trial: Trial) -> str:
        """The hover text of a trial."""
        values = (
            f"{axis.label} = {shown(trial.values[path])}"
            for path, axis in self.axes.items()
            if path in trial.values
        )
        head = f"{trial.name}: {self.metric} {number_of(trial.score)}"
        lines = [head, f"{trial.state} after {trial.images:,} images", *values]
        return "<br>".join(escaped_for_plotly(line) for line in lines)


@dataclass(frozen=True)
class Axis:
    """An axis of numbers between two ends, or of choices at 0, 1, 2..."""

    label: str
    low: float
    high: float
    log: bool = False
    choices: tuple[Any, ...] | None = None

    def place(self, value: Any) -> float | None:
        """The position of a value on the axis. None if it has none."""
        if self.choices is not None:
            return self.choices.index(value) if value in self.choices else None
        number = finite(value)
        return None if number is None else min(max(number, self.low), self.high)

    def share(self, value: Any) -> float | None:
        """The position of a value as a share of the axis, from 0 to 1. None if it has none."""
        place = self.place(value)
        if place is None:
            return None
        low, high, at = (math.log(n) if self.log else n for n in (self.low, self.high, place))
        return (at - low) / (high - low) if high > low else 0.5

    def spread(self, k: int) -> float:
        """A small offset that separates trials with the same choice."""
        return 0.3 * (k * 0.618 % 1 - 0.5) if self.choices else 0.0

    def ticks(self) -> list[tuple[Any, str]]:
        """Values with labels: every choice, or round numbers (log axis), or ends and middle (linear
        axis)."""
        if self.choices is not None:
            return [(choice, escaped_for_plotly(shown(choice, 18))) for choice in self.choices]
        numbers = [self.low, (self.low + self.high) / 2, self.high]
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high < 50 * self.low else (1,)
            numbers = [step * 10.0**decade for decade in decades for step in steps]
            numbers = [n for n in numbers if 0.99 * self.low < n < 1.01 * self.high]
        return [(n, f"{n:,.3g}".replace("e-0", "e-").replace("e+0", "e")) for n in numbers]

    def layout(self) -> dict[str, Any]:
        """The axis in plotly's format. On a linear axis plotly chooses round numbers itself."""
        low, high = (math.log10(n) if self.log else n for n in (self.low, self.high))
        room = 0.0 if self.choices else 0.05 * (high - low)
        found: dict[str, Any] = {"range": [low - room, high + room]}
        found["type"] = "log" if self.log else "linear"
        if self.log or self.choices:
            values, labels = zip(*self.ticks(), strict=True) if self.ticks() else ((), ())
            found |= {"tickvals": [self.place(value) for value in values], "ticktext": labels}
        return found


def _axis_of(label: str, values: Range) -> Axis:
    low, high = values.bounds or (0, 0)
    few = values.randint and tuple(range(int(low), int(high)))
    choices = values.choice or (few if few and len(few) <= 8 else None)
    if choices:
        return Axis(label, -0.5, len(choices) - 0.5, choices=choices)
    return Axis(label, low, high, log=values.kind.startswith("log"))


def score_axis(label: str, scores: Sequence[float], mode: Mode) -> Axis:
    """An axis from the best score to the worst score without outliers. Logarithmic if it spans more
    than a decade."""
    low, high = _without_outliers(scores or [0.0], mode)
    log = min(scores, default=0.0) > 0 and high > 10 * low
    if log:
        ends = _without_outliers([math.log(score) for score in scores], mode)
        low, high = (math.exp(end) for end in ends)
    if high - low <= 1e-9 * abs(high):
        low, high = low - 0.05 * (abs(low) or 1.0), high + 0.05 * (abs(high) or 1.0)
    return Axis(label, low, high, log=log)


def _without_outliers(scores: Sequence[float], mode: Mode) -> tuple[float, float]:
    """The lowest and the highest score. The bad end is at most 3 interquartile ranges beyond its
    quartile."""
    twice = [*scores, *scores]  # a single score has no quartiles
    first, _, third = statistics.quantiles(twice, n=4, method="inclusive")
    fence = 3 * (third - first) or math.inf
    low, high = min(scores), max(scores)
    return (low, min(high, third + fence)) if mode == "min" else (max(low, first - fence), high)


def _is_judged(trial: Trial) -> bool:
    return trial.state != "failed" and finite(trial.score) is not None


def finite(value: Any) -> float | None:
    """A number that can be drawn, else None."""
    number = isinstance(value, (int, float)) and abs(value) < 1e300
    return float(value) if number else None
