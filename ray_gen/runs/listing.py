"""The runs and searches of a storage, with what their own small files say of them. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_gen.errors import Refused
from ray_gen.experiment import Experiment
from ray_gen.experiment.reading import parse_yaml
from ray_gen.runs.checkpoints import checkpoints, images_of
from ray_gen.runs.evaluations import evaluated
from ray_gen.runs.manifest import EXPERIMENT
from ray_gen.runs.progress import METRICS_FILE, PROGRESS, RunState, read_progress
from ray_gen.searches.records import RECORDS, SEARCH, TRIALS, best_trial, read_trials
from ray_gen.storage import Folder, StorageError

SCORES = 2
"""Number of scores of a run that are listed."""
AT_ONCE = 16
"""Number of runs that are read at once: a storage behind a URI answers after 10 to 100 ms."""
_FIRST = ("fid", "kid", "elbo")
"""Scores that are listed before others."""
_MARKS = {EXPERIMENT, PROGRESS, METRICS_FILE, SEARCH, RECORDS}
"""Files that tell a run or a search from another folder."""

IsWritten = Callable[[Folder], bool]
"""Whether a process writes a run or a search now."""


@dataclass(frozen=True)
class Listed:
    """A run or a search, as one line of a list."""

    name: str
    location: str
    state: RunState | Literal["search", "damaged"]
    why: str | None = None
    """Why it is in this state, or what is damaged. Of a search: running or not running."""
    done: int = 0
    """Images that the run has seen, or trials of the search that have ended."""
    of: int | None = None
    """Images or trials when it will be complete. None if unknown."""
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    """The last scores, else the last losses. Of a search: the best score."""
    time: float | None = None
    """When it last wrote, in seconds since 1970. None if unknown."""

    def as_json(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        scores = {name: value for name, value in self.scores.items() if math.isfinite(value)}
        return {**dataclasses.asdict(self), "scores": scores}


def listed(storage: Folder, is_written: IsWritten) -> list[Listed]:
    """The runs and searches of a storage, of the trials of a search, or one run alone. Those that
    wrote last come first. Other folders are left out; a damaged run says so in its line."""
    names = storage.names()
    if EXPERIMENT in names:
        folders = [storage]
    else:
        around = storage / TRIALS if SEARCH in names else storage
        folders = [around / name for name in around.names() if not name.startswith(".")]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = threads.map(lambda folder: _entry(folder, is_written), folders)
        entries = [entry for entry in found if entry is not None]
    return sorted(entries, key=lambda entry: entry.time or 0.0, reverse=True)


def _entry(folder: Folder, is_written: IsWritten) -> Listed | None:
    """The line of a folder. None if it is neither a run nor a search."""
    try:
        names = set(folder.names())
        if not names & _MARKS and not any(name.startswith("checkpoint_") for name in names):
            return None
        return (_of_a_search if names & {SEARCH, RECORDS} else _of_a_run)(folder, is_written)
    except StorageError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = str(error).partition("\n")[0].removeprefix(f"{folder.location}/")
        return Listed(folder.name, folder.location, "damaged", why, time=_changed(folder))


def _of_a_run(run: Folder, is_written: IsWritten) -> Listed:
    try:
        told = read_progress(run)
    except ValueError:
        raise ValueError(f"{PROGRESS} cannot be read") from None
    saved = checkpoints(run)
    if told is None and not saved and not run.exists(EXPERIMENT):
        raise ValueError(f"it has no {EXPERIMENT}, no {PROGRESS} and no whole checkpoint")
    newest = images_of(saved[0]) if saved else 0
    found = told or {}
    images = max(int(found.get("images", 0)), newest)
    total = found.get("of") or _images_in(run)
    state: RunState
    state, why = found.get("state"), found.get("why")  # pyright: ignore[reportAssignmentType]
    if is_written(run):
        state, why = "training", None if told is None else found.get("doing")
        why = "starting" if told is None else None if why == "training" else why
    elif state in (None, "training"):
        killed = state == "training"
        ended = not killed and total is not None and images >= total
        state = "ended" if ended else "stopped"
        why = "its process was killed" if killed else None
    if found.get("failure"):  # training went on, but no longer helped
        why = f"{why}; {found['failure']}" if why else str(found["failure"])
    scores = _scores(found.get("metrics") or {}, run)
    time = found.get("time") or _changed(run)
    return Listed(run.name, run.location, state, why, images, total, scores, time)


def _of_a_search(search: Folder, is_written: IsWritten) -> Listed:
    experiment = Experiment.from_yaml(search.read_text(SEARCH))
    settings, trials = experiment.search, read_trials(search)
    if settings is None:
        raise ValueError(f"{SEARCH} has no part `search`")
    metric = experiment.search_metric
    mode = settings.mode or experiment.better(metric)
    best = None if mode is None else best_trial(trials, mode)
    scores = {} if best is None or best.score is None else {metric: best.score}
    done = sum(trial.ended for trial in trials)
    why = "running" if is_written(search) else "not running"
    time = _changed(search)
    return Listed(search.name, search.location, "search", why, done, settings.total, scores, time)


def _images_in(run: Folder) -> int | None:
    """`training.images`. None if there is no experiment."""
    try:
        text = run.read_text(EXPERIMENT)
    except FileNotFoundError:
        return None
    try:
        tree = parse_yaml(text, EXPERIMENT)
    except Refused:
        tree = None
    training = tree.get("training") if isinstance(tree, dict) else None
    images = training.get("images") if isinstance(training, dict) else None
    if not isinstance(images, int):
        raise ValueError(f"{EXPERIMENT} cannot be read")
    return images


def _scores(metrics: Mapping[str, Any], run: Folder) -> dict[str, float]:
    """The last scores. Reads the earlier reports if the last one had none."""
    found = _scores_in(metrics)
    if not found:
        try:
            lines = run.read_text(METRICS_FILE).splitlines()
        except FileNotFoundError:
            lines = []
        for line in reversed(lines):
            if "held_out/" in line or "evaluation/" in line:
                found = _scores_in(_parsed(line))
            if found:
                break
    if not found:  # measured beside the training
        later = {images: scores for images, scores in evaluated(run).items() if scores}
        found = _scores_in(later[max(later)]) if later else {}
    return found or _first(metrics, "loss/")


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # cut short by a crash
        return {}
    return found if isinstance(found, dict) else {}


def _scores_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    return _first(metrics, "evaluation/") or _first(metrics, "held_out/")


def _first(metrics: Mapping[str, Any], group: str) -> dict[str, float]:
    """The first scores of a group, by name without the group."""
    found = {
        tag.removeprefix(group): value for tag, value in metrics.items() if tag.startswith(group)
    }
    names = [name for name in found if not name.endswith("_spread")]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return {name: float(found[name]) for name in names[:SCORES]}


def _changed(folder: Folder) -> float | None:
    """When a local folder was last written to. None behind a URI."""
    if not folder.is_local:
        return None
    times = [path.lstat().st_mtime for path in (folder.path, *folder.path.iterdir())]
    return max(times)
