"""Checks of a search against the experiment that it varies."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ray_gen.evaluation.metrics import BETTER, OF_SAMPLES
from ray_gen.experiment.fields import paths
from ray_gen.experiment.refusals import no_such_field
from ray_gen.experiment.search import Range, Search
from ray_gen.experiment.training import Workers
from ray_gen.experiment.tree import Tree
from ray_gen.settings import ExperimentError, differences, is_marked


def search_problems(experiment: Tree, search: Search) -> Iterator[str]:
    """The problems of a search with this experiment that the settings alone show."""
    workers = Workers(count=search.workers.count)  # the experiment's own are for a plain run
    bare = experiment.model_copy(update={"search": None, "workers": workers})
    for path, values in search.space.items():
        where = f"search.space.{path}"
        if path.partition(".")[0] == "search":
            yield f"{where}: fields of `search` cannot be searched; leave it out"
            continue
        if path.partition(".")[0] == "data" and path != "data.flip":
            yield f"{where}: the trials of a search train on the same data; leave it out"
            continue
        found: list[Tree] = []
        try:
            found = [bare.with_values({path: value}) for value in values.examples()]
        except ExperimentError as error:
            told = _no_such_field(bare, path) or _takes_whole_numbers(bare, path, values)
            problems = [told] if told else [f"{values.kind}: {p}" for p in error.problems]
            yield from (f"{where}: {problem}" for problem in problems)
            continue
        if all(bare == other for other in found):
            yield f"{where}: all values equal the experiment's own, so there is nothing to search"
        elif all(not any(differences(bare, other)) for other in found):
            yield f"{where}: does not change the training, so there is nothing to search"
        elif search.scheduler == "pbt" and not is_marked(experiment, path, "live"):
            yield (
                f"{where}: pbt copies weights into running trials, but {path} cannot change during "
                "a run; search it with asha, or leave it out"
            )
        elif search.scheduler == "pbt":
            pairs = ((one, other) for one in found for other in found)
            lacking = (one.objective.lacks_parts(other.objective) for one, other in pairs)
            if (first := next((parts for each in lacking for _, parts in each), None)) is not None:
                yield (
                    f"{where}: pbt copies weights into running trials, and trials with 0 are "
                    f"without {first}; leave 0 out, or search it with asha"
                )
    yield from _metric_problems(experiment, search)


def _metric_problems(experiment: Tree, search: Search) -> Iterator[str]:
    metric = experiment.search_metric
    scores = BETTER if experiment.objective.has_likelihood else OF_SAMPLES
    own = experiment.objective.held_out_scores
    known = tuple(dict.fromkeys((*(own or ()), *scores)))
    if own is not None and "/" not in metric and metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        yield f"search.metric: this experiment has no score {metric!r}{hint}"
    elif (
        search.mode is None
        and experiment.better(metric) is None
        and not _class_may_say(experiment, metric)
    ):
        yield f"search.mode: is unknown for {metric}; set it to min (lower is better) or max"
    elif search.mode is not None and experiment.better(metric) not in (None, search.mode):
        best = experiment.better(metric)
        yield f"search.mode: must be {best} for {metric}, not {search.mode}"
    if experiment.evaluation.placement == "beside":
        yield "evaluation.placement: a search judges trials while they train; set it to inline"
    judged_once = experiment.search_every_images * 2 > experiment.training.images
    if judged_once and search.scheduler != "none":
        yield (
            f"search.every_images: with {experiment.search_every_images}, a trial of "
            f"{experiment.training.images} images is judged only once; set a smaller value, or set "
            "search.scheduler to none"
        )


def _class_may_say(experiment: Tree, metric: str) -> bool:
    """Whether the metric may be a held-out score of a custom objective. Its class then says which
    value is better."""
    own = experiment.objective.held_out_scores
    return own is None and "/" not in metric and metric not in OF_SAMPLES


def _no_such_field(experiment: Tree, path: str) -> str | None:
    """The message for a dotted path to no field. None if the field exists."""
    given = experiment.model_dump(mode="json")
    known = paths(type(experiment), given)
    return None if path in known else no_such_field(path, type(experiment), given)


def _takes_whole_numbers(experiment: Tree, path: str, values: Range) -> str | None:
    """The message for a range of real numbers for a whole-number field, else None."""
    whole = {"uniform": "randint", "loguniform": "lograndint"}.get(values.kind)
    if whole is None or type(experiment.value_at(path)) is not int:
        return None
    return f"{values.kind}: takes whole numbers; use {whole}"
