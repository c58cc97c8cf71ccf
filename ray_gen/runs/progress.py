"""`progress.json`: how far a run is, and how it ended.

    {"state": "training", "why": null, "doing": "training", "images": 3200, "of": 60000,
     "time": 1764417600.0, "rate": 5300.0, "seconds_left": 12.0,
     "metrics": {"loss/generator": 0.7}}

`doing` and what follows is of the progress line: `rate` is of training alone, `seconds_left` is
until the end. `evaluations_left` is the number of evaluations that `seconds_left` does not count,
because none has ended yet. During an evaluation `part` says how far it is (`Part`). Files of
versions before 0.2 have no `state`, `why`, `of`, `time` and `seconds_left`.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal, TypedDict

from ray_gen.errors import Refused
from ray_gen.runs.checkpoints import checkpoints, images_of
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.storage import Folder

PROGRESS = "progress.json"
METRICS_FILE = "metrics.jsonl"
"""The reports of a run, one a line."""


class Part(TypedDict):
    """How far an evaluation is."""

    what: str
    """What is counted, e.g. "generated images"."""
    done: int
    of: int
    seconds_left: float | None


RunState = Literal["training", "stopped", "ended", "failed"]
"""stopped: somebody asked for it, or its processes died. ended: it will train no longer unless
`training.images` grows. failed: an error ended it."""


def ending_of(error: BaseException) -> tuple[RunState, str]:
    """The state of a run that this error has ended, and why, in one line."""
    if isinstance(error, GeneratorExit):  # only a search leaves a run before its end
        return "stopped", "its search stopped it early"
    if not isinstance(error, Exception):  # KeyboardInterrupt
        return "stopped", "interrupted"
    told = str(error).strip().partition("\n")[0]
    return "failed", told or type(error).__name__


def read_progress(run: Folder) -> dict[str, Any] | None:
    """The progress that a run wrote last. None if it has written none.

    Raises ValueError if the file is damaged.
    """
    try:
        found = json.loads(run.read_text(PROGRESS))
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"{PROGRESS} is not a mapping")
    return found


def note_error(run: Folder, error: BaseException, since: float) -> None:
    """Write that an error has ended the run, if the run does not say so itself.

    since: when this attempt to train began. What was refused before it began is not noted.
    """
    if not run.exists(EXPERIMENT):
        return  # a search
    told = read_progress(run)
    if told is None:
        if isinstance(error, Refused):
            return
        saved = checkpoints(run)
        told = {"doing": "starting", "images": images_of(saved[0]) if saved else 0, "metrics": {}}
        told |= {"rate": None}
    elif told.get("state") != "training" or told.get("time", 0.0) < since:
        return
    state, why = ending_of(error)
    run.write_text(PROGRESS, json.dumps({**told, "state": state, "why": why, "time": time.time()}))
