"""All loggers of a run together."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray_gen import temporary
from ray_gen.experiment import Experiment, ExperimentError
from ray_gen.experiment.loggers import (
    CustomLogger,
    LoggerSettings,
    MlflowLogger,
    TensorBoardLogger,
)
from ray_gen.runs.evaluations import evaluated
from ray_gen.runs.loggers.apart import END_SECONDS, Apart
from ray_gen.runs.loggers.hyperparameters import hyperparameters, later_scores
from ray_gen.runs.loggers.logger import LoggedRun, Logger, Picture
from ray_gen.runs.loggers.mlflow import VARIABLE, tracking_uri_of
from ray_gen.storage import Folder
from ray_gen.training.build import class_of, import_target

FILE = "loggers.json"
"""What the loggers keep for the next part of the run: ids on servers, and what they have got."""


def check_loggers(experiment: Experiment, run: Folder) -> None:
    """Raises ExperimentError if this process cannot build a logger of the experiment. Call it
    before anything starts."""
    for number, settings in enumerate(experiment.loggers):
        _class_of(settings, f"loggers.{number}")
        if isinstance(settings, MlflowLogger):
            uri = tracking_uri_of(settings.tracking_uri, run.location)
            if uri is None:
                raise ExperimentError(
                    [
                        f"loggers.{number}.tracking_uri: is required, because the run folder is "
                        f"behind a URI; give the server, or set {VARIABLE} on every machine"
                    ]
                )


def _class_of(settings: LoggerSettings, field: str) -> Any:
    package = settings.package
    if package is not None and importlib.util.find_spec(package) is None:
        raise ExperimentError(
            [f"loggers: {package} is not installed; pip install 'ray_gen[{package}]'"]
        )
    if isinstance(settings, CustomLogger):
        return class_of(settings.target, f"{field}.target", "start", "numbers", "pictures", "end")
    return import_target(settings.targets["logger"], field)


def _built(settings: LoggerSettings, field: str) -> Logger:
    try:
        return _class_of(settings, field)(**settings.arguments())
    except (TypeError, ValueError, KeyError, OSError) as error:
        if isinstance(error, ExperimentError) or not isinstance(settings, CustomLogger):
            raise
        raise ExperimentError([f"{field}.options: {type(error).__name__}: {error}"]) from error


class Loggers:
    """The loggers of a run. Those that write files of the run folder are called at once. All others
    have a thread each: see `Apart`."""

    def __init__(
        self,
        experiment: Experiment,
        run: Folder,
        folder: Path,
        images: int,
        tell: Callable[[str], None],
        compared: tuple[str, ...] = (),
    ) -> None:
        """folder: a local folder whose files are copied to the run folder. images: at which this
        part of the run begins. tell: is called with a sentence if a logger is given up. compared:
        paths of the fields that matter in a search.

        Raises ExperimentError if a logger cannot be built.
        """
        self._run, self._folder = run, folder
        self._beside = experiment.evaluation.is_beside
        self._scores: dict[int, dict[str, float]] = {}
        self._lock = threading.Lock()
        self._memories = _memories(run)
        this = LoggedRun(
            name=run.name,
            location=run.location,
            folder=folder,
            images=images,
            experiment=experiment.model_dump(mode="json"),
            hyperparameters=hyperparameters(experiment, compared),
            later=later_scores(experiment),
            memory={},
        )
        self._all = [
            _One(
                settings,
                f"loggers.{number}",
                this,
                deepcopy(self._memories.get(settings.key)),
                partial(self._save, settings.key),
                tell,
            )
            for number, settings in enumerate(experiment.loggers)
        ]
        self._all.sort(key=lambda one: one.is_of_files)  # a full disk ends the others too

    def report(
        self, images: int, values: Mapping[str, float], pictures: Mapping[str, Picture]
    ) -> None:
        """Give all loggers the numbers and pictures of a report, and the scores of evaluations
        beside the run that have come since."""
        for one in self._all:
            one.report(images, values, pictures)
        self.late()

    def late(self) -> None:
        """Give all loggers the scores of evaluations beside the run that they have not got.
        TensorBoard has them: the evaluation writes its own event file."""
        if not self._beside:
            return
        self._scores |= evaluated(self._run, self._scores)
        for one in self._all:
            if not one.is_tensorboard:
                one.late(self._scores)

    def end(self, how: str) -> None:
        """End all loggers: see `Logger.end`. Waits at most END_SECONDS."""
        deadline = time.monotonic() + END_SECONDS
        try:
            for one in self._all:
                one.end(how)
        finally:
            for one in self._all:
                one.wait(max(0.0, deadline - time.monotonic()))

    def _save(self, key: str, memory: Mapping[str, Any]) -> None:
        """Write what a logger keeps. Any thread."""
        kept = json.loads(json.dumps(memory))
        with self._lock:
            if self._memories.get(key) != kept:
                self._memories[key] = kept
                text = json.dumps(self._memories, indent=2)
                Folder(str(self._folder)).write_text(FILE, text)


class _One:
    """One logger: what it has got, and how it is called."""

    def __init__(
        self,
        settings: LoggerSettings,
        field: str,
        run: LoggedRun,
        got: Mapping[str, Any] | None,
        save: Callable[[Mapping[str, Any]], None],
        tell: Callable[[str], None],
    ) -> None:
        """got: what `save` was last called with, in an earlier part of the run."""
        self.is_tensorboard = isinstance(settings, TensorBoardLogger)
        self.is_of_files = settings.of_files
        self._logger = _built(settings, field)
        self._apart = None if settings.of_files else Apart(settings.key, tell)
        self._save = save
        self._begun = False
        self._got: dict[str, Any] = {"images": -1, "evaluated": [], "memory": {}, **(got or {})}
        self._late: set[int] = set(self._got["evaluated"])
        self._run = replace(run, memory=self._got["memory"])

    def report(
        self, images: int, values: Mapping[str, float], pictures: Mapping[str, Picture]
    ) -> None:
        """Call the logger, unless it got this report in an earlier part of the run."""
        if self._apart is not None and images <= self._got["images"]:
            return

        def log() -> None:
            self._logger.numbers(images, values)
            self._logger.pictures(images, pictures)
            self._got["images"] = images

        self._call(log)

    def late(self, found: Mapping[int, Mapping[str, float]]) -> None:
        """Call the logger with the scores of evaluations that it has not got, by images."""
        for images in sorted(found.keys() - self._late):
            self._late.add(images)

            def log(images: int = images) -> None:
                self._logger.numbers(images, found[images])
                self._got["evaluated"].append(images)

            self._call(log)

    def end(self, how: str) -> None:
        """Call the logger for the last time, if it has begun."""
        if self._begun:
            self._call(lambda: self._logger.end(how))
            if self._apart is not None:
                self._apart.call(None)

    def wait(self, seconds: float) -> None:
        """Return when all calls are made, at the latest after `seconds`."""
        if self._begun and self._apart is not None:
            self._apart.wait(seconds)

    def _call(self, function: Callable[[], None]) -> None:
        """The first call begins with `start`. Not earlier: imports take seconds, and would delay
        the first step."""
        if not self._begun:
            self._begun = True
            self._call(lambda: self._logger.start(self._run))
        if self._apart is None:
            function()
            return

        def remembered() -> None:
            function()
            self._save(self._got)

        self._apart.call(remembered)


def _memories(run: Folder) -> dict[str, Any]:
    """What the loggers kept, by logger."""
    try:
        found = json.loads(run.read_text(FILE))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def log_late_scores(experiment: Experiment, run: Folder, tell: Callable[[str], None]) -> None:
    """After a run has ended: give its loggers the scores of the evaluations beside it that ended
    later than the run. They go on under the same ids."""
    with temporary.folder("late-") as copied:
        folder = run.path if run.is_local else copied
        images = experiment.steps * experiment.training.global_batch_size
        loggers = Loggers(experiment, run, folder, images, tell)
        loggers.late()
        loggers.end("finished")
        for file in () if run.is_local else copied.rglob("*"):
            if file.is_file():
                run.put(file, file.relative_to(copied).as_posix())
