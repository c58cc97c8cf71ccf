"""The trials of a search as files: the values, the progress and the score of each.

A search folder holds `search.yaml` (the experiment with its `search`), `trials.json` and `trials/`,
whose folders are ordinary runs. A search resumes from these alone. It reads no file of Ray Tune.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_gen.errors import Refused
from ray_gen.evaluation.scores import score_in
from ray_gen.storage import Folder

SEARCH = "search.yaml"
TRIALS = "trials"
RECORDS = "trials.json"
TABLE = "search.csv"
BEST_EXPERIMENT = "best.yaml"
REPORT = "report.html"

Mode = Literal["min", "max"]
TrialState = Literal["waiting", "running", "done", "stopped", "failed"]
"""waiting: not started, or interrupted and to be resumed. stopped: by the scheduler."""


@dataclass
class Trial:
    """One run of a search."""

    name: str
    """Name of its folder in `trials/`."""
    values: dict[str, Any]
    """Its settings in the search, by dotted path. If they changed during training: the newest."""
    state: TrialState = "waiting"
    reason: str | None = None
    """Why it ended, if that is not obvious."""
    images: int = 0
    """Images seen at its last judgement."""
    score: float | None = None
    """The metric of the search at its last judgement."""
    seconds: float = 0.0
    """Time spent on it so far, all attempts together."""
    history: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """(images, score) of each judgement."""

    @property
    def ended(self) -> bool:
        """Whether the trial is over and will not be resumed."""
        return self.state in ("done", "stopped", "failed")


def read_trials(search: Folder) -> list[Trial]:
    """The trials of a search folder. Empty before the first trial. Raises Refused if the records
    are missing, damaged or of another version."""
    try:
        found = json.loads(search.read_text(RECORDS))
    except (FileNotFoundError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        if missing and not (search / TRIALS).names():
            return []
        # Without records, new trials would continue the old runs.
        raise Refused(
            f"{search.location}/{RECORDS}: is {'missing' if missing else 'damaged'}; choose "
            "another --name, or delete the folder to start the search again"
        ) from None
    names = {known.name for known in dataclasses.fields(Trial)}
    try:
        trials = [
            Trial(**{key: value for key, value in given.items() if key in names}) for given in found
        ]
        for trial in trials:
            trial.history = [(images, score) for images, score in trial.history]
        return trials
    except (TypeError, AttributeError, ValueError):
        raise Refused(
            f"{search.location}/{RECORDS}: comes from another version of ray_gen; use that "
            "version, or choose another --name"
        ) from None


def write_trials(search: Folder, trials: Sequence[Trial]) -> None:
    """Write all records, whole or not at all."""
    given = [dataclasses.asdict(trial) for trial in trials]
    search.write_text(RECORDS, json.dumps(given, indent=1))


def best_trial(trials: Iterable[Trial], mode: Mode) -> Trial | None:
    """The trial with the best last score. Failed trials do not count."""
    first = next(iter(ranked(trials, mode)), None)
    return None if first is None or _worth(first) is None else first


def ranked(trials: Iterable[Trial], mode: Mode) -> list[Trial]:
    """The trials with a score, the best first, then the others in their order."""
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: Trial) -> tuple[bool, float]:
        worth = _worth(trial)
        return worth is None, 0.0 if worth is None else sign * worth

    return sorted(trials, key=key)


def _worth(trial: Trial) -> float | None:
    score = trial.score
    if score is None or trial.state == "failed" or not math.isfinite(score):
        return None
    return score


def score_of(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric of a report, by name: the objective's own held-out score, else an evaluation's
    score, else the value that a term reports."""
    return score_in(metrics, name, metrics.get(name))


def as_csv(trials: Sequence[Trial], metric: str) -> str:
    """One row per trial: name, state, values, score."""
    paths = list(dict.fromkeys(path for trial in trials for path in trial.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", metric, "images", "seconds", *paths, "reason"])
    for t in trials:
        values = [t.values.get(path) for path in paths]
        row = [t.name, t.state, t.score, t.images, round(t.seconds, 1), *values, t.reason]
        writer.writerow(["" if cell is None else cell for cell in row])
    return text.getvalue()


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest unique end of each dotted path."""
    names: dict[str, str] = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        others = [f".{other}" for other in paths if other != path]
        alone = [end for end in ends if not any(other.endswith(f".{end}") for other in others)]
        names[path] = alone[0] if alone else path
    return names
