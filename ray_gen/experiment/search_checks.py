"""The checks of a search against the experiment that it varies."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, cast

from ray_gen.evaluators.names import LIKELIHOOD_SCORES, METRICS
from ray_gen.experiment.search import Range, Search
from ray_gen.experiment.settings import ExperimentError, differences, is_marked
from ray_gen.experiment.training import Workers
from ray_gen.experiment.tree import Tree


def search_problems(experiment: Tree, search: Search) -> Iterator[str]:
    """All that is wrong with what a search asks of this experiment, as far as settings tell."""
    workers = Workers(count=search.workers.count)  # the experiment's own are of a plain run
    bare = experiment.model_copy(update={"search": None, "workers": workers})
    for path, values in search.space.items():
        where = f"search.space.{path}"
        if path.partition(".")[0] == "search":
            yield f"{where}: is how to search, and not searched itself; leave it out"
            continue
        if path.partition(".")[0] == "data" and path != "data.flip":
            yield f"{where}: the trials of a search train on the same data; leave it out"
            continue
        found: list[Tree] = []
        try:
            found = [bare.with_values({path: value}) for value in values.examples()]
        except ExperimentError as error:
            given = bare.model_dump(mode="json")
            told = _no_such_field(given, path) or _takes_whole_numbers(bare, path, values)
            problems = [told] if told else [f"{values.kind}: {p}" for p in error.problems]
            yield from (f"{where}: {problem}" for problem in problems)
            continue
        if all(bare == other for other in found):
            yield f"{where}: is what the experiment has, so there is nothing to search"
        elif all(not any(differences(bare, other)) for other in found):
            yield f"{where}: changes nothing of what is trained, so there is nothing to search"
        elif search.scheduler == "pbt" and not is_marked(experiment, path, "live"):
            yield (
                f"{where}: pbt copies the weights of one trial into another that goes on, and "
                f"{path} cannot change in mid-run; search it with asha, or leave it out"
            )
    yield from _metric_problems(experiment, search)


def _metric_problems(experiment: Tree, search: Search) -> Iterator[str]:
    metric = experiment.search_metric
    scores = LIKELIHOOD_SCORES if experiment.objective.has_likelihood else ()
    known = tuple(dict.fromkeys((*(experiment.objective.evaluated or ()), *METRICS, *scores)))
    if experiment.objective.evaluated is not None and "/" not in metric and metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        yield f"search.metric: no evaluator of this experiment yields {metric!r}{hint}"
    elif (
        search.mode is None
        and experiment.better(metric) is None
        and not _class_may_say(experiment, metric)
    ):
        yield f"search.mode: {metric} does not say which is better; set it to min or max"
    elif search.mode is not None and experiment.better(metric) not in (None, search.mode):
        best = experiment.better(metric)
        yield f"search.mode: of {metric} the {best} is better, not the {search.mode}"
    if experiment.evaluation.placement == "beside":
        yield "evaluation.placement: a search judges trials as they train; set it to inline"
    judged_once = experiment.search_every_images * 2 > experiment.training.images
    if judged_once and search.scheduler != "none":
        yield (
            f"search.every_images: {experiment.search_every_images} judges a trial of "
            f"{experiment.training.images} images once; set it smaller, or search.scheduler to none"
        )


def _class_may_say(experiment: Tree, metric: str) -> bool:
    """Whether it is a held-out score of somebody's own class, which says itself what is better."""
    return experiment.objective.evaluated is None and "/" not in metric and metric not in METRICS


def _no_such_field(given: dict[str, Any], path: str) -> str | None:
    """The sentence for a dotted path that leads nowhere; None if it leads somewhere."""
    parts = path.split(".")
    here: Any = given
    for position, part in enumerate(parts):
        if not isinstance(here, dict) or part not in here:
            near = difflib.get_close_matches(part, here if isinstance(here, dict) else (), n=1)
            meant = [".".join((*parts[:position], *near, *parts[position + 1 :]))] if near else []
            known = list(_paths(given))
            meant = [p for p in meant if p in known] or [
                p for p in known if p.rpartition(".")[2] == parts[-1]
            ]
            return "there is no such field" + (f"; did you mean {meant[0]}?" if meant else "")
        here = here[part]
    return None


def _paths(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    """The dotted paths of all fields."""
    for name, below in tree.items():
        yield f"{above}{name}"
        if isinstance(below, dict):
            yield from _paths(cast(dict[str, Any], below), f"{above}{name}.")


def _takes_whole_numbers(experiment: Tree, path: str, values: Range) -> str | None:
    """The sentence for real numbers where a field takes none."""
    whole = {"uniform": "randint", "loguniform": "lograndint"}.get(values.kind)
    if whole is None or type(experiment.value_at(path)) is not int:
        return None
    return f"{values.kind}: takes whole numbers; use {whole}"
