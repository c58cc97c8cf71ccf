"""The records of a search while Ray Tune runs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ray_gen.experiment import Experiment
from ray_gen.launch.imports import import_failure
from ray_gen.launch.memory import ended_for_memory
from ray_gen.launch.progress import read_progress
from ray_gen.runs.writer import PROGRESS, STOP
from ray_gen.searches.records import (
    TABLE,
    TRIALS,
    Mode,
    Trial,
    as_csv,
    write_trials,
)
from ray_gen.storage import Folder
from ray_gen.training.loop import ALL_SEEN, ASKED

DEATHS = 3
"""A trial is given up after this many deaths of its process without a new judgement."""


class Study(Callback):
    """The records of a search, kept while Tune runs it. Called on Tune's thread."""

    def __init__(
        self, experiment: Experiment, folder: Folder, trials: list[Trial], mode: Mode
    ) -> None:
        assert experiment.search is not None
        self.experiment = experiment
        self.settings = experiment.search
        self.folder = folder
        self.trials = trials
        self.mode: Mode = mode
        self.stopping = threading.Event()
        self._spent: dict[str, float] = {}
        self._deaths: dict[str, list[int]] = {}
        self.ends: str | None = None
        """Why no trial can go on; None while they can."""
        self._ended: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore, which we never ask for

    def begin(self, values: Mapping[str, Any]) -> Trial | None:
        """A new trial; None if the search is to end."""
        if self.stopping.is_set():
            return None
        trial = Trial(f"trial_{len(self.trials):03d}", dict(values))
        self.trials.append(trial)
        return trial

    @property
    def goes_on(self) -> bool:
        """Whether there is a trial that has not ended."""
        ended = sum(trial.ended for trial in self.trials)
        return ended < max(self.settings.total, len(self.trials))

    def stop(self) -> None:
        """Asks running trials to save and stop, and waiting trials not to begin."""
        self.stopping.set()
        self.folder.write_text(STOP, "")
        for trial in self.trials:
            if trial.state == "running":
                (self.folder / TRIALS / trial.name).write_text(STOP, "")

    def lost(self, reason: str, *, blame: bool) -> None:
        """Call it when Tune itself has died. Running trials wait, and go on when Tune is started
        again. With `blame` (the trial ran alone), a trial fails if it died too often without
        coming further."""
        for trial in self.trials:
            if trial.state == "running":
                given_up = blame and self._died(trial)
                trial.state, trial.reason = ("failed", reason) if given_up else ("waiting", None)
        self._write()

    def _died(self, trial: Trial) -> bool:
        """Notes a death. Returns whether the trial has now died DEATHS times without a new
        judgement."""
        deaths = self._deaths.setdefault(trial.name, [])
        deaths.append(trial.images)
        return deaths.count(trial.images) >= DEATHS

    def reached(self) -> dict[str, int]:
        """Images of the running trials, as they last reported them."""
        found: dict[str, int] = {}
        for trial in list(self.trials):
            run = self.folder / TRIALS / trial.name
            if trial.state == "running" and run.is_local:
                progress = read_progress(run, PROGRESS)
                found[trial.name] = 0 if progress is None else int(progress["images"])
        return found

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        # Not set at a judgement: there the config may already hold the values of the next part.
        record.values = dict(trial.config["trial"]["values"])
        self._spent[record.name] = record.seconds  # a result counts only this attempt
        record.state = "running"
        self._write()

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._of(trial)
        self._ended[record.name] = result
        images = int(result["images"])
        record.seconds = self._spent.get(record.name, 0.0) + float(result.get("seconds", 0.0))
        if "score" in result:
            # Drop judgements at this point or later: they judged old weights. The trial has since
            # taken over the weights of another trial.
            record.history = [point for point in record.history if point[0] < images]
            record.images, record.score = images, float(result["score"])
            record.history.append((record.images, record.score))
            trial.max_failures = self.experiment.workers.max_restarts  # it came further
        self._write()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        result = self._ended.get(record.name, {})
        stop = result.get("stop")
        if "ends" in result:
            self.ends = result["ends"]
            self.stopping.set()
            record.state = "waiting"
        elif "failed" in result:
            record.state, record.reason = "failed", result["failed"]
        elif stop is not None and stop != ASKED:
            record.state = "done"
            record.reason = None if stop == ALL_SEEN else stop
        elif self.stopping.is_set():
            record.state = "waiting"
        else:
            record.state, record.reason = "stopped", f"by {self.settings.scheduler}"
        self._write()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Tune replaces a process that died. After DEATHS - 1 deaths without coming further, it
        does so for the last time."""
        record = self._of(trial)
        told = import_failure(_text_of(trial))
        if told is not None:  # no other trial can begin either
            self.ends, trial.max_failures = told, 0
            self.stopping.set()
            return
        self._died(record)
        if self._deaths[record.name].count(record.images) >= DEATHS - 1:
            trial.max_failures = 0

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        told = import_failure(_text_of(trial))
        if told is not None:
            self.ends, record.state = told, "waiting"
            self.stopping.set()
        else:
            record.state, record.reason = "failed", f"its process died: {_error_of(trial)}"
        self._write()

    def _of(self, trial: Any) -> Trial:
        name = str(trial.custom_trial_name)
        return next(record for record in self.trials if record.name == name)

    def _write(self) -> None:
        write_trials(self.folder, self.trials)
        metric = self.experiment.search_metric
        self.folder.write_text(TABLE, as_csv(self.trials, metric))


def _text_of(trial: Any) -> str:
    """The traceback of the last death of a trial's process."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
    return text.rpartition("Failure # ")[2]


def _error_of(trial: Any) -> str:
    """One line from the file that Tune wrote when a trial's process died for the last time."""
    lines = [line for line in _text_of(trial).splitlines()[1:] if line.strip()]
    if not lines:
        return "it did not say why"
    short = ended_for_memory("\n".join(lines))
    if short is not None:
        return short
    # The last line of a traceback names the error.
    return lines[-1].strip() if "ray::" in lines[0] else lines[0].strip()
