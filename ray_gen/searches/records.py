"""The trials of a search as files: what each tried, how far it came, what it is worth.

A search folder holds `search.yaml` (the experiment with its `search`), `trials.json` and `trials/`,
whose folders are ordinary runs. That is all a search goes on from: nothing of Ray Tune's is read.
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
from ray_gen.evaluators.names import measured
from ray_gen.storage import Folder

SEARCH = "search.yaml"
TRIALS = "trials"
RECORDS = "trials.json"
TABLE = "search.csv"
BEST = "best.yaml"
REPORT = "report.html"

Mode = Literal["min", "max"]
TrialState = Literal["waiting", "running", "done", "stopped", "failed"]
"""waiting: not begun, or cut off and to be gone on with. stopped: by the scheduler."""


@dataclass
class Trial:
    """One run of a search."""

    name: str
    """Of its folder in `trials/`."""
    values: dict[str, Any]
    """What it was given, by dotted path; after a change while it trained, the newest."""
    state: TrialState = "waiting"
    reason: str | None = None
    """Why it ended, where that is not plain."""
    images: int = 0
    score: float | None = None
    """The metric of the search when it was last judged, after `images` images."""
    seconds: float = 0.0
    """Spent on it so far, all attempts together."""
    history: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """(images, score) of each judgement."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "stopped", "failed")


def read_trials(search: Folder) -> list[Trial]:
    """The trials of a search folder; none at its beginning. Raises Refused."""
    try:
        found = json.loads(search.read_text(RECORDS))
    except (FileNotFoundError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        if missing and not (search / TRIALS).names():
            return []
        # Runs without records would be taken for those of new trials.
        raise Refused(
            f"{search.location}/{RECORDS}: is {'missing' if missing else 'damaged'}; choose "
            "another --name, or delete the folder to begin the search anew"
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
        raise Refused(f"{search.location}/{RECORDS}: is of another version of ray_gen") from None


def write_trials(search: Folder, trials: Sequence[Trial]) -> None:
    """Write all records, whole or not at all."""
    given = [dataclasses.asdict(trial) for trial in trials]
    search.write_text(RECORDS, json.dumps(given, indent=1))


def best_trial(trials: Iterable[Trial], mode: Mode) -> Trial | None:
    """The trial whose last score is the best; of those that failed none."""
    first = next(iter(ranked(trials, mode)), None)
    return None if first is None or _worth(first) is None else first


def ranked(trials: Iterable[Trial], mode: Mode) -> list[Trial]:
    """The judged trials, the best first, then the others in their order."""
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
    """A metric of a report: the objective's own held-out score of this name, an evaluation's, or
    what a term reports."""
    return measured(metrics, name, metrics.get(name))


def as_csv(trials: Sequence[Trial], metric: str) -> str:
    """A row a trial: name, state, values, score."""
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
    """The shortest ends of dotted paths that tell them apart."""
    names: dict[str, str] = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        others = [f".{other}" for other in paths if other != path]
        alone = [end for end in ends if not any(other.endswith(f".{end}") for other in others)]
        names[path] = alone[0] if alone else path
    return names
