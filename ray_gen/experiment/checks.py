"""Checks of several fields together that need only the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_gen.experiment.data import LatentsData, ParquetData
from ray_gen.experiment.networks import NetworkSettings
from ray_gen.experiment.search_checks import search_problems
from ray_gen.experiment.tree import Tree
from ray_gen.settings import ExperimentError, is_marked


def problems(experiment: Tree) -> Iterator[str]:
    """The problems of several fields together. Each begins with a dotted path."""
    objective = experiment.objective
    unused = objective.unused()
    yield from _missing("networks", experiment.networks, objective.network_names, unused)
    yield from _missing("optimizers", experiment.optimizers, objective.phase_names, unused)
    yield from _data_problems(experiment)
    yield from _batch_problems(experiment)
    yield from _schedule_problems(experiment)
    yield from _best_problems(experiment)
    yield from _lineage_problems(experiment)
    if experiment.search is not None:
        yield from search_problems(experiment, experiment.search)
    yield from objective.network_problems(experiment.networks)
    yield from objective.freeze_problems(experiment.training.freeze)
    problem = objective.stop_problem()
    if experiment.training.stop_at_equilibrium is not None and problem is not None:
        yield f"training.stop_at_equilibrium: {problem}; set it to null"


def _best_problems(experiment: Tree) -> Iterator[str]:
    best, known = experiment.checkpoints.best, experiment.objective.held_out_scores
    if best is None or known is None:
        return
    evaluation = experiment.evaluation
    if evaluation.every_images is not None and evaluation.placement == "inline":
        known = (*known, *evaluation.score_names)
    if best.metric not in known:
        has = f"one of {', '.join(known)}" if known else "none: leave the field out"
        more = "" if evaluation.every_images else "; set evaluation.every_images to measure more"
        if evaluation.placement == "beside":
            more = "; evaluation.placement=inline measures more before the checkpoint is judged"
        yield (
            f"checkpoints.best.metric: a {experiment.objective.kind} objective has no "
            f"held-out score {best.metric!r}; it has {has}{more}"
        )
    mode = experiment.better(best.metric)
    if mode not in (None, best.mode):
        word = {"min": "lower", "max": "higher"}[mode or best.mode]
        yield (
            f"checkpoints.best.mode: a {word} {best.metric} is better; use {mode}, not {best.mode}"
        )


def _lineage_problems(experiment: Tree) -> Iterator[str]:
    bare = experiment.model_copy(update={"lineage": (), "search": None})
    images = 0
    for number, change in enumerate(experiment.lineage):
        where = f"lineage.{number}"
        if change.images <= images:
            yield (
                f"{where}.images: {change.images} is not larger than {images}, the images of the "
                "change before"
            )
        images = change.images
        for path in change.values:
            if not is_marked(experiment, path, "live"):
                yield f"{where}.values.{path}: cannot change during a run"
        try:
            bare = bare.with_values(change.values)
        except ExperimentError as error:
            yield from (f"{where}.values: {problem}" for problem in error.problems)
            continue
        for name, parts in experiment.objective.lacks_parts(bare.objective):
            yield (
                f"{where}.values.objective.{name}: cannot leave 0 during a run: the run has been "
                f"without {parts}; leave it at 0, or begin a run with "
                f"objective.{name}={{kind: steps, values: [[0, 0], [{change.images}, VALUE]]}}"
            )


def _data_problems(experiment: Tree) -> Iterator[str]:
    size = experiment.data.height_and_width()
    if size is not None:
        for name, network in experiment.networks.items():
            assert isinstance(network, NetworkSettings)
            problem = network.size_problem(*size, experiment.objective.forms.get(name))
            if problem:
                yield f"networks.{name}: {network.kind} {problem}"
    likelihood = getattr(experiment.objective, "likelihood", "gaussian")
    if isinstance(experiment.data, LatentsData) and likelihood != "gaussian":
        yield (
            f"objective.likelihood: {likelihood} describes pixels, and latents have no bounds; set"
            " it to gaussian"
        )
    if isinstance(experiment.data, LatentsData) and not experiment.objective.has_prior:
        yield (
            f"objective.kind: {experiment.objective.kind} makes no samples, and from latents it"
            " reconstructs no images; train it on images, or take an objective that makes samples"
        )
    numbers = experiment.data.has_conditions()
    if numbers and not experiment.needs_labels:
        yield (
            "data.conditions: the objective would not use them; set objective.conditional to true,"
            " or leave data.conditions out"
        )
    if experiment.needs_labels and experiment.data.has_labels() is False and not numbers:
        yield (
            "objective.conditional: the data has no labels to condition on; set it to false, or "
            f"{_remedy(experiment)}"
        )


def _remedy(experiment: Tree) -> str:
    """How the data gets labels."""
    if getattr(experiment.data, "labels", None) == "none":
        return "set data.labels to auto"
    if isinstance(experiment.data, ParquetData):
        return "set data.label_column"
    if isinstance(experiment.data, LatentsData):
        return "encode images that have labels"
    return "put the images in one folder per class (or set data.labels)"


def _batch_problems(experiment: Tree) -> Iterator[str]:
    training, group = experiment.training, experiment.group_size
    batch = training.global_batch_size
    if batch % group:
        yield (
            f"training.group_size: {group} does not divide training.global_batch_size {batch}; "
            f"nearest divisors: {', '.join(map(str, _near_divisors(batch, group)))}"
        )
        return
    for name, network in experiment.networks.items():
        sees_images = name not in ("generator", "decoder")
        problem = network.group_problem(group) if sees_images else None
        if problem is not None:
            yield f"networks.{name}.{problem}"
    micro = training.micro_batch_size
    if micro is not None and micro % group:
        yield (
            f"training.micro_batch_size: {micro} is not a multiple of training.group_size {group}"
        )
    count = experiment.workers.most
    if count is not None and count > batch // group:
        yield too_many_workers(count, batch, group)


def _schedule_problems(experiment: Tree) -> Iterator[str]:
    for name, optimizer in experiment.optimizers.items():
        schedule = optimizer.schedule
        where = f"optimizers.{name}.schedule.horizon_images"
        if schedule.kind != "constant" and schedule.horizon_images is None:
            yield f"{where}: a {schedule.kind} schedule needs it (images at which it ends)"
        elif (
            schedule.horizon_images is not None
            and schedule.horizon_images <= schedule.warmup_images
        ):
            yield (
                f"{where}: {schedule.horizon_images} is not larger than warmup_images "
                f"{schedule.warmup_images}"
            )


def too_many_workers(count: int, batch: int, group: int) -> str:
    """The message for more workers than groups."""
    return (
        f"workers.count: {count} workers cannot share {batch // group} groups "
        f"(training.global_batch_size {batch} / training.group_size {group}); "
        f"use at most {batch // group} workers, or a smaller training.group_size"
    )


def _near_divisors(number: int, near: int) -> list[int]:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return sorted(sorted(divisors, key=lambda n: abs(n - near))[:2])


def _missing(
    section: str,
    given: dict[str, Any],
    wanted: tuple[str, ...] | None,
    unused: tuple[str, ...],
) -> Iterator[str]:
    for name in wanted or ():
        if name not in given and name not in unused:
            yield f"{section}.{name}: is required by the objective and was not given"
