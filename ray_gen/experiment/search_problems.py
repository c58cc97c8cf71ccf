"""The checks of a search against the experiment that it varies."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ray_gen.evaluators.names import LIKELIHOOD_SCORES, METRICS
from ray_gen.experiment.base import ExperimentError, differences, is_marked
from ray_gen.experiment.objectives import VaeObjective
from ray_gen.experiment.search import Search, better
from ray_gen.experiment.training import Workers

if TYPE_CHECKING:
    from ray_gen.experiment.tree import Experiment


def search_problems(experiment: Experiment, search: Search) -> Iterator[str]:
    """All that is wrong with what a search asks of this experiment, as far as settings tell."""
    workers = Workers(count=search.workers.count)  # the experiment's own are of a plain run
    bare = experiment.model_copy(update={"search": None, "workers": workers})
    for path, values in search.space.items():
        where = f"search.space.{path}"
        if path.partition(".")[0] == "data" and path != "data.flip":
            yield f"{where}: the trials of a search train on the same data; leave it out"
            continue
        found: list[Experiment] = []
        try:
            found = [bare.with_values({path: value}) for value in values.examples()]
        except ExperimentError as error:
            unknown = _no_such_field(bare.model_dump(mode="json"), path)
            problems = [unknown] if unknown else error.problems
            yield from (f"{where}: {values.kind}: {problem}" for problem in problems)
            continue
        if all(not any(differences(bare, other)) for other in found):
            yield f"{where}: changes nothing of what is trained, so there is nothing to search"
        elif search.scheduler == "pbt" and not is_marked(experiment, path, "live"):
            yield (
                f"{where}: pbt copies the weights of one trial into another that goes on, and "
                f"{path} cannot change in mid-run; search it with asha, or leave it out"
            )
    yield from _metric_problems(experiment, search)


def _metric_problems(experiment: Experiment, search: Search) -> Iterator[str]:
    metric = experiment.search_metric
    scores = LIKELIHOOD_SCORES if isinstance(experiment.objective, VaeObjective) else ()
    known = tuple(dict.fromkeys((*(experiment.objective.evaluated or ()), *METRICS, *scores)))
    if experiment.objective.evaluated is not None and "/" not in metric and metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        yield f"search.metric: no evaluator of this experiment yields {metric!r}{hint}"
    elif search.mode is None and better(metric) is None:
        yield f"search.mode: {metric} does not say which is better; set it to min or max"
    elif search.mode is not None and better(metric) not in (None, search.mode):
        yield f"search.mode: of {metric} the {better(metric)} is better, not the {search.mode}"
    if experiment.evaluation.placement == "beside":
        yield "evaluation.placement: a search judges trials as they train; set it to inline"
    judged_once = experiment.search_every_images * 2 > experiment.training.images
    if judged_once and search.scheduler != "none":
        yield (
            f"search.every_images: {experiment.search_every_images} judges a trial of "
            f"{experiment.training.images} images once; set it smaller, or search.scheduler to none"
        )


def _no_such_field(given: dict[str, Any], path: str) -> str | None:
    """The sentence for a dotted path that leads nowhere; None if it leads somewhere."""
    parts = path.split(".")
    here: Any = given
    for position, part in enumerate(parts):
        if not isinstance(here, dict) or part not in here:
            near = difflib.get_close_matches(part, here if isinstance(here, dict) else (), n=1)
            meant = ".".join((*parts[:position], *near, *parts[position + 1 :]))
            return "there is no such field" + (f"; did you mean {meant}?" if near else "")
        here = here[part]
    return None
