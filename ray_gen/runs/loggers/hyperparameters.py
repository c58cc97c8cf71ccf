"""The settings by which runs are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray_gen.experiment import Experiment
from ray_gen.settings import is_marked

_OF_THE_DATA = ("digest", "classes", "condition_statistics", "rules")
"""Fields of `data` that the data gave, or that say nothing of it."""


def hyperparameters(
    experiment: Experiment, compared: Sequence[str] = ()
) -> dict[str, float | str | bool]:
    """The settings that identify a run, by dotted path, and `training.images`. Fields of `data`
    only if they are not at their default. Lists as JSON.

    compared: paths of fields, or of sections with all their fields. Then only these.
    """
    values = _flat(experiment.model_dump(mode="json"))
    if compared:
        parts = tuple(f"{path}." for path in compared)
        return {path: v for path, v in values.items() if f"{path}.".startswith(parts)}
    changed = _flat(experiment.data.model_dump(mode="json", exclude_defaults=True), "data")
    changed["data.kind"] = values["data.kind"]
    for name in _OF_THE_DATA:
        changed.pop(f"data.{name}", None)

    def matters(path: str) -> bool:
        if path.startswith("data."):
            return path in changed
        free = is_marked(experiment, path, "free") and path != "training.images"
        return not free and values[path] not in ("null", "[]", "{}")

    return {path: value for path, value in values.items() if matters(path)}


def later_scores(experiment: Experiment) -> tuple[str, ...]:
    """Tags of the scores that come with checkpoints and evaluations."""
    tags = [f"held_out/{name}" for name in experiment.objective.held_out_scores or ()]
    if experiment.evaluation.every_images is not None:
        tags += [f"evaluation/{name}" for name in experiment.evaluation.score_names]
    return tuple(tags)


def _flat(tree: Any, path: str = "") -> dict[str, float | str | bool]:
    """Plain values by dotted path. Everything that is no number, string or boolean as JSON."""
    if isinstance(tree, Mapping) and tree:
        flat: dict[str, float | str | bool] = {}
        for key, value in tree.items():
            flat |= _flat(value, f"{path}.{key}" if path else str(key))
        return flat
    return {path: tree if isinstance(tree, (int, float, str, bool)) else json.dumps(tree)}
