"""Values of the next trial if they depend on earlier trials: Optuna, through Ray Tune."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ray_gen.experiment.search import Range, Search
from ray_gen.searches.records import Trial


class Proposer(Searcher):
    """Proposes interrupted trials first, then new ones until there are enough.

    begin: makes a trial from its values, and names it. Returns None if the search is to end. The
    proposer knows ended trials from the records of the search. It unpickles nothing.
    """

    def __init__(
        self, search: Search, mode: str, trials: list[Trial], begin: Callable[[Any], Trial | None]
    ) -> None:
        super().__init__(metric="score", mode=mode)
        optuna.logging.set_verbosity(logging.ERROR)
        self._search = search
        self._trials = trials
        self._begin = begin
        self._waiting = [trial for trial in trials if not trial.ended]
        self._resumed: dict[str, Trial] = {}
        space = {path: _distribution(values) for path, values in search.space.items()}
        sampler = optuna.samplers.TPESampler(seed=search.seed + len(trials), constant_liar=True)
        self._optuna = OptunaSearch(space=space, metric="score", mode=mode, sampler=sampler)
        for trial in trials:
            if trial.ended and trial.state != "failed" and trial.score is not None:
                self._optuna.add_evaluated_point(self._coded(trial.values), trial.score)

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial; FINISHED if there is none."""
        if self._waiting:
            trial = self._resumed[trial_id] = self._waiting.pop(0)
        elif len(self._trials) >= self._search.trials:
            return Searcher.FINISHED
        else:
            trial = self._begin(self._values(self._optuna.suggest(trial_id) or {}))
        return Searcher.FINISHED if trial is None else {"trial": config_of(trial)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna the score of a trial."""
        failed = error or result is None or "failed" in result or "score" not in result
        if trial_id not in self._resumed:
            self._optuna.on_trial_complete(trial_id, None if failed else result, error=failed)
        elif not failed and result is not None:
            values = self._resumed[trial_id].values
            self._optuna.add_evaluated_point(self._coded(values), result["score"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def _coded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values in Optuna's form: a choice becomes its index, because a choice may be a list."""
        space = self._search.space
        return {p: v if (c := space[p].choice) is None else c.index(v) for p, v in values.items()}

    def _values(self, coded: Mapping[str, Any]) -> dict[str, Any]:
        space = self._search.space
        return {p: v if (c := space[p].choice) is None else c[v] for p, v in coded.items()}


def config_of(trial: Trial) -> dict[str, Any]:
    """What Ray Tune hands to a trial's process."""
    return {"name": trial.name, "values": trial.values}


def _distribution(values: Range) -> BaseDistribution:
    if values.choice is not None:
        return CategoricalDistribution(range(len(values.choice)))
    assert values.bounds is not None
    low, high = values.bounds
    log = values.kind.startswith("log")
    if values.randint or values.lograndint:
        return IntDistribution(int(low), int(high) - 1, log=log)
    return FloatDistribution(low, high, log=log)
