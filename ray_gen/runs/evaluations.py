"""`evaluations/` of a run folder: scores with their protocols, one file for each evaluation."""

from __future__ import annotations

import json
from collections.abc import Collection

from ray_gen.evaluation.scores import Scores
from ray_gen.storage import Folder

EVALUATIONS = "evaluations"


def evaluation_file(images: int) -> str:
    """Name of the file in `evaluations/` with the scores and protocols of an evaluation."""
    return f"images_{images:012d}.json"


def evaluated(run: Folder, known: Collection[int] = ()) -> dict[int, dict[str, float]]:
    """The scores of a run's evaluations, by images and tag; none of an evaluation that failed.

    known: images of evaluations that are not read.
    """
    found: dict[int, dict[str, float]] = {}
    for name in (run / EVALUATIONS).names():
        digits = name.removesuffix(".json").rpartition("_")[2]
        if name.endswith(".json") and digits.isdecimal() and int(digits) not in known:
            given = json.loads((run / EVALUATIONS).read_text(name))
            scores = {} if "failed" in given else Scores.from_json(given).as_metrics()
            found[int(digits)] = scores
    return found
