"""Sets up Ray Tune's schedulers for a search, and tells them earlier judgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray
import ray.tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from ray_gen.experiment import Experiment
from ray_gen.experiment.search import Range
from ray_gen.searches.records import Mode, Trial


def scheduler_of(experiment: Experiment, mode: Mode, trials: Sequence[Trial]) -> TrialScheduler:
    """The scheduler that `search.scheduler` asks for. trials: all trials of the search, also those
    of an earlier start."""
    settings = experiment.search
    assert settings is not None
    every = experiment.search_every_images
    judged: dict[str, Any] = {"time_attr": "images", "metric": "score", "mode": mode}
    grace = settings.grace_images or every
    if settings.scheduler == "asha":
        asha = Asha(
            **judged,
            grace_period=grace,
            max_t=max(grace, experiment.training.images),
            reduction_factor=settings.reduction_factor,
            stop_last_trials=False,
        )
        return asha.remember(trials)
    if settings.scheduler == "median":
        return Median(**judged, grace_period=grace).remember(trials)
    if settings.scheduler == "pbt":
        space = settings.space
        mutations = {path: mutation_of(values) for path, values in space.items()}

        def within(config: dict[str, Any]) -> dict[str, Any]:
            values = config["trial"]["values"]
            config["trial"]["values"] = {p: space[p].nearest(v) for p, v in values.items()}
            return config

        return PopulationBasedTraining(
            **judged,
            perturbation_interval=1,  # at each judgement
            burn_in_period=settings.grace_images or 0,
            hyperparam_mutations={"trial": {"values": mutations}},
            quantile_fraction=settings.quantile,
            perturbation_factors=(settings.perturbation, 1 / settings.perturbation),
            custom_explore_fn=within,
            log_config=False,
        )
    return FIFOScheduler()


def mutation_of(values: Range) -> Any:
    """A range in the form of population based training."""
    if values.choice is not None:
        return list(values.choice)
    return getattr(ray.tune, values.kind)(*(values.bounds or ()))


class _Remembers(TrialScheduler):
    """A scheduler that takes over the judgements of an earlier start. It does not decide about them
    again."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)  # pyright: ignore
        self.earlier: dict[str, Sequence[tuple[int, float]]] = {}

    def remember(self, trials: Sequence[Trial]) -> Self:
        """Takes over earlier judgements: those of ended trials now, the others when Tune adds their
        trials."""
        self.earlier = {trial.name: trial.history for trial in trials}
        for trial in trials:
            if trial.ended:
                self.on_trial_add(None, Known(trial.name, trial.name))  # pyright: ignore
        return self

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Adds a trial with its earlier judgements, if the search knows it from before."""
        super().on_trial_add(tune_controller, trial)
        for images, score in self.earlier.pop(trial.custom_trial_name, ()):
            self.recall(trial, {"images": images, "score": score})

    def recall(self, trial: Any, result: dict[str, Any]) -> None:
        """Takes over one earlier judgement."""
        self.on_trial_result(None, trial, result)  # pyright: ignore


class Asha(_Remembers, ASHAScheduler):
    pass


class Median(_Remembers, MedianStoppingRule):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.latest: dict[Any, int] = {}
        """Images of the latest judgement, by trial."""

    def recall(self, trial: Any, result: dict[str, Any]) -> None:
        """Notes an earlier judgement without a new decision: other trials may be better by now."""
        self.on_trial_complete(None, trial, result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Takes a judgement, and decides whether the trial goes on."""
        if "score" in result:
            self.latest[trial] = result["images"]
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune has already reported the judgement that stopped a trial, and reports it here again.
        A failed trial may have no judgement."""
        if "score" in result and self.latest.get(trial) != result["images"]:
            self.latest[trial] = result["images"]
            super().on_trial_complete(tune_controller, trial, result)


@dataclass(frozen=True)
class Known:
    """A trial of an earlier start, with the attributes that schedulers read."""

    trial_id: str
    custom_trial_name: str
    status: str = "TERMINATED"
