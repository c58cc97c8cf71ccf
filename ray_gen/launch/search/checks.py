"""Checks before the first trial of a search: of its data, of an earlier search of the same name, of
each value, and of the room in the cluster."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import ray

from ray_gen.core import Weight
from ray_gen.data import Store
from ray_gen.distributed import World
from ray_gen.errors import Refused
from ray_gen.evaluation.evaluator import during_training
from ray_gen.evaluation.metrics import BETTER, metric_of
from ray_gen.experiment import Experiment, ExperimentError, differences
from ray_gen.launch.cluster import Share
from ray_gen.searches.records import (
    SEARCH,
    Trial,
    read_trials,
    score_of,
)
from ray_gen.storage import Folder
from ray_gen.training.build import build_networks, build_objective
from ray_gen.training.loop import train
from ray_gen.training.sources import resolved_by
from ray_gen.training.start import StartingPoint, table_of
from ray_gen.training.state import State


def resolved_search(experiment: Experiment, store: Store) -> Experiment:
    """The experiment, with the fields that depend on the data filled in. A group size of auto stays
    auto: each trial sets it by its own batch size."""
    return resolved_by(experiment, store, experiment.training.group_size)


def experiment_before(folder: Folder) -> Experiment | None:
    """The experiment of an earlier search in this folder. None: there is none."""
    with suppress(ExperimentError, FileNotFoundError):  # `trials_before` tells
        return Experiment.from_yaml(folder.read_text(SEARCH))
    return None


def trials_before(folder: Folder, experiment: Experiment) -> list[Trial]:
    """The trials of an earlier search in this folder. Raises ExperimentError if it was a search of
    another experiment."""
    try:
        before = Experiment.from_yaml(folder.read_text(SEARCH))
    except FileNotFoundError:
        return []
    different = list(differences(experiment, before))
    ours, theirs = experiment.search, before.search
    if ours is not None and theirs is not None:
        different += [f"search.{d}" for d in differences(ours, theirs)]
    if _is_evaluated(experiment):
        now, then = experiment.evaluation, before.evaluation
        different += [
            f"evaluation.{name}: {getattr(now, name)!r} here, {getattr(then, name)!r} there"
            for name in type(now).model_fields
            if name != "batch_size" and getattr(now, name) != getattr(then, name)
        ]
    if experiment.training.images != before.training.images:
        different.append(
            f"training.images: {experiment.training.images} here, {before.training.images} there"
        )
    if different:
        raise ExperimentError(
            [
                f"{folder.location} is the search of another experiment; choose another --name, or "
                "undo:",
                *(f"  {difference}" for difference in different),
            ]
        )
    trials = read_trials(folder)
    for trial in trials:
        trial.state = trial.state if trial.ended else "waiting"
    return trials


def check_search(experiment: Experiment, store: Store, origin: StartingPoint | None = None) -> None:
    """Raises Refused if a value of the space cannot be built, if its networks take nothing of the
    model that the trials start from, or if the metric does not exist. Only the data and the classes
    of networks and objective can tell. origin: that model."""
    settings = experiment.search
    assert settings is not None
    bare = experiment.model_copy(update={"search": None})
    problems: list[str] = []
    for path, values in settings.space.items():
        for value in values.examples():
            try:
                tried = bare.with_values({path: value})
                objective = build_objective(tried)
                networks = build_networks(tried, objective)
                if origin is not None and tried.training.start_from == bare.training.start_from:
                    table_of(tried, objective, networks, origin)
            except (Refused, ValueError, TypeError) as error:
                problems.append(f"search.space.{path}: {value}: {error}")
    if problems:
        raise ExperimentError(problems)
    metric = experiment.search_metric
    if _is_evaluated(experiment):
        _check_evaluation(bare.with_values(_evaluation_of(experiment)), metric, store)
        return
    objective = build_objective(bare)
    every = max(
        phase.every * math.lcm(term.every, weight.every)
        for phase in objective.phases()
        for term in phase.terms
        for weight in (*term.weights.values(), Weight())
    )
    images = experiment.training.global_batch_size * every  # so every loss is due once
    short = ("images", "report_every_images", "checkpoint_every_images")
    changes: dict[str, Any] = {f"training.{name}": images for name in short}
    changes |= {"training.compile": False, "evaluation.every_images": None}
    one = bare.with_values(changes)
    state = State.build(one, objective, World())
    (report,) = train(one, objective, state, store, World())
    if score_of(report.metrics, metric) is None:
        found = sorted(tag for tag in report.metrics if not tag.startswith(("speed/", "memory/")))
        raise ExperimentError(
            [
                f"search.metric: this experiment does not measure {metric!r}; it measures "
                + ", ".join(found)
            ]
        )


def _check_evaluation(experiment: Experiment, metric: str, store: Store) -> None:
    """Raises ExperimentError if an evaluation of this experiment does not measure the metric."""
    objective = build_objective(experiment)
    state = State.build(experiment, objective, World())
    _, found = during_training(experiment, objective, state.ema, store, World())
    if metric_of(metric) not in found.names:
        without = "; ".join(found.left_out())
        raise ExperimentError([f"search.metric: {metric} cannot be measured here ({without})"])


def _is_evaluated(experiment: Experiment) -> bool:
    """Whether `evaluation` measures the metric, and not the objective itself."""
    metric, own = experiment.search_metric, experiment.objective.held_out_scores or ()
    return metric in BETTER and metric not in own


def of_a_trial(experiment: Experiment, share: Share) -> Experiment:
    """The experiment of every trial before the trial gets its values. It has the judging interval
    and the workers of the search."""
    every = experiment.search_every_images
    changes: dict[str, Any] = {
        "search": None,
        "workers.count": share.workers,
        "workers.gpu": share.gpu > 0,
        "workers.cpus": share.cpus,
        "training.checkpoint_every_images": every,
        "training.report_every_images": min(every, experiment.training.report_every_images),
    }
    if _is_evaluated(experiment):
        changes |= _evaluation_of(experiment)
    return experiment.with_values(changes)


def _evaluation_of(experiment: Experiment) -> dict[str, Any]:
    """The changes that make `evaluation` measure the metric, besides what it measured before."""
    metric, before = experiment.search_metric, experiment.evaluation
    asked = metric_of(metric)
    metrics: Any = before.metrics if before.every_images is not None else ()
    if metrics != "auto" and asked not in metrics:
        metrics = [*metrics, asked]
    return {
        "evaluation.metrics": metrics,
        "evaluation.every_images": experiment.search_every_images,
    }


def room_for(experiment: Experiment) -> tuple[Share, int]:
    """What a trial gets, and for how many trials there is room. Raises ExperimentError if there is
    room for none."""
    settings = experiment.search
    assert settings is not None
    asked = settings.workers
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    gpu = (1.0 if gpus else 0.0) if asked.gpu == "auto" else asked.gpu
    slots = 0
    for node in nodes:
        fitting = int(node.get("CPU", 0)) // asked.cpus
        if gpu:
            fitting = min(fitting, int(node.get("GPU", 0)) * math.floor(1 / gpu + 1e-9))
        slots += fitting
    room = slots // asked.count
    if room < 1:
        has = f"{sum(node.get('CPU', 0) for node in nodes):g} CPU cores and {gpus:g} GPUs"
        raise ExperimentError(
            [
                f"search.workers: a trial takes {asked.count} x ({asked.cpus} CPU cores and "
                f"{gpu:g} GPUs), and the cluster has {has}; ask for less"
            ]
        )
    if settings.scheduler == "pbt" and asked.count > 1 and room < settings.total:
        raise ExperimentError(
            [
                f"search.trials: in population based training {settings.total} trials of several "
                f"workers train at once, and the cluster has room for {room}; use fewer trials, "
                "or search.workers.count=1"
            ]
        )
    if settings.concurrent != "auto":
        room = min(room, settings.concurrent)
    return Share(asked.count, gpu, asked.cpus), room


def trials_at_once(experiment: Experiment) -> int:
    """If the cluster has no room for a trial, nodes are requested for this many trials."""
    settings = experiment.search
    assert settings is not None
    return 1 if settings.concurrent == "auto" else min(settings.concurrent, settings.total)


def bundles_of_trials(experiment: Experiment, trials: int) -> list[dict[str, float]]:
    """The resources to request from the cluster: a bundle for each worker of `trials` trials."""
    settings = experiment.search
    assert settings is not None
    asked = settings.workers
    gpu = 0.0 if asked.gpu == "auto" else asked.gpu
    bundle = {"CPU": float(asked.cpus)} | ({"GPU": gpu} if gpu else {})
    return [bundle] * (asked.count * trials)
